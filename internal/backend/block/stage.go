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
	"berth.io/berth/internal/backend/hold"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/filesystem"
	"berth.io/berth/internal/host/loop"
	"berth.io/berth/internal/host/mountpoint"
	"berth.io/berth/internal/host/xfs"
)

// Stage implements backend.Node.
func (b *Backend) Stage(ctx context.Context, r backend.StageRequest) error {
	if _, err := b.get(r.ID); err != nil {
		return err
	}
	r.Path = real(r.Path)
	h, err := b.holds.Acquire(ctx, r.ID, "NodeStageVolume")
	if err != nil {
		return err
	}
	defer h.Release()
	v, err := b.get(r.ID) // again: what the last holder did counts
	if err != nil {
		return err
	}
	if at := b.stagedAt(r.ID); at != r.Path && b.inUse(r.ID) != "" {
		return fmt.Errorf("%w: volume %s is staged at %s", backend.ErrInUse, r.ID, at)
	}
	if r.Block {
		return b.stageBlock(h, v, r)
	}
	return b.stageFilesystem(ctx, h, v, r)
}

func (b *Backend) stageFilesystem(ctx context.Context, h *hold.Hold, v pool.Volume, r backend.StageRequest) error {
	fsType := r.FSType
	if fsType == "" {
		fsType = v.FSType
	}
	if fsType == "" {
		fsType = filesystem.Default
	}
	if err := b.ensureFormatted(ctx, h, v, fsType); err != nil {
		return err
	}
	if err := b.noteStaged(h, r); err != nil {
		return err
	}
	h.Step("attaching its loop device")
	// AutoClear: the mount keeps the device, and it goes with the mount, whoever unmounts it.
	dev, err := b.attachLoop(v, true)
	if err != nil {
		return err
	}
	defer dev.Close()
	b.setQueue(v, dev)
	is, err := mountpoint.Is(r.Path)
	if err != nil {
		return err
	}
	if is {
		if err := b.mustBe(r.Path, dev, fsType); err != nil {
			return err
		}
		if ro, err := mountpoint.ReadOnly(r.Path); err == nil && !ro && slices.Contains(r.MountOptions, "ro") {
			return fmt.Errorf("%w: volume %s is staged at %s for writing, and read-only is asked for", backend.ErrExists, r.ID, r.Path)
		}
		return nil
	}
	h.Step("mounting it at " + r.Path)
	err = boundary.Do("backend-block/make-staging-directory", func() error { return os.MkdirAll(r.Path, 0o750) })
	if err != nil {
		return err
	}
	if err := b.prepareExt4(ctx, h, v, dev, fsType); err != nil {
		return err
	}
	err = b.mount(ctx, h, v, dev, fsType, r)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: %w (a mount option that %s does not know, or a damaged filesystem: the kernel's log says which)", backend.ErrInvalid, err, fsType)
	}
	if err != nil {
		return err
	}
	b.noteReadOnly(r.ID, r.Path)
	return b.fill(h, v, dev, fsType, r.Path)
}

// mount mounts a copy of another volume beside it, too, whose UUID it has. ext4 does not mind. XFS is told not to. btrfs gives
// it another one for as long as it is mounted (Linux 6.7); an older kernel refuses, and then it gets another for good.
func (b *Backend) mount(ctx context.Context, h *hold.Hold, v pool.Volume, dev *os.File, fsType string, r backend.StageRequest) error {
	options := r.MountOptions
	if v.Source != nil && fsType == filesystem.XFS {
		options = append(slices.Clone(options), "nouuid")
	}
	mount := func() error { return mountpoint.Mount(dev.Name(), r.Path, fsType, options) }
	err := boundary.Do("backend-block/mount", mount)
	if !errors.Is(err, unix.EEXIST) || v.Source == nil || fsType != filesystem.Btrfs {
		return err
	}
	h.Step("giving its filesystem another UUID than its source has")
	return boundary.Do("backend-block/mount-with-new-uuid", func() error {
		if err := filesystem.ChangeUUID(ctx, fsType, dev.Name()); err != nil {
			return fmt.Errorf("%w: volume %s has the UUID of its source, which is mounted here, and cannot get another: %w", backend.ErrInUse, v.ID, err)
		}
		return mount()
	})
}

// fill grows a filesystem that is smaller than its volume: restored to a larger size, or expanded while it was not mounted.
func (b *Backend) fill(h *hold.Hold, v pool.Volume, dev *os.File, fsType, at string) error {
	if fsType == filesystem.Ext4 && !filesystem.Outgrown(fsType, dev, v.SizeBytes) || fsType == filesystem.Btrfs && !b.smaller(at, v.SizeBytes) {
		return nil
	}
	if ro, err := mountpoint.ReadOnly(at); err != nil || ro {
		return err
	}
	h.Step("growing its filesystem")
	return boundary.Do("backend-block/fill", func() error { return filesystem.Grow(fsType, at, dev, v.SizeBytes) })
}

func (b *Backend) smaller(at string, size int64) bool {
	var st unix.Statfs_t
	return unix.Statfs(at, &st) == nil && int64(st.Blocks)*st.Bsize < size
}

