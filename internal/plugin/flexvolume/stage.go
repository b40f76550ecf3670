package flexvolume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/mountpoint"
	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/plugin/intree"
	"berth.io/berth/internal/trace"
)

// Staged says whether the driver attaches: such a driver's volumes are mounted once for all pods before they are mounted for one.
func (p *Plugin) Staged(v *plugin.Volume) (bool, error) { return p.Attachable(v) }

// GlobalPath is where v is staged.
func (p *Plugin) GlobalPath(v *plugin.Volume) string {
	k, err := key(v)
	if err != nil || checkDriver(p.Driver(v)) != nil {
		return ""
	}
	return p.paths.global(p.Driver(v), k)
}

// Stage runs waitforattach and mountdevice.
func (p *Plugin) Stage(ctx context.Context, r plugin.StageRequest) error {
	v := r.Volume
	d, k, err := p.driverAndKey(ctx, v)
	if err != nil {
		return err
	}
	text, err := p.named(ctx, d, v)
	if err != nil {
		return err
	}
	path := p.paths.global(d.name, k)
	recordPath := p.paths.stagedRecord(d.name, k)
	record := volumeRecord{Name: uniqueName(d.name, k), SpecName: v.SpecName(), Persistent: v.PV != nil, Attachable: true}
	if have, err := loadRecord(recordPath); err == nil && have.Name == record.Name {
		record.Done = have.Done
	}
	if err := p.noteStaged(recordPath, record); err != nil { // waitforattach may make a device
		return err
	}
	device := r.DevicePath
	err = boundary.Do("flexvolume/wait-for-attach", func() error {
		a, err := d.call(ctx, subjectOf(v), callWaitForAttach, redactor{}, device, text)
		if err == nil {
			device = a.Device
		}
		return err
	})
	if err != nil && !errors.Is(err, errNotSupported) {
		return p.notStaged(ctx, path, r.Again, err)
	}
	record.Device = device
	if err := p.noteStaged(recordPath, record); err != nil {
		return err
	}
	mounted, err := mountpoint.Is(path)
	if err != nil {
		return err
	}
	if mounted && record.Done {
		return nil
	}
	if !mounted {
		if err := boundary.Do("flexvolume/make-global-dir", func() error { return os.MkdirAll(path, 0o750) }); err != nil {
			return err
		}
		if err := p.mountDevice(ctx, d, v, path, device, text); err != nil {
			return p.notStaged(ctx, path, r.Again, err)
		}
	}
	record.Done = true
	return p.noteStaged(recordPath, record)
}

// mountDevice calls the driver, or else formats and mounts the device. A driver without devices has nothing to mount here.
func (p *Plugin) mountDevice(ctx context.Context, d *driver, v *plugin.Volume, path, device, text string) error {
	err := boundary.Do("flexvolume/mount-device", func() error {
		_, err := d.call(ctx, subjectOf(v), callMountDevice, redactor{}, path, device, text)
		return err
	})
	if !errors.Is(err, errNotSupported) {
		return err
	}
	if device == "" {
		return nil
	}
	if !filepath.IsAbs(device) {
		return fmt.Errorf("FlexVolume driver %s has no mountdevice, and the device %.100q of its attach is no path that could be mounted", d.name, device)
	}
	kind := fsType(v)
	if kind == "" {
		kind = "ext4" // as upstream's mount library
	}
	if !fileSystemName(kind) {
		return fmt.Errorf("fsType %.50q is not the name of a filesystem", kind)
	}
	options := []string{"rw"}
	if stagedReadOnly(v) {
		options[0] = "ro"
	}
	owner := types.UID("")
	if v.PV != nil {
		owner = v.PV.UID
	} else if v.Pod != nil {
		owner = v.Pod.UID
	}
	ctx, cancel := context.WithTimeout(ctx, d.host.limits.Attach)
	defer cancel()
	return intree.FormatAndMount(ctx, owner, device, path, kind, options)
}

// fileSystemName refuses what would not stay one argument of mkfs and mount, or would name another program.
func fileSystemName(s string) bool {
	return len(s) < 50 && strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' && r != '.'
	}) < 0
}

// notStaged looks what a failure left: what is mounted, or may be, must be taken away in the end.
func (p *Plugin) notStaged(ctx context.Context, path string, again bool, err error) error {
	if again || errors.Is(err, plugin.ErrUncertain) || ctx.Err() != nil {
		return err
	}
	if mounted, mountErr := mountpoint.Is(path); mounted || mountErr != nil {
		return fmt.Errorf("%w (%w: something is mounted at %s)", err, plugin.ErrUncertain, path)
	}
	if removeErr := p.removeGlobal(path); removeErr != nil {
		return fmt.Errorf("%w (%w: %w)", err, plugin.ErrUncertain, removeErr)
	}
	return err
}

