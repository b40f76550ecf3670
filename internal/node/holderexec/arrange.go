package holderexec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// arrange puts the mounts in place, in this process's own mount namespace. All trees are taken, detached, before
// anything is attached, because a cover could hide the source of another; and all mount points are there before the
// first tree is attached, because a cover copies what is mounted below it and would leave the original behind.
func arrange(s *Spec) error {
	mounts := s.Mounts
	p := places{ours: map[string]bool{}}
	if err := mark(s.RunDir); err != nil {
		return err
	}
	for _, m := range mounts {
		if err := p.take(m); err != nil {
			return fmt.Errorf("volume %q: %w", m.Volume, err)
		}
	}
	if err := leaveBehind(s.DataDir, s.RunDir); err != nil {
		return err
	}
	for i, m := range mounts {
		if err := p.prepare(i); err != nil {
			return fmt.Errorf("volume %q at %s: %w", m.Volume, m.Target, err)
		}
	}
	for i, m := range mounts {
		if err := p.attach(i); err != nil {
			return fmt.Errorf("volume %q at %s: %w", m.Volume, m.Target, err)
		}
	}
	return nil
}

// leaveBehind takes away, in this namespace, everything that is mounted below the data directory but for the mark. The
// namespace began as a copy of the host's: it would keep the volumes of all other pods, and the pools, as long as it lives.
// boundary: held by the caller (as cover).
func leaveBehind(dataDir, runDir string) error {
	if dataDir == "" {
		return nil
	}
	real, err := filepath.EvalSymlinks(dataDir)
	if err != nil {
		return err
	}
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(real))
	if err != nil {
		return fmt.Errorf("read the mounts below %s: %w", dataDir, err)
	}
	for _, m := range slices.Backward(infos) {
		if m.Mountpoint == real || m.Source == markOf(runDir) {
			continue
		}
		err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("leave the mount at %s behind: %w", m.Mountpoint, err)
		}
	}
	return nil
}

// places are the mounts, outer before inner.
type places struct {
	list []place
	// ours are directories of a tmpfs: entries can be made in them.
	ours map[string]bool
}

// place is one mount: the detached tree and where it goes.
type place struct {
	tree int
	dir  bool
	path string // with the host's links resolved
}

// take notes one more mount.
func (p *places) take(m Mount) error {
	tree, err := take(m)
	if err != nil {
		return err
	}
	dir, err := isDir(tree)
	if err != nil {
		return err
	}
	path, err := hostPath(m.Target)
	if err != nil {
		return err
	}
	p.list = append(p.list, place{tree, dir, path})
	return nil
}

// around finds the innermost volume that place i is in, and its path there.
func (p *places) around(i int) (outer *place, rest string) {
	for k := range p.list[:i] {
		if r, ok := strings.CutPrefix(p.list[i].path, p.list[k].path+"/"); ok && (outer == nil || len(r) < len(rest)) {
			outer, rest = &p.list[k], r
		}
	}
	return outer, rest
}

// prepare makes the mount point of place i, unless it is inside another volume.
func (p *places) prepare(i int) error {
	at := p.list[i]
	if outer, _ := p.around(i); outer != nil {
		return nil
	}
	if info, err := os.Stat(at.path); err == nil && info.IsDir() == at.dir {
		return nil
	}
	// The deepest directory that is there is covered by a tmpfs that shows the same, except for the entry in the way.
	parent := filepath.Dir(at.path)
	for {
		info, err := os.Stat(parent)
		if err == nil && info.IsDir() {
			break
		}
		if err == nil {
			return fmt.Errorf("%s is a file on this host", parent)
		}
		parent = filepath.Dir(parent)
	}
	rest, err := filepath.Rel(parent, at.path)
	if err != nil {
		return err
	}
	entry, _, _ := strings.Cut(rest, "/")
	_, err = os.Lstat(filepath.Join(parent, entry))
	if !p.ours[parent] || err == nil {
		if err := cover(parent, entry); err != nil {
			return err
		}
		p.ours[parent] = true
	}
	last := at.path
	if !at.dir {
		last = filepath.Dir(at.path)
	}
	if err := os.MkdirAll(last, 0o755); err != nil {
		return err
	}
	for dir := last; dir != parent; dir = filepath.Dir(dir) {
		p.ours[dir] = true
	}
	if at.dir {
		return nil
	}
	return unix.Mknod(at.path, unix.S_IFREG|0o644, 0)
}

