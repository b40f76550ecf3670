// Package fsgroup gives a volume's files to a pod's fsGroup (upstream pkg/volume/volume_linux.go, SetVolumeOwnership).
//
// Unlike upstream it walks by file descriptor: each name is opened below its open parent and never through a link, and owner
// and mode are changed on what was opened. Another pod of the same volume that swaps a directory for a link while we walk
// cannot turn root's chown to a file outside of it.
package fsgroup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// Access is how the pod uses the volume; it chooses the bits that the group gets.
type Access bool

const (
	ReadWrite Access = false
	ReadOnly  Access = true
)

// depthLimit is that of a path: PATH_MAX of "a/a/…". Each level holds one descriptor.
const depthLimit = 2048

// batch is how many names of a directory are read at once.
const batch = 1024

// bits that the group gets.
func (a Access) bits(dir bool) uint32 {
	bits := uint32(0o660)
	if a == ReadOnly {
		bits = 0o440
	}
	if dir {
		bits |= 0o110 | unix.S_ISGID
	}
	return bits
}

// Policy is the pod's fsGroupChangePolicy.
func Policy(pod *v1.Pod) v1.PodFSGroupChangePolicy {
	if c := pod.Spec.SecurityContext; c != nil && c.FSGroupChangePolicy != nil {
		return *c.FSGroupChangePolicy
	}
	return v1.FSGroupChangeAlways
}

// Due says whether the volume at dir needs a walk: with OnRootMismatch only when its root directory does not belong to the
// group as it should.
func Due(dir string, group int64, policy v1.PodFSGroupChangePolicy, a Access) bool {
	return policy != v1.FSGroupChangeOnRootMismatch || !Matches(dir, group, a)
}

// Matches says whether dir itself belongs to the group and has all bits.
func Matches(dir string, group int64, a Access) bool {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return false
	}
	want := a.bits(true)
	return int64(st.Gid) == group && st.Mode&want == want
}

// Apply gives everything below dir to the group, readable (and writable) by it, new files included (setgid). The root comes
// last, so that with OnRootMismatch a walk that was cut short starts again. As upstream, a file that can't be changed (it is
// immutable, or its filesystem has no owners) does not stop the rest.
// boundary: held by the caller.
func Apply(ctx context.Context, dir string, group int64, a Access) error {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	w := walk{ctx: ctx, group: int(group), access: a}
	return w.directory(root, dir, 0)
}

type walk struct {
	ctx    context.Context
	group  int
	access Access
}

// directory changes what is in the open directory, then itself, and closes it. path is for messages only.
// boundary: held by the caller.
func (w walk) directory(fd int, path string, depth int) error {
	d := os.NewFile(uintptr(fd), path)
	defer d.Close()
	if depth > depthLimit {
		return fmt.Errorf("fsGroup %d: %s: directories are nested deeper than %d", w.group, path, depthLimit)
	}
	for {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		names, err := d.Readdirnames(batch)
		for _, name := range names {
			if err := w.entry(fd, name, filepath.Join(path, name), depth); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("fsGroup %d: %w", w.group, err)
		}
	}
	w.change(fd)
	return nil
}

// entry changes one name in the open directory parent.
// boundary: held by the caller.
func (w walk) entry(parent int, name, path string, depth int) error {
	// Opened as a directory first: of anything else this has no effect, also of a FIFO or a device.
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == nil {
		return w.directory(fd, path, depth+1)
	}
	if errors.Is(err, unix.ENOENT) {
		return nil // removed by another user of the volume while we walk
	}
	if !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
		return fmt.Errorf("fsGroup %d: %w", w.group, &os.PathError{Op: "open", Path: path, Err: err})
	}
	fd, err = unix.Openat(parent, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("fsGroup %d: %w", w.group, &os.PathError{Op: "open", Path: path, Err: err})
	}
	defer unix.Close(fd)
	w.change(fd)
	return nil
}

// change gives what is open to the group. boundary: held by the caller.
func (w walk) change(fd int) {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return
	}
	if int(st.Gid) != w.group {
		_ = unix.Fchownat(fd, "", -1, w.group, unix.AT_EMPTY_PATH)
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFLNK {
		return // its mode says nothing
	}
	// chown clears setuid and setgid of executables: the mode is set in any case. A descriptor that only names the file has no
	// fchmod before Linux 6.6; its name in /proc leads to exactly what is open.
	_ = unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), st.Mode&0o7777|w.access.bits(kind == unix.S_IFDIR))
}