// Unstage runs unmountdevice and removes the directory. As upstream, a driver is not asked for what is not mounted.
func (p *Plugin) Unstage(ctx context.Context, r plugin.UnstageRequest) error {
	path := r.GlobalPath
	if path == "" && r.Volume != nil {
		path = p.GlobalPath(r.Volume)
	}
	name, k, ok := p.paths.splitGlobal(path)
	if !ok {
		return fmt.Errorf("unstage %s: %q is not below %s", r.Name, path, p.paths.plugin())
	}
	mounted, err := mountpoint.Is(path)
	if err != nil {
		return err
	}
	if !mounted {
		return p.removeGlobal(path)
	}
	of := subjectNamed(specNameOf(k), trace.ObjectRef{}, !strings.Contains(k, separator))
	if r.Volume != nil {
		of = subjectOf(r.Volume)
	}
	d, err := p.table.get(ctx, name)
	switch {
	case err == nil:
		err = boundary.Do("flexvolume/unmount-device", func() error {
			a, err := d.call(ctx, of, callUnmountDevice, redactor{}, path)
			p.warn(d, of, callUnmountDevice, a)
			return err
		})
		if errors.Is(err, errNotSupported) {
			err = cleanUp(path)
		}
	case p.givenUp(err):
		p.log.Warn("a FlexVolume is unmounted without its driver, which is gone: what the driver has beside the mount stays", "path", path, "driver", name, "err", err)
		err = cleanUp(path)
	}
	if err != nil {
		return err
	}
	if mounted, err := mountpoint.Is(path); mounted || err != nil {
		return errors.Join(fmt.Errorf("FlexVolume driver %s says that it has unmounted %s, which is still a mount point", name, path), err)
	}
	return p.removeGlobal(path)
}

func (p *Plugin) removeGlobal(path string) error {
	err := boundary.Do("flexvolume/remove-global-dir", func() error { return os.Remove(path) })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w; what is in it was written below the mount point: move it away", err)
	}
	name, k, ok := p.paths.splitGlobal(path)
	if !ok {
		return nil
	}
	return boundary.Do("flexvolume/forget-staged", func() error { return removeRecord(p.paths.stagedRecord(name, k)) })
}

// driverGrace is how long a driver that is gone is waited for before its volumes are unmounted without it: whoever replaces a driver
// by removing and installing it must not lose what it would have undone.
const driverGrace = 30 * time.Second

// givenUp says whether a driver is gone for longer than that. Upstream waits forever, and so does the pod.
func (p *Plugin) givenUp(err error) bool {
	var missing *MissingError
	return errors.As(err, &missing) && !missing.Starting && time.Since(missing.Since) >= driverGrace
}

// cleanUp unmounts whatever is mounted at path.
func cleanUp(path string) error {
	for {
		mounted, err := mountpoint.Is(path)
		if err != nil || !mounted {
			return err
		}
		if err := boundary.Do("flexvolume/unmount-plain", func() error { return mountpoint.Unmount(path) }); err != nil {
			return err
		}
	}
}

// StagedVolumes lists the records of staged volumes and the directories without one.
func (p *Plugin) StagedVolumes() ([]plugin.Reconstructed, error) {
	var found []plugin.Reconstructed
	var errs []error
	seen := map[string]bool{}
	records, dirs := p.paths.glob("*/*/staged/*"+recordSuffix), p.paths.glob("*/*/mounts/*")
	for _, f := range append(records, dirs...) {
		k := filepath.Base(f)
		if filepath.Base(filepath.Dir(f)) == "staged" {
			if strings.HasPrefix(k, ".") {
				continue // one that was being written
			}
			if k = keyOf(f); k == "" {
				errs = append(errs, fmt.Errorf("%s does not tell which volume it is of: its directory does, if there is one", f))
				continue
			}
		}
		driver := filepath.Base(filepath.Dir(filepath.Dir(filepath.Dir(f)))) + "/" + filepath.Base(filepath.Dir(filepath.Dir(f)))
		path := p.paths.global(driver, k)
		if seen[path] || strings.HasPrefix(k, ".") || checkDriver(driver) != nil {
			continue
		}
		seen[path] = true
		if _, err := loadRecord(p.paths.stagedRecord(driver, k)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		found = append(found, plugin.Reconstructed{Name: uniqueName(driver, k), SpecName: specNameOf(k), Mode: v1.PersistentVolumeFilesystem,
			GlobalPath: path, Attachable: true, Driver: driver})
	}
	return found, errors.Join(errs...)
}
