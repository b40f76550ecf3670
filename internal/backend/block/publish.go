package block

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/mountpoint"
)

// Publish implements backend.Node.
func (b *Backend) Publish(ctx context.Context, r backend.PublishRequest) error {
	if _, err := b.get(r.ID); err != nil {
		return err
	}
	r.Target, r.StagingPath = real(r.Target), real(r.StagingPath)
	h, err := b.holds.Acquire(ctx, r.ID, "NodePublishVolume")
	if err != nil {
		return err
	}
	defer h.Release()
	if at := b.stagedAt(r.ID); at == "" || r.StagingPath != "" && at != r.StagingPath {
		return fmt.Errorf("%w: volume %s at %s", backend.ErrNotStaged, r.ID, r.StagingPath)
	}
	// Where the target is published already, other mounts show what was bound from it (a kubelet does that with a device):
	// after a restart both are found in the kernel.
	if at := b.liveTargets(r.ID); r.Exclusive && len(at) > 0 && !slices.Contains(at, r.Target) {
		return fmt.Errorf("%w: volume %s may be used at one place only, and is published at %s", backend.ErrInUse, r.ID, at[0])
	}
	source, want, err := b.source(r)
	if err != nil {
		return err
	}
	is, err := mountpoint.Is(r.Target)
	if err != nil {
		return err
	}
	if is {
		if err := samePublished(r, source, want); err != nil {
			return err
		}
		b.noteTarget(r.ID, r.Target)
		return nil
	}
	h.Step("binding it at " + r.Target)
	err = boundary.Do("backend-block/make-target", func() error { return makeTarget(r.Target, r.Block) })
	if err != nil {
		return err
	}
	err = boundary.Do("backend-block/bind", func() error {
		return mountpoint.Bind(source, r.Target, r.ReadOnly, r.MountOptions)
	})
	if err != nil {
		return err
	}
	b.noteTarget(r.ID, r.Target)
	return nil
}

// source is what to bind, and the device number by which it is recognised at a target: of the filesystem, or of the
// device node.
func (b *Backend) source(r backend.PublishRequest) (path string, device uint64, err error) {
	var st unix.Stat_t
	if r.Block {
		dev, ok, err := b.openLoop(r.ID)
		if err != nil {
			return "", 0, err
		}
		if !ok {
			return "", 0, fmt.Errorf("%w: the device of volume %s is not attached", backend.ErrNotStaged, r.ID)
		}
		defer dev.Close()
		err = unix.Fstat(int(dev.Fd()), &st)
		return dev.Name(), st.Rdev, err
	}
	at := b.stagedAt(r.ID)
	if is, err := mountpoint.Is(at); err != nil {
		return "", 0, err
	} else if !is {
		return "", 0, fmt.Errorf("%w: nothing is mounted at %s", backend.ErrNotStaged, at)
	}
	err = unix.Stat(at, &st)
	return at, st.Dev, err
}

// samePublished accepts a target that shows this volume already, in the way that is asked for.
func samePublished(r backend.PublishRequest, source string, want uint64) error {
	var st unix.Stat_t
	if err := unix.Stat(r.Target, &st); err != nil {
		return err
	}
	have := st.Dev
	if r.Block {
		have = st.Rdev
	}
	if have != want {
		return fmt.Errorf("%w: something else is mounted at %s", backend.ErrExists, r.Target)
	}
	switch ro, err := mountpoint.ReadOnly(r.Target); {
	case err != nil:
		return err
	case r.ReadOnly && !ro:
		return fmt.Errorf("%w: %s is published for writing, and read-only is asked for", backend.ErrExists, r.Target)
	case !r.ReadOnly && ro:
		// A filesystem that is read-only where it is staged, by wish or by damage, is so everywhere.
		if whole, err := mountpoint.ReadOnly(source); err == nil && !whole {
			return fmt.Errorf("%w: %s is published read-only, and writing is asked for", backend.ErrExists, r.Target)
		}
	}
	return nil
}

// makeTarget makes the mount point: a directory, or an empty file for a device.
func makeTarget(target string, block bool) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	if !block {
		if err := os.Mkdir(target, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	}
	f, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// Unpublish implements backend.Node.
func (b *Backend) Unpublish(ctx context.Context, id, target string) error {
	target = real(target)
	h, err := b.holds.Acquire(ctx, id, "NodeUnpublishVolume")
	if err != nil {
		return err
	}
	defer h.Release()
	h.Step("unmounting it from " + target)
	if is, err := mountpoint.Is(target); err != nil {
		return err
	} else if is {
		if err := b.mustShow(id, target); err != nil {
			return err
		}
		err := boundary.Do("backend-block/unbind", func() error { return mountpoint.Unmount(target) })
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%w: something has files open below %s: %w", backend.ErrInUse, target, err)
		}
		if err != nil {
			return err
		}
	}
	err = boundary.Do("backend-block/remove-target", func() error {
		// Remove, not RemoveAll: what is in an unmounted target is not the volume's, and not ours to delete.
		if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.forgetTarget(id, target)
	return nil
}