// attach attaches place i.
func (p *places) attach(i int) error {
	at := p.list[i]
	if outer, rest := p.around(i); outer != nil {
		return attachInside(at.tree, outer.tree, rest, at.dir)
	}
	return attach(at.tree, unix.AT_FDCWD, at.path)
}

// take clones the mount tree at the volume, or at its subPath, as a detached mount.
func take(m Mount) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH | unix.AT_NO_AUTOMOUNT)
	if !m.Device {
		flags |= unix.AT_RECURSIVE // what is mounted inside the volume belongs to it
	}
	root, err := unix.Open(m.Source, unix.O_PATH|unix.O_CLOEXEC, 0) // a device's path may be a link to it
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: m.Source, Err: err}
	}
	defer unix.Close(root)
	at := root
	if m.SubPath != "" {
		if at, err = openSubPath(root, m.SubPath); err != nil {
			return -1, fmt.Errorf("subPath %q: %w", m.SubPath, err)
		}
		defer unix.Close(at)
	}
	tree, err := unix.OpenTree(at, "", flags)
	if err != nil {
		return -1, fmt.Errorf("clone the mount at %s: %w", m.Source, err)
	}
	if m.ReadOnly {
		how := uint(unix.AT_EMPTY_PATH)
		if m.RecursiveReadOnly {
			how |= unix.AT_RECURSIVE
		}
		if err := unix.MountSetattr(tree, "", how, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return -1, fmt.Errorf("make read-only: %w", err)
		}
	}
	return tree, nil
}

// openSubPath opens path below the volume's root, making directories that are missing, as the kubelet does. Links are
// followed as long as they stay inside (`..data/key`); one that leads out is an error, whoever swaps it in meanwhile.
func openSubPath(root int, path string) (int, error) {
	inside := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(root, path, &inside)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ELOOP):
		return -1, errors.New("a link leads out of the volume")
	case !errors.Is(err, unix.ENOENT):
		return -1, err
	}
	parent, name := filepath.Split(filepath.Clean(path))
	dir := root
	if parent != "" {
		if dir, err = openSubPath(root, filepath.Clean(parent)); err != nil {
			return -1, err
		}
		defer unix.Close(dir)
	}
	if err := makeLike(dir, name); err != nil {
		return -1, err
	}
	fd, err = unix.Openat2(dir, name, &inside)
	if errors.Is(err, unix.ENOENT) {
		return -1, errors.New("a link leads nowhere")
	}
	return fd, err
}

// makeLike makes a directory with the mode and owner of its parent.
func makeLike(parent int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(parent, "", &st, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if err := unix.Mkdirat(parent, name, st.Mode&0o777); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return nil // a dangling link: the caller's second look reports it
		}
		return fmt.Errorf("make %s: %w", name, err)
	}
	return unix.Fchownat(parent, name, -1, int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
}

// hostPath resolves the links of the part of target that exists; the host's own links are trusted.
func hostPath(target string) (string, error) {
	missing := ""
	for at := target; ; at = filepath.Dir(at) {
		real, err := filepath.EvalSymlinks(at)
		if err == nil {
			return filepath.Join(real, missing), nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		missing = filepath.Join(filepath.Base(at), missing)
	}
}

// attachInside attaches tree inside another volume. The mount point is made there when it is missing, as a container
// runtime does; links of that volume are not followed at all.
func attachInside(tree, outer int, rest string, dir bool) error {
	strict := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	at := outer
	elements := strings.Split(rest, "/")
	for i, name := range elements {
		next, err := unix.Openat2(at, name, &strict)
		if errors.Is(err, unix.ENOENT) {
			if i == len(elements)-1 && !dir {
				err = unix.Mknodat(at, name, unix.S_IFREG|0o644, 0)
			} else {
				err = unix.Mkdirat(at, name, 0o755)
			}
			if err == nil {
				next, err = unix.Openat2(at, name, &strict)
			}
		}
		if err != nil {
			return fmt.Errorf("mount point %s inside another volume: %w", rest, err)
		}
		defer unix.Close(next)
		at = next
	}
	return attach(tree, at, "")
}

func isDir(fd int) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, err
	}
	return st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}
