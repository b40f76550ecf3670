package fsmount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
)

// attributes are those of a share's mount. No device of a server's is a device of ours, and no program of its becomes root
// here: who may name a server may be anybody who may make a pod.
func attributes(readOnly bool) uint64 {
	a := uint64(unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID)
	if readOnly {
		a |= unix.MOUNT_ATTR_RDONLY
	}
	return a
}

// detachedShare lets mount mount a filesystem at a directory of a mount namespace that only its thread (and what that starts) sees,
// and answers the directory subPath of it as an open mount that is nowhere. magic are the filesystem's numbers (statfs).
//
// The namespace is a slave of ours: what is unmounted here goes away there too, so that a server that lets us wait does
// not hold anybody else's device.
func detachedShare(ctx context.Context, dir, subPath string, attr uint64, magic []int64, mount func(dir string) error) (*os.File, error) {
	type result struct {
		tree *os.File
		err  error
	}
	done := make(chan result, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil { // one who mounts for others goes on
				done <- result{nil, fmt.Errorf("a defect while mounting: %v", p)}
			}
		}()
		runtime.LockOSThread() // for good: the thread ends with the goroutine, and the namespace with the thread
		tree, err := inPrivate(dir, subPath, attr, magic, mount)
		done <- result{tree, err}
	}()
	select {
	case r := <-done:
		return r.tree, r.err
	case <-ctx.Done():
	}
	// The mount program is killed, and most often gone at once; its own words are the better error.
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case r := <-done:
		return r.tree, r.err
	case <-timer.C:
		go func() {
			if r := <-done; r.tree != nil {
				r.tree.Close()
			}
		}()
		return nil, fmt.Errorf("the kernel still waits for the server: %w", ctx.Err())
	}
}

func inPrivate(dir, subPath string, attr uint64, magic []int64, mount func(dir string) error) (*os.File, error) {
	err := boundary.Do("fsmount/share", func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("make a mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("make a mount namespace of its own: %w", err)
		}
		return mount(dir)
	})
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the share: %w", err)
	}
	share := os.NewFile(uintptr(fd), dir)
	defer share.Close()
	if err := isOf(share, magic); err != nil {
		return nil, err
	}
	if subPath != "" {
		if share, err = below(share, subPath); err != nil {
			return nil, err
		}
		defer share.Close()
	}
	tree, err := unix.OpenTree(int(share.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, fmt.Errorf("take the share out of its namespace: %w", err)
	}
	f := os.NewFile(uintptr(tree), dir)
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: attr}); err != nil {
		f.Close()
		return nil, fmt.Errorf("set the mount's flags: %w", err)
	}
	return f, nil
}

// isOf makes sure that the mount came about where we look.
func isOf(f *os.File, magic []int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("look at the share: %w", err)
	}
	for _, m := range magic {
		if st.Type == m {
			return nil
		}
	}
	return fmt.Errorf("the mount program succeeded and left a filesystem of type %#x", st.Type)
}

// below opens a directory of the share. A link on the server is the server's word, or that of whoever may write there, about
// paths of this machine: none is followed. What the server itself follows we cannot see.
func below(share *os.File, subPath string) (*os.File, error) {
	fd, err := unix.Openat2(int(share.Fd()), subPath, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("the share has no directory %q: make it first", subPath)
	case errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("%q on the share %w", subPath, ErrLink)
	case errors.Is(err, unix.ENOTDIR):
		return nil, fmt.Errorf("%q on the share is no directory, or a symbolic link, which is not followed", subPath)
	case err != nil:
		return nil, fmt.Errorf("open %q on the share: %w", subPath, err)
	}
	return os.NewFile(uintptr(fd), subPath), nil
}