// prepareExt4 does what has to be done before a mount, which is nothing for nearly every volume: repair a filesystem that
// carries the mark of errors, and grow one that an expansion could not grow while it was mounted.
func (b *Backend) prepareExt4(ctx context.Context, h *hold.Hold, v pool.Volume, dev *os.File, fsType string) error {
	if fsType != filesystem.Ext4 {
		return nil
	}
	if filesystem.HasErrors(dev) {
		h.Step("repairing its filesystem")
		if err := boundary.Do("backend-block/repair", func() error { return filesystem.Repair(ctx, fsType, dev.Name()) }); err != nil {
			return err
		}
	}
	if !filesystem.MayGrowMounted(fsType) && filesystem.Outgrown(fsType, dev, v.SizeBytes) {
		h.Step("growing its filesystem")
		return boundary.Do("backend-block/grow-unmounted", func() error { return filesystem.GrowUnmounted(ctx, dev.Name()) })
	}
	return nil
}

// mustBe makes sure that what is mounted at path already is the filesystem on dev.
func (b *Backend) mustBe(path string, dev *os.File, fsType string) error {
	var at, device unix.Stat_t
	if err := errors.Join(unix.Stat(path, &at), unix.Fstat(int(dev.Fd()), &device)); err != nil {
		return err
	}
	if at.Dev == device.Rdev {
		return nil
	}
	if fsType == filesystem.Btrfs { // has device numbers of its own: only the list of mounts knows
		mounts, err := mountpoint.List()
		if err != nil {
			return err
		}
		if slices.ContainsFunc(mounts, func(m mountpoint.Entry) bool { return m.Path == path && m.Source == dev.Name() }) {
			return nil
		}
	}
	return fmt.Errorf("%w: something else is mounted at %s", backend.ErrInUse, path)
}

// stageBlock attaches the device. It stays attached without anybody having it open, until Unstage.
func (b *Backend) stageBlock(h *hold.Hold, v pool.Volume, r backend.StageRequest) error {
	if v.Content == pool.Fresh {
		if err := b.o.Pool.SetContent(v.ID, pool.Raw, ""); err != nil {
			return translate(err)
		}
	}
	if err := b.noteStaged(h, r); err != nil {
		return err
	}
	h.Step("attaching its loop device")
	dev, err := b.attachLoop(v, false)
	if err != nil {
		return err
	}
	b.setQueue(v, dev)
	return dev.Close()
}

// attachLoop returns the volume's loop device, open.
func (b *Backend) attachLoop(v pool.Volume, autoClear bool) (*os.File, error) {
	disk, err := os.OpenFile(b.o.Pool.Disk(v.ID), os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer disk.Close()
	backing := disk
	// Else each fsync of the volume's user would find the file's time changed, and write it into the pool's log.
	if untimed, err := xfs.OpenUntimed(disk); err == nil {
		defer untimed.Close()
		backing = untimed
	} else if !errors.Is(err, unix.EPERM) { // a container may lack the right; it is slower, not wrong
		return nil, err
	}
	var dev *os.File
	err = boundary.Do("backend-block/attach-loop", func() (err error) {
		dev, err = b.o.Loops.Attach(backing, loop.Options{SectorBytes: v.SectorBytes, AutoClear: autoClear})
		return err
	})
	return dev, err
}

// openLoop returns the volume's loop device, open, when it is attached.
func (b *Backend) openLoop(id string) (*os.File, bool, error) {
	disk, err := os.Open(b.o.Pool.Disk(id))
	if err != nil {
		return nil, false, err
	}
	defer disk.Close()
	file, err := loop.FileOf(disk)
	if err != nil {
		return nil, false, err
	}
	return b.o.Loops.Open(file)
}

func (b *Backend) detachLoop(id string) error {
	disk, err := os.Open(b.o.Pool.Disk(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer disk.Close()
	file, err := loop.FileOf(disk)
	if err != nil {
		return err
	}
	err = boundary.Do("backend-block/detach-loop", func() error { return b.o.Loops.Detach(file) })
	if errors.Is(err, loop.ErrHeld) {
		return fmt.Errorf("%w: volume %s: %w", backend.ErrInUse, id, err)
	}
	return err
}

// Unstage implements backend.Node.
func (b *Backend) Unstage(ctx context.Context, id, path string) error {
	path = real(path)
	h, err := b.holds.Acquire(ctx, id, "NodeUnstageVolume")
	if err != nil {
		return err
	}
	defer h.Release()
	if targets := b.liveTargets(id); len(targets) > 0 {
		return fmt.Errorf("%w: volume %s is published at %s", backend.ErrInUse, id, targets[0])
	}
	h.Step("unmounting it from " + path)
	if is, err := mountpoint.Is(path); err != nil {
		return err
	} else if is {
		if err := b.mustShow(id, path); err != nil {
			return err
		}
		b.resetQueue(id)
		err := boundary.Do("backend-block/unmount", func() error { return mountpoint.Unmount(path) })
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%w: %w", backend.ErrInUse, err)
		}
		if err != nil {
			return err
		}
	}
	if _, err := b.get(id); errors.Is(err, backend.ErrNotFound) {
		b.forget(id)
		return nil
	}
	if at := b.stagedAt(id); at != "" && at != path {
		return nil // that one stays
	}
	h.Step("detaching its loop device")
	b.resetQueue(id)
	// A filesystem's device went with the mount, unless another mount namespace still has it: then the kernel lets it
	// go there, and Delete refuses until it has.
	if err := b.detachLoop(id); err != nil && !errors.Is(err, backend.ErrInUse) {
		return err
	}
	link := filepath.Join(b.o.Pool.Directory(id), stagedLink)
	err = boundary.Do("backend-block/forget-staged", func() error {
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
	b.forget(id)
	return err
}
