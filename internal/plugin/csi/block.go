package csi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/mountpoint"
	"berth.io/berth/internal/plugin"
)

// publishBlock publishes a raw device. The symlink in the pod's directory is made first: it is what Reconstruct finds
// after a crash, and it dangles until the driver has made the target.
//
// Upstream also takes a loop device on the mapped file as a lock against a device that changes its name underneath;
// the bind mount holds the device's inode already, so that is left out.
func (p *Plugin) publishBlock(ctx context.Context, r plugin.PublishRequest, q *publishCall) (plugin.Published, error) {
	pod, specName := r.Volume.Pod.UID, r.Volume.SpecName()
	target, link, mapped := p.paths.blockTarget(pod, specName), p.paths.blockLink(pod, specName), p.paths.blockMap(pod, specName)

	if err := q.data.save(p.paths.blockData(specName)); err != nil {
		return plugin.Published{}, err
	}
	err := boundary.Do("csi/link-block-target", func() error {
		for _, dir := range []string{filepath.Dir(target), filepath.Dir(link), filepath.Dir(mapped)} {
			if err := os.MkdirAll(dir, 0o750); err != nil {
				return err
			}
		}
		err := os.Symlink(target, link)
		if errors.Is(err, os.ErrExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return plugin.Published{}, fmt.Errorf("prepare %s: %w", link, err)
	}

	q.request.TargetPath = target
	if q.request.StagingTargetPath == "" {
		q.request.StagingTargetPath = p.paths.blockStaging(specName) // upstream gives it in any case
	}
	if err := q.send(ctx); err != nil {
		if !r.Again && !errors.Is(err, plugin.ErrUncertain) {
			if cleanErr := p.removeBlockTarget(target, link); cleanErr != nil {
				p.log.Warn("what a failed NodePublishVolume left can't be removed", "path", target, "err", cleanErr)
			}
		}
		return plugin.Published{}, err
	}
	err = boundary.Do("csi/map-block-target", func() error { return bindFile(target, mapped) })
	if err != nil {
		return plugin.Published{}, fmt.Errorf("map %s at %s: %w: %w", target, mapped, err, plugin.ErrUncertain)
	}
	return plugin.Published{Path: link}, nil
}

// unpublishBlock goes the other way; the symlink goes last, so that a crash anywhere before leaves it to be found.
func (p *Plugin) unpublishBlock(ctx context.Context, r plugin.UnpublishRequest) error {
	defer p.tokens.forget(r.PodUID)
	target, link, mapped := p.paths.blockTarget(r.PodUID, r.SpecName), p.paths.blockLink(r.PodUID, r.SpecName), p.paths.blockMap(r.PodUID, r.SpecName)
	if err := boundary.Do("csi/unmap-block-target", func() error { return unmountFile(mapped) }); err != nil {
		return fmt.Errorf("unmap %s: %w", mapped, err)
	}
	data, err := loadVolumeData(p.paths.blockData(r.SpecName))
	switch {
	case errors.Is(err, os.ErrNotExist): // unstaged already: nothing can be published
	case err != nil:
		return err
	default:
		if err := p.nodeUnpublish(ctx, data, target); err != nil {
			return err
		}
	}
	if err := p.removeBlockTarget(target, link); err != nil {
		return fmt.Errorf("driver %s says that it has unpublished, but: %w", data.DriverName, err)
	}
	return nil
}

func (p *Plugin) removeBlockTarget(target, link string) error {
	return boundary.Do("csi/remove-block-target", func() error {
		if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) { // a mount refuses it
			return err
		}
		if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		_ = os.Remove(filepath.Dir(link)) // when it was the pod's last block volume
		return nil
	})
}

// removeBlockVolume removes what a block volume has outside of its pods, the volume data last.
func (p *Plugin) removeBlockVolume(specName string) error {
	return boundary.Do("csi/remove-block-volume", func() error {
		volume := p.paths.blockVolume(specName)
		data := p.paths.blockData(specName)
		staging := p.paths.blockStaging(specName)
		// Drivers may leave files of their own below the staging path, which upstream removes with it. In a filesystem that a
		// driver has mounted there, and not unmounted, they are the volume's data.
		if is, err := mountpoint.Is(staging); err != nil {
			return err
		} else if is {
			return fmt.Errorf("remove %s: it is still a mount point", staging)
		}
		if entries, err := os.ReadDir(staging); err == nil {
			for _, e := range entries {
				if err := os.Remove(filepath.Join(staging, e.Name())); err != nil {
					return err
				}
			}
		}
		temps, err := unfinishedData(data)
		if err != nil {
			return err
		}
		for _, f := range append([]string{
			staging,
			filepath.Dir(p.paths.blockTarget("uid", specName)),
			filepath.Join(volume, "dev"),
		}, append(temps, filepath.Join(data, volumeDataFile), data, volume)...) {
			if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("remove %s: %w", f, err)
			}
		}
		return nil
	})
}

// bindFile makes target visible at mapped, once. boundary: held by the caller.
func bindFile(target, mapped string) error {
	var t, m unix.Stat_t
	if err := unix.Stat(target, &t); err != nil {
		return fmt.Errorf("the driver made no %s: %w", target, err)
	}
	if unix.Stat(mapped, &m) == nil && t.Rdev == m.Rdev && t.Dev == m.Dev && t.Ino == m.Ino {
		return nil
	}
	f, err := os.OpenFile(mapped, os.O_CREATE|os.O_RDONLY, 0o640)
	if err != nil {
		return err
	}
	_ = f.Close()
	return unix.Mount(target, mapped, "", unix.MS_BIND, "")
}

// unmountFile undoes it. boundary: held by the caller.
func unmountFile(mapped string) error {
	// EINVAL: it is no mount point.
	err := unix.Unmount(mapped, unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := os.Remove(mapped); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
