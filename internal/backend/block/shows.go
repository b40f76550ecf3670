package block

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/host/loop"
	"berth.io/berth/internal/host/mountpoint"
)

// mustShow makes sure that what is mounted at path is this volume, or a bind of its device: whatever else a user has mounted there
// is not ours to unmount.
func (b *Backend) mustShow(id, path string) error {
	shows, err := b.shows(id, path)
	if err == nil && !shows {
		err = fmt.Errorf("%w: what is mounted at %s is not volume %s, and was left alone: unmount it by hand", backend.ErrInUse, path, id)
	}
	return err
}

func (b *Backend) shows(id, path string) (bool, error) {
	var at unix.Stat_t
	if err := unix.Stat(path, &at); err != nil {
		// A filesystem that answers errors only is ours when we have put it there.
		if b.stagedAt(id) == path || slices.Contains(b.liveTargets(id), path) {
			return true, nil
		}
		return false, fmt.Errorf("look at what is mounted at %s: %w", path, err)
	}
	dev, attached, err := b.openLoop(id)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !attached {
		return b.showsRemoved(id, path)
	}
	if err != nil {
		return false, err
	}
	defer dev.Close()
	var device unix.Stat_t
	if err := unix.Fstat(int(dev.Fd()), &device); err != nil {
		return false, err
	}
	if at.Dev == device.Rdev || at.Mode&unix.S_IFMT == unix.S_IFBLK && at.Rdev == device.Rdev {
		return true, nil
	}
	return btrfsFrom(dev, path)
}

// showsRemoved is for a volume whose file somebody removed while it was mounted: the kernel still knows the path that it had.
func (b *Backend) showsRemoved(id, path string) (bool, error) {
	loops, err := loop.List()
	if err != nil {
		return false, err
	}
	mounts, err := mountpoint.List()
	if err != nil {
		return false, err
	}
	for _, m := range slices.Backward(mounts) {
		if m.Path == path {
			return slices.ContainsFunc(loops, func(l loop.Info) bool { return l.Backing == b.o.Pool.Disk(id) && l.ShownBy(m) }), nil
		}
	}
	return false, nil
}

// btrfsFrom says whether the topmost mount at path is of a filesystem on dev that has device numbers of its own: only the list of
// mounts knows.
func btrfsFrom(dev *os.File, path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil || st.Type != unix.BTRFS_SUPER_MAGIC {
		return false, err
	}
	mounts, err := mountpoint.List()
	if err != nil {
		return false, err
	}
	for _, m := range slices.Backward(mounts) {
		if m.Path == path {
			return m.Source == dev.Name(), nil
		}
	}
	return false, nil
}
