package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/command"
	"berth.io/berth/internal/host/durable"
	"berth.io/berth/internal/host/loop"
	"berth.io/berth/internal/host/mountpoint"
	"berth.io/berth/internal/host/xfs"
)

// label is the XFS label of a pool: it is recognised by it before it is mounted.
const label = "berth-pool"

// openImage opens, makes, attaches and mounts the pool file.
func (p *Pool) openImage(ctx context.Context) error {
	path := ImagePath(p.o.Dir, p.o.Name)
	// A pool file gets its name when it is complete; under this one it is not.
	unfinished := path + ".new"
	if err := boundary.Do("pool/remove-unfinished-image", func() error { return removeIfThere(unfinished) }); err != nil {
		return err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		at := MountPoint(p.o.Dir, p.o.Name)
		if is, err := mountpoint.Is(at); err != nil {
			return err
		} else if is {
			return fmt.Errorf("%w: a filesystem is mounted at %s, and its file %s is gone; nothing was changed", ErrDamaged, at, path)
		}
		if err := p.makeImage(ctx, unfinished, path); err != nil {
			return err
		}
	}
	var err error
	if p.image, err = os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	if p.sector, err = sectorFor(p.image); err != nil {
		return err
	}
	if err := p.setLimit(); err != nil {
		return err
	}
	id, err := loop.FileOf(p.image)
	if err != nil {
		return err
	}
	if mounted, err := p.mountedFrom(id); err != nil || mounted {
		return err // a killed process left it mounted, volumes in use: go on with it
	}
	if err := checkImage(p.image); err != nil {
		return fmt.Errorf("%s: %w; nothing was changed", path, err)
	}
	var dev *os.File
	err = boundary.Do("pool/attach-image", func() (err error) {
		dev, err = p.o.Loops.Attach(p.image, loop.Options{SectorBytes: p.sector, AutoClear: true})
		return err
	})
	if err != nil {
		return err
	}
	defer dev.Close()
	return p.mountOn(dev.Name())
}

// checkImage recognises a pool file that is cut short or whose header is not what mkfs wrote.
func checkImage(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	sb, err := xfs.ReadSuperblock(f)
	switch {
	case errors.Is(err, xfs.ErrNoSuperblock):
		return fmt.Errorf("%w: not a pool: %w", ErrDamaged, err)
	case err != nil:
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	case sb.Label != label:
		return fmt.Errorf("%w: an XFS filesystem labelled %q, not a pool", ErrForeign, sb.Label)
	case sb.DataBytes > st.Size():
		return fmt.Errorf("%w: truncated: the file has %d bytes, its filesystem %d", ErrDamaged, st.Size(), sb.DataBytes)
	}
	return nil
}

// mountedFrom says whether the pool is mounted already, from the loop device of its own file.
func (p *Pool) mountedFrom(id loop.File) (bool, error) {
	at := MountPoint(p.o.Dir, p.o.Name)
	if is, err := mountpoint.Is(at); err != nil || !is {
		return false, err
	}
	if err := p.openRoot(); err != nil {
		return false, fmt.Errorf("%w: %s is a mount point, and not of a pool: %w", ErrForeign, at, err)
	}
	dev, ok, err := p.o.Loops.Open(id)
	if err != nil {
		return false, err
	}
	if !ok {
		return false, fmt.Errorf("%w: %s is mounted, and not from %s", ErrForeign, at, ImagePath(p.o.Dir, p.o.Name))
	}
	defer dev.Close()
	return true, sameDevice(p.root, dev)
}

// sameDevice makes sure that root is a filesystem on the block device dev.
func sameDevice(root, dev *os.File) error {
	var a, b unix.Stat_t
	if err := errors.Join(unix.Fstat(int(root.Fd()), &a), unix.Fstat(int(dev.Fd()), &b)); err != nil {
		return err
	}
	if a.Dev != b.Rdev {
		return fmt.Errorf("%w: %s is mounted, and not from %s", ErrForeign, root.Name(), dev.Name())
	}
	return nil
}

// setLimit fixes how large the pool file may become.
func (p *Pool) setLimit() error {
	free, _, err := hostSpace(p.o.Dir)
	if err != nil {
		return err
	}
	var allocated int64
	if p.image != nil {
		var st unix.Stat_t
		if err := unix.Fstat(int(p.image.Fd()), &st); err != nil {
			return err
		}
		allocated = st.Blocks * 512
	}
	p.account.limit = p.o.LimitBytes / quantum * quantum
	if p.o.LimitBytes == 0 {
		p.account.limit = defaultLimit(free, allocated)
	}
	return nil
}

// makeImage makes a pool file: allocated on the host's disk to the last block, an XFS in it, and named when it is done.
func (p *Pool) makeImage(ctx context.Context, unfinished, path string) error {
	if err := p.setLimit(); err != nil {
		return err
	}
	size, group := initialSize(p.account.limit)
	if size < minimumPool {
		return fmt.Errorf("%w: a pool needs at least %d MiB, and may have %d MiB here (--pool-size, or the free space on the disk of %s)",
			ErrNoSpace, minimumPool/mib, size/mib, p.o.Dir)
	}
	if err := hostHasRoom(p.o.Dir, size); err != nil {
		return err
	}
	err := boundary.Do("pool/allocate-image", func() error { return allocateFile(unfinished, size) })
	if err != nil {
		return errors.Join(fmt.Errorf("make %s: %w", path, noSpace(err)), boundary.Do("pool/give-up-image", func() error { return removeIfThere(unfinished) }))
	}
	err = boundary.Do("pool/make-image-filesystem", func() error {
		return makeFilesystem(ctx, unfinished, "-d", "agsize="+strconv.FormatInt(group, 10))
	})
	if err != nil {
		return err
	}
	return boundary.Do("pool/name-image", func() error {
		if err := os.Rename(unfinished, path); err != nil {
			return err
		}
		return durable.SyncDirectory(p.o.Dir)
	})
}

func makeFilesystem(ctx context.Context, target string, extra ...string) error {
	// Metadata in sectors of 4096 keeps the log's writes whole blocks of the host's filesystem. No discard: the blocks were
	// just allocated for good.
	args := append([]string{"-q", "-K", "-L", label, "-m", "reflink=1,crc=1,finobt=1", "-s", "size=4096"}, extra...)
	_, err := command.Run(ctx, 2*time.Minute, "mkfs.xfs", append(args, target)...)
	return err
}

// allocateFile makes a file of which each byte has its block on the disk.
//
// boundary: held by the caller.
func allocateFile(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	keepInPlace(f)
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		return fmt.Errorf("allocate %d MiB: %w", size/mib, err)
	}
	return f.Sync()
}

// sectorFor is the smallest logical block size, of the two that everything knows, with which direct I/O on f works.
func sectorFor(f *os.File) (uint32, error) {
	var st unix.Statx_t
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
	if err == nil && st.Mask&unix.STATX_DIOALIGN != 0 && st.Dio_offset_align > 512 {
		return 4096, nil
	}
	return 512, err
}
