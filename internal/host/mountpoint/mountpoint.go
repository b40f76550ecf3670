// Package mountpoint mounts, unmounts and recognises mounts by system call: a fork of mount(8) costs milliseconds, and
// parsing /proc/self/mountinfo at each call costs more with each volume of the node.
//
// Recognising needs STATX_ATTR_MOUNT_ROOT (Linux 5.8).
package mountpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Is says whether something is mounted at path, which is not followed when it is a symlink. A path that is not there
// is no mount point. A mount whose filesystem answers only errors still is one, so that it gets unmounted. The filesystem is not
// asked: one whose server is silent would answer never.
func Is(path string) (bool, error) {
	var st unix.Statx_t
	// No field is wanted, only the attribute, which is the kernel's own.
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, 0, &st)
	if err == nil {
		return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
	}
	mounted, known := judge(err)
	if !known {
		return false, fmt.Errorf("look whether %s is a mount point: %w", path, err)
	}
	return mounted, nil
}

// judge tells from an error of statx whether there is a mount. EHOSTDOWN, EHOSTUNREACH, ETIMEDOUT and EAGAIN are those of a network
// filesystem whose server does not answer (cifs says EHOSTDOWN, or EAGAIN while it connects anew).
func judge(err error) (mounted, known bool) {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return false, true
	case errors.Is(err, unix.EIO), errors.Is(err, unix.ESTALE), errors.Is(err, unix.ENOTCONN), errors.Is(err, unix.EUCLEAN),
		errors.Is(err, unix.EHOSTDOWN), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ETIMEDOUT), errors.Is(err, unix.EAGAIN):
		return true, true
	}
	return false, false
}

// ReadOnly says whether the mount at path refuses writes, because it was asked to or because its filesystem gave up.
func ReadOnly(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, fmt.Errorf("statfs %s: %w", path, err)
	}
	return st.Flags&unix.ST_RDONLY != 0, nil
}

// Mount mounts the device source at target. Options are those of mount(8): what the kernel takes as flags becomes
// flags, the rest goes to the filesystem.
//
// boundary: held by the caller.
func Mount(source, target, fsType string, options []string) error {
	flags, data := parse(options)
	if err := unix.Mount(source, target, fsType, flags, data); err != nil {
		return fmt.Errorf("mount %s (%s) at %s with options %q: %w", source, fsType, target, strings.Join(options, ","), err)
	}
	return nil
}

// Bind makes what is at source appear at target. Options that are flags of a mount (ro, noexec, nosuid, nodev,
// noatime, …) apply to this mount alone; others are ignored, since they belong to the filesystem. The mount appears with
// its flags: a process that dies here never leaves a read-only one writable.
//
// boundary: held by the caller.
func Bind(source, target string, readOnly bool, options []string) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("bind %s at %s: %w", source, target, err)
	}
	defer unix.Close(tree)
	flags, _ := parse(options)
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	if attr := attributes(flags & perMount); attr != (unix.MountAttr{}) {
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fmt.Errorf("set mount flags %#x of %s: %w", flags, target, err)
		}
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("bind %s at %s: %w", source, target, err)
	}
	return nil
}

// Unmount takes away the topmost mount at target. Not mounted is success; EBUSY, with the
// processes named, when it is in use.
//
// boundary: held by the caller.
func Unmount(target string) error {
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if errors.Is(err, unix.EBUSY) {
		return busy(target, err)
	}
	return fmt.Errorf("unmount %s: %w", target, err)
}

// Entry is one mount of this mount namespace.
type Entry struct {
	Major, Minor int
	// Root is the path inside the filesystem that is mounted at Path: not "/" for a bind of a part of it.
	Root, Path, FSType, Source string
}

// List reads all mounts, in the order in which they were made. For start and clean-up, not for the path of a volume.
func List() ([]Entry, error) {
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	out := make([]Entry, len(infos))
	for i, m := range infos {
		out[i] = Entry{m.Major, m.Minor, m.Root, m.Mountpoint, m.FSType, m.Source}
	}
	return out, nil
}
