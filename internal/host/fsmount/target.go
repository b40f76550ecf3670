package fsmount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
)

// ErrLink says that a path leads through a symbolic link where none may be.
var ErrLink = errors.New("is a symbolic link, which is not followed")

// Target is the directory at which something is or shall be mounted. Its parent is open, reached from the root through
// directories alone; what is at the directory itself is not touched: a server that is gone must not hold up its unmount.
type Target struct {
	parent *os.File
	name   string
	path   string // as /proc/self/mountinfo has it
}

// directoryMode of directories that Make makes: as the kubelet's.
const directoryMode = 0o750

// Open finds the directory below root. Links are followed in root and refused below. The directory or one on its way is
// not there: fs.ErrNotExist.
func Open(root, below string) (*Target, error) { return reach(root, below, false) }

// Make is Open that makes the directories that are missing below root.
func Make(root, below string) (*Target, error) { return reach(root, below, true) }

func reach(root, below string, create bool) (*Target, error) {
	if !filepath.IsLocal(below) || filepath.Clean(below) != below || below == "." {
		return nil, fmt.Errorf("the path %q does not stay below %s", below, root)
	}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	at, path := os.NewFile(uintptr(fd), root), root
	parts := strings.Split(below, "/")
	for _, part := range parts[:len(parts)-1] {
		path = filepath.Join(path, part)
		next, err := step(at, part, path, create)
		at.Close()
		if err != nil {
			return nil, err
		}
		at = next
	}
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", at.Fd()))
	if err != nil {
		at.Close()
		return nil, err
	}
	return &Target{parent: at, name: parts[len(parts)-1], path: filepath.Join(real, parts[len(parts)-1])}, nil
}

// step opens a directory in at.
func step(at *os.File, name, path string, create bool) (*os.File, error) {
	for made := false; ; made = true {
		fd, err := unix.Openat(int(at.Fd()), name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		if !errors.Is(err, unix.ENOENT) || !create || made {
			return nil, notDirectory(at, name, path, err)
		}
		if err := mkdir(at, name, path); err != nil {
			return nil, err
		}
	}
}

func mkdir(at *os.File, name, path string) error {
	return boundary.Do("fsmount/make-directory", func() error {
		if err := unix.Mkdirat(int(at.Fd()), name, directoryMode); err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.PathError{Op: "mkdir", Path: path, Err: err}
		}
		return nil
	})
}

// notDirectory names a link as what it is: the kernel says ENOTDIR.
func notDirectory(at *os.File, name, path string, err error) error {
	var st unix.Stat_t
	if unix.Fstatat(int(at.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return fmt.Errorf("%s %w", path, ErrLink)
	}
	return &os.PathError{Op: "open", Path: path, Err: err}
}

// Path is the directory's, as /proc/self/mountinfo has it.
func (t *Target) Path() string { return t.path }

// Close lets go of the parent.
func (t *Target) Close() error { return t.parent.Close() }

// Mount is one mount, as the kernel tells it.
type Mount struct {
	Source, FSType string
	// Root is the path inside the filesystem that is mounted.
	Root         string
	Path         string
	ReadOnly     bool
	Major, Minor int
}

// Mounted answers the topmost mount at the target, nil for none. It asks the mount table, never the filesystem.
func (t *Target) Mounted() (*Mount, error) {
	all, err := mounts(func(m *Mount) bool { return m.Path == t.path })
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return &all[len(all)-1], nil
}

// MountsOf answers the mounts of a block device, or of a filesystem without one by the number that the mount table gives it.
func MountsOf(major, minor int) ([]Mount, error) {
	return mounts(func(m *Mount) bool { return m.of(major, minor) })
}

// of says whether it is a mount of the device. btrfs has a number of its own, and tells the device as the source.
func (m *Mount) of(major, minor int) bool {
	if m.Major == major && m.Minor == minor {
		return true
	}
	var st unix.Stat_t
	return m.FSType == "btrfs" && unix.Stat(m.Source, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK &&
		int(unix.Major(st.Rdev)) == major && int(unix.Minor(st.Rdev)) == minor
}

func mounts(keep func(*Mount) bool) (kept []Mount, err error) {
	_, err = mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		m := Mount{Source: i.Source, FSType: i.FSType, Root: i.Root, Path: i.Mountpoint, Major: i.Major, Minor: i.Minor}
		if keep(&m) {
			m.ReadOnly = has(i.Options, "ro") || has(i.VFSOptions, "ro")
			kept = append(kept, m)
		}
		return true, false
	})
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	return kept, nil
}

func has(options, option string) bool {
	for o := range strings.SplitSeq(options, ",") {
		if o == option {
			return true
		}
	}
	return false
}

// lock makes the target's directory where create says so, and holds off other processes that mount or unmount at it until the file
// is closed. A directory that is not there: fs.ErrNotExist.
func (t *Target) lock(ctx context.Context, create bool) (*os.File, error) {
	dir, err := step(t.parent, t.name, t.path, create)
	if err != nil {
		return nil, err
	}
	dir.Close()
	fd, err := unix.Openat(int(t.parent.Fd()), t.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, notDirectory(t.parent, t.name, t.path, err)
	}
	f := os.NewFile(uintptr(fd), t.path)
	if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
		return f, nil
	}
	locked := make(chan error, 1)
	go func() {
		for {
			if err := unix.Flock(fd, unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
				locked <- err
				return
			}
		}
	}()
	select {
	case err := <-locked:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", t.path, err)
		}
		return f, nil
	case <-ctx.Done():
		go func() { // the system call cannot be called back; the descriptor lives until it has ended
			<-locked
			f.Close()
		}()
		return nil, fmt.Errorf("another process mounts or unmounts at %s: %w", t.path, ctx.Err())
	}
}

// place mounts at the target what detached answers, an open mount that is nowhere yet. Where a mount is there already,
// same decides whether it is the one that was asked for: its error is the answer.
func (t *Target) place(ctx context.Context, same func(*Mount) error, detached func(context.Context) (*os.File, error)) error {
	if m, err := t.Mounted(); err != nil || m != nil {
		return settle(m, err, same)
	}
	held, err := t.lock(ctx, true)
	if err != nil {
		return err
	}
	defer held.Close()
	if m, err := t.Mounted(); err != nil || m != nil { // while we waited
		return settle(m, err, same)
	}
	tree, err := detached(ctx)
	if err != nil {
		return err
	}
	defer tree.Close()
	err = boundary.Do("fsmount/mount", func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return unix.MoveMount(int(tree.Fd()), "", int(t.parent.Fd()), t.name, unix.MOVE_MOUNT_F_EMPTY_PATH)
	})
	if err != nil {
		return fmt.Errorf("mount at %s: %w", t.path, err)
	}
	m, err := t.Mounted()
	if err == nil && m == nil {
		err = fmt.Errorf("%s is not mounted although the kernel said so", t.path)
	}
	return settle(m, err, same)
}

func settle(m *Mount, err error, same func(*Mount) error) error {
	if err != nil {
		return err
	}
	return same(m)
}

// gone says that a directory is not there.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// MountedBelow answers the directories with a mount whose path has the part in it.
func MountedBelow(part string) ([]string, error) {
	all, err := mounts(func(m *Mount) bool { return strings.Contains(m.Path, part) })
	paths := make([]string, len(all))
	for i, m := range all {
		paths[i] = m.Path
	}
	return paths, err
}
