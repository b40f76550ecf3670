package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/filesystem"
	"berth.io/berth/internal/host/loop"
	"berth.io/berth/internal/host/mountpoint"
)

// Expand implements backend.Node. Everything is online: the loop device takes the file's new size, the filesystem the
// device's.
func (b *Backend) Expand(ctx context.Context, id, path string) (int64, error) {
	if _, err := b.get(id); err != nil {
		return 0, err
	}
	h, err := b.holds.Acquire(ctx, id, "NodeExpandVolume")
	if err != nil {
		return 0, err
	}
	defer h.Release()
	v, err := b.get(id)
	if err != nil {
		return 0, err
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("%w: nothing at %s", backend.ErrNotFound, path)
	}
	dev, ok, err := b.openLoop(id)
	if err != nil {
		return 0, err
	}
	if !ok {
		return 0, fmt.Errorf("%w: volume %s is not attached on this node", backend.ErrNotStaged, id)
	}
	defer dev.Close()
	h.Step("growing its device")
	if err := boundary.Do("backend-block/grow-loop", func() error { return loop.SetCapacity(dev) }); err != nil {
		return 0, err
	}
	at := b.stagedAt(id)
	if is, err := mountpoint.Is(at); at == "" || err != nil || !is {
		return v.SizeBytes, err // a block device
	}
	h.Step("growing its filesystem")
	err = boundary.Do("backend-block/grow-filesystem", func() error { return filesystem.Grow(v.FSType, at, dev, v.SizeBytes) })
	if errors.Is(err, filesystem.ErrNeedsUnmount) {
		return 0, fmt.Errorf("%w: %w: stop the volume's pods, and it is grown when it is mounted next", backend.ErrInUse, err)
	}
	return v.SizeBytes, err
}

// Stats implements backend.Node.
func (b *Backend) Stats(_ context.Context, id, path string) (backend.Stats, error) {
	v, err := b.get(id)
	if err != nil {
		return backend.Stats{}, err
	}
	s, err := b.statsAt(id, path)
	if err == nil && s.Problem == "" {
		s.Problem = b.fileProblem(v)
	}
	return s, err
}

func (b *Backend) statsAt(id, path string) (backend.Stats, error) {
	if path == "" {
		return b.stagedStats(id)
	}
	var st unix.Stat_t
	switch err := unix.Stat(path, &st); {
	case errors.Is(err, fs.ErrNotExist):
		return backend.Stats{}, fmt.Errorf("%w: nothing at %s", backend.ErrNotFound, path)
	case err != nil:
		return backend.Stats{Problem: fmt.Sprintf("the filesystem at %s answers %q: unmount it and look at the kernel's log", path, err)}, nil
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		dev, err := os.Open(path)
		if err != nil {
			return backend.Stats{}, err
		}
		defer dev.Close()
		return deviceStats(dev)
	}
	if is, err := mountpoint.Is(path); err != nil {
		return backend.Stats{}, err
	} else if !is {
		return backend.Stats{}, fmt.Errorf("%w: volume %s is not mounted at %s", backend.ErrNotFound, id, path)
	}
	return b.filesystemStats(id, path)
}

func deviceStats(dev *os.File) (backend.Stats, error) {
	size, err := dev.Seek(0, io.SeekEnd)
	return backend.Stats{TotalBytes: size}, err
}

// stagedStats are those of the place where the volume is staged.
func (b *Backend) stagedStats(id string) (backend.Stats, error) {
	at := b.stagedAt(id)
	if is, err := mountpoint.Is(at); at != "" && err == nil && is {
		return b.filesystemStats(id, at)
	}
	dev, attached, err := b.openLoop(id)
	if err != nil {
		return backend.Stats{}, err
	}
	if !attached {
		return backend.Stats{}, fmt.Errorf("%w: volume %s is not on this node now", backend.ErrNotFound, id)
	}
	defer dev.Close()
	return deviceStats(dev)
}

func (b *Backend) filesystemStats(id, path string) (backend.Stats, error) {
	var f unix.Statfs_t
	if err := unix.Statfs(path, &f); err != nil {
		return backend.Stats{Problem: fmt.Sprintf("the filesystem at %s answers %q: unmount it and look at the kernel's log", path, err)}, nil
	}
	s := backend.Stats{
		TotalBytes: int64(f.Blocks) * f.Bsize, AvailableBytes: int64(f.Bavail) * f.Bsize, UsedBytes: int64(f.Blocks-f.Bfree) * f.Bsize,
		Inodes: int64(f.Files), InodesFree: int64(f.Ffree), InodesUsed: int64(f.Files - f.Ffree),
	}
	s.Problem = b.mountProblem(id)
	return s, nil
}
