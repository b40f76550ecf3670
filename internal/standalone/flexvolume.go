package standalone

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin/flexvolume"
	"berth.io/berth/internal/why"
)

// volumePluginDirNote remembers where the FlexVolume drivers are, for a `berth down` when nothing runs.
func (d DataDir) volumePluginDirNote() string { return d.join("journal", "volume-plugin-dir") }

// noteVolumePluginDir writes the note, where it is another one.
func (d DataDir) noteVolumePluginDir(dir string) error {
	if d.volumePluginDir() == dir {
		return nil
	}
	return boundary.Do("standalone/note-volume-plugin-dir", func() error {
		next := d.volumePluginDirNote() + ".new"
		if err := os.WriteFile(next, []byte(dir+"\n"), 0o600); err != nil {
			return err
		}
		return os.Rename(next, d.volumePluginDirNote())
	})
}

// volumePluginDir is empty when no start has noted any.
func (d DataDir) volumePluginDir() string {
	text, err := os.ReadFile(d.volumePluginDirNote())
	if dir := strings.TrimSpace(string(text)); err == nil && filepath.IsAbs(dir) {
		return dir
	}
	return ""
}

// hasFlexVolumes says whether any driver has, or had, a volume here: without, no driver need be asked.
func (d DataDir) hasFlexVolumes() bool {
	if entries, err := os.ReadDir(d.join("plugins", flexvolume.PluginName)); err == nil && len(entries) > 0 {
		return true
	}
	records, err := fs.Glob(os.DirFS(d.join("pods")), "*/plugins/*~*/*.json")
	return err != nil || len(records) > 0
}

// runFlexVolumes serves the drivers. Where they are is noted for a `berth down` when nothing runs, which unmounts by itself without it.
func (r *rooms) runFlexVolumes(ctx context.Context) error {
	if err := r.in.dir.noteVolumePluginDir(r.flexHost.Dir()); err != nil {
		r.in.log.Warn("the FlexVolume drivers' directory can't be noted; `berth down` without the API will use plain unmounts", "err", err)
	}
	return r.flexHost.Run(ctx)
}

// flexVolumes are the FlexVolume drivers for `berth status`.
func (in *instance) flexVolumes() []why.FlexVolumeDriver {
	found := []why.FlexVolumeDriver{}
	for _, d := range in.rooms.flexHost.Drivers() {
		f := why.FlexVolumeDriver{Name: d.Name, Path: d.Path, Loaded: d.Loaded, Problem: d.Reason, Since: d.Since, Unsupported: d.Unsupported}
		if d.Loaded {
			f.Attach, f.FSGroup, f.SELinuxRelabel = d.Capabilities.Attach, d.Capabilities.FSGroup, d.Capabilities.SELinuxRelabel
			f.RequiresFSResize, f.SupportsMetrics = d.Capabilities.RequiresFSResize, d.Capabilities.SupportsMetrics
		}
		found = append(found, f)
	}
	return found
}
