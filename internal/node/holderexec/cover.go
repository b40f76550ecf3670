package holderexec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// cover lays a tmpfs over dir that shows the same entries as bind mounts and links, without the entry called except.
// The mounts stand in this process's namespace alone and end with it. boundary: held by the caller, which has none to
// hold, because nothing outlives the process.
func cover(dir, except string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	entries, err := takeEntries(dir, except)
	if err != nil {
		return err
	}
	base := dir
	if dir == "/" {
		// Nothing can be mounted over the root of the namespace in a way that paths see: a new root is built at some
		// directory (its tree is taken already) and then pivoted to.
		if base = firstDirectory(entries); base == "" {
			return errors.New("the root directory has no directory to build on")
		}
	}
	options := fmt.Sprintf("mode=%o,uid=%d,gid=%d", st.Mode&0o7777, st.Uid, st.Gid)
	if err := unix.Mount("tmpfs", base, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("cover %s: %w", dir, err)
	}
	for _, e := range entries {
		if err := e.show(base); err != nil {
			return fmt.Errorf("cover %s: %s: %w", dir, e.name, err)
		}
	}
	if dir == "/" {
		return pivot(base)
	}
	return nil
}

// shown is one entry of a covered directory.
type shown struct {
	name string
	link string // target of a symbolic link
	tree int    // else: the detached mount
	dir  bool
}

// takeEntries clones what is in dir. An entry that disappears meanwhile is left out.
func takeEntries(dir, except string) ([]shown, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var entries []shown
	for _, e := range list {
		if e.Name() == except {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if e.Type()&os.ModeSymlink != 0 {
			if link, err := os.Readlink(path); err == nil {
				entries = append(entries, shown{name: e.Name(), link: link})
			}
			continue
		}
		tree, err := unix.OpenTree(unix.AT_FDCWD, path,
			unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("clone %s: %w", path, err)
		}
		entries = append(entries, shown{name: e.Name(), tree: tree, dir: e.IsDir()})
	}
	return entries, nil
}

func (e shown) show(base string) error {
	path := filepath.Join(base, e.name)
	if e.link != "" {
		return os.Symlink(e.link, path)
	}
	defer unix.Close(e.tree)
	var err error
	if e.dir {
		err = os.Mkdir(path, 0o755)
	} else {
		err = unix.Mknod(path, unix.S_IFREG|0o644, 0)
	}
	if err != nil {
		return err
	}
	return attach(e.tree, unix.AT_FDCWD, path)
}

func firstDirectory(entries []shown) string {
	for _, e := range entries {
		if e.dir {
			return "/" + e.name
		}
	}
	return ""
}

// pivot makes the tree at dir the root. boundary: held by the caller (as cover).
func pivot(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	// Stacking the old root on the new one and detaching it needs no directory for the old one (runc's way).
	if err := unix.PivotRoot(".", "."); err != nil {
		// An initramfs cannot be pivoted from.
		if move := unix.Mount(".", "/", "", unix.MS_MOVE, ""); move != nil {
			return fmt.Errorf("new root: %w", errors.Join(err, move))
		}
		return errors.Join(unix.Chroot("."), unix.Chdir("/"))
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the old root: %w", err)
	}
	return unix.Chdir("/")
}

// attach attaches a detached tree. boundary: held by the caller (as cover).
func attach(tree, dirfd int, path string) error {
	flags := unix.MOVE_MOUNT_F_EMPTY_PATH
	if path == "" {
		flags |= unix.MOVE_MOUNT_T_EMPTY_PATH
	}
	if err := unix.MoveMount(tree, "", dirfd, path, flags); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	return nil
}
