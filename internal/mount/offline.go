package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"berth.io/berth/internal/plugin"
)

// TeardownOffline unpublishes and unstages everything below dataDir with no API: through the plugins where their drivers
// answer, else by plain unmounts. The plugins are made without a client, and with the drivers that could be found
// (csi.Drivers.RegisterKnown). What a plugin keeps for pods (plugin.Keeper) stays. What a driver keeps beside a plain unmount stays for the next start to undo.
// The caller makes sure that no Manager runs on dataDir.
func TeardownOffline(ctx context.Context, dataDir string, plugins *plugin.Registry, log *slog.Logger) error {
	if log == nil {
		log = slog.Default()
	}
	f := scan(dataDir, plugins)
	var errs []error
	for _, u := range f.published {
		if err := removeSubpaths(dataDir, u.pod, entries(subpathsDir(dataDir, u.pod))...); err != nil {
			errs = append(errs, err)
			continue
		}
		if k, ok := u.plugin.(plugin.Keeper); ok && k.Keeps(u.pod, u.SpecName) {
			continue // its pod may live on; the next start knows
		}
		r := plugin.UnpublishRequest{PodUID: u.pod, SpecName: u.SpecName, Mode: u.Mode}
		if err := u.plugin.Unpublish(ctx, r); err != nil {
			log.Warn("its driver can't unpublish the volume: unmounting it", "volume", u.SpecName, "pod", u.pod, "err", err)
			errs = append(errs, unmountBelow(u.Path))
		}
	}
	staged := f.staged
	for _, u := range f.published {
		if _, lists := u.plugin.(plugin.StagedLister); !lists && u.GlobalPath != "" {
			staged = append(staged, u.foundVolume)
		}
	}
	for _, v := range staged {
		r := plugin.UnstageRequest{Name: v.Name, GlobalPath: v.GlobalPath}
		if err := v.plugin.Unstage(ctx, r); err != nil {
			log.Warn("its driver can't unstage the volume: unmounting it", "volume", v.SpecName, "err", err)
			errs = append(errs, unmountBelow(v.GlobalPath))
		}
	}
	for _, b := range f.broken {
		if b.path != "" {
			errs = append(errs, b.clean(ctx))
		}
	}
	// What no directory told of, and the directories themselves where nothing is left of their volumes.
	errs = append(errs, unmountBelow(podsDir(dataDir)), unmountBelow(filepath.Join(dataDir, "plugins", "kubernetes.io")))
	left := scan(dataDir, plugins)
	busy := map[string]bool{}
	for _, u := range left.published {
		busy[string(u.pod)] = true // the next start hands it to its driver
	}
	for _, uid := range left.pods {
		if !busy[string(uid)] {
			errs = append(errs, removePodDir(podDir(dataDir, uid)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("tear down %s: %w", dataDir, err)
	}
	return ctx.Err()
}
