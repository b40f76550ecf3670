package intree

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/mountpoint"
)

// medium is what a directory lives on.
type medium string

const (
	onDisk      medium = ""
	onMemory    medium = "tmpfs"
	onHugePages medium = "hugetlbfs"
)

// disk is what this package asks of the kernel's mounts; unit tests have one without root.
type disk interface {
	// Mounted reports whether dir is the root of a mount, and its medium. A dir that does not exist is not mounted.
	Mounted(dir string) (bool, medium, error)
	// Memory mounts a filesystem without a device at dir.
	Memory(dir string, m medium, options []string) error
	// Bind mounts source at dir (or at a file, for a device).
	Bind(source, dir string, readOnly bool) error
	// Unmount takes the mount at dir away.
	Unmount(dir string) error
}

// kernel is the real disk. It uses the system calls and not mount(8): a process costs more than the whole mount.
type kernel struct{}

const (
	tmpfsMagic     = unix.TMPFS_MAGIC
	hugetlbfsMagic = unix.HUGETLBFS_MAGIC
)

func (kernel) Mounted(dir string) (bool, medium, error) {
	var stx unix.Statx_t
	// STATX_ATTR_MOUNT_ROOT (Linux 5.8) sees bind mounts from the same filesystem, which a comparison of device
	// numbers does not, and needs no scan of mountinfo.
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS, &stx)
	if errors.Is(err, unix.ENOENT) {
		return false, onDisk, nil
	}
	if err != nil {
		return false, onDisk, &os.PathError{Op: "statx", Path: dir, Err: err}
	}
	if stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, onDisk, nil
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return false, onDisk, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	switch int64(fs.Type) {
	case tmpfsMagic:
		return true, onMemory, nil
	case hugetlbfsMagic:
		return true, onHugePages, nil
	}
	return true, onDisk, nil
}

// noSwapRefused remembers that this kernel's tmpfs does not know noswap (before Linux 6.4).
var noSwapRefused atomic.Bool

func (kernel) Memory(dir string, m medium, options []string) error {
	mount := func(options []string) error {
		return boundary.Do("intree/mount-memory", func() error {
			return unix.Mount(string(m), dir, string(m), 0, strings.Join(options, ","))
		})
	}
	var err error
	if m == onMemory && !noSwapRefused.Load() {
		// Secrets must not reach the swap device.
		if err = mount(append([]string{"noswap"}, options...)); err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("mount %s at %s: %w", m, dir, err)
		}
	}
	if err = mount(options); err != nil {
		return fmt.Errorf("mount %s at %s: %w", m, dir, err)
	}
	if m == onMemory {
		noSwapRefused.Store(true)
	}
	return nil
}

func (kernel) Bind(source, dir string, readOnly bool) error {
	// rbind would carry along what others mount below the source; upstream binds the one filesystem, and so do we.
	return boundary.Do("intree/mount-bind", func() error { return mountpoint.Bind(source, dir, readOnly, nil) })
}

func (kernel) Unmount(dir string) error {
	err := boundary.Do("intree/unmount", func() error {
		return unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	})
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // EINVAL: not a mount point any more
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}
