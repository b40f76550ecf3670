package discovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
)

// removeContents empties the directory that is open as root, and leaves itself, its mark and an empty lost+found. It goes from
// open directory to open directory (openat2 with RESOLVE_BENEATH, RESOLVE_NO_XDEV and RESOLVE_NO_SYMLINKS): whoever renames,
// links or mounts meanwhile cannot lead it out.
func removeContents(ctx context.Context, root *os.File, progress func(string)) error {
	r := &remover{ctx: ctx, progress: progress}
	names, err := entriesOf(root)
	if err != nil {
		return err
	}
	for _, name := range names {
		switch {
		case ours(name):
		case name == lostAndFound:
			if err := r.lostAndFound(root); err != nil {
				return err
			}
		default:
			if err := r.remove(root, name); err != nil {
				return err
			}
		}
	}
	return boundary.Do("discovery/sync-emptied", func() error { return unix.Fsync(int(root.Fd())) })
}

type remover struct {
	ctx      context.Context
	progress func(string)
	removed  int
}

// remove takes away the entry name of an open directory, with all that is in it.
func (r *remover) remove(parent *os.File, name string) error {
	if err := r.ctx.Err(); err != nil {
		return fmt.Errorf("emptying it was cut short after %d files: %w", r.removed, err)
	}
	path := parent.Name() + "/" + name
	err := unlink(parent, name, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		r.removed++
		r.progress(fmt.Sprintf("%d files removed", r.removed))
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: something is mounted at %s", errInUse, path)
	case !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM): // EPERM is POSIX's word for a directory
		return &os.PathError{Op: "remove", Path: path, Err: err}
	}
	dir, err := openDirAt(parent, name)
	switch {
	case errors.Is(err, unix.EXDEV):
		return fmt.Errorf("%w: something is mounted at %s", errInUse, path)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return fmt.Errorf("remove %s: %w (is it immutable? lsattr shows it, chattr -i -a lifts it)", path, unix.EPERM)
	case err != nil:
		return err
	}
	if err := r.empty(dir); err != nil {
		return err
	}
	if err := unlink(parent, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "remove", Path: path, Err: err}
	}
	return nil
}

// empty removes what is in the open directory, and closes it.
func (r *remover) empty(dir *os.File) error {
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := r.remove(dir, name); err != nil {
			return err
		}
	}
	return nil
}

func (r *remover) lostAndFound(root *os.File) error {
	dir, err := openDirAt(root, lostAndFound)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return r.remove(root, lostAndFound)
	}
	if err != nil {
		return err
	}
	return r.empty(dir)
}

func unlink(parent *os.File, name string, flags int) error {
	return boundary.Do("discovery/remove", func() error { return unix.Unlinkat(int(parent.Fd()), name, flags) })
}

// restore gives the root the owner and mode that it had when it was first offered, and takes off what a pod has put on it.
func (m mark) restore(root *os.File) error {
	fd := int(root.Fd())
	names := make([]byte, 64<<10)
	n, err := unix.Flistxattr(fd, names)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("list the attributes of %s: %w", root.Name(), err)
	}
	err = boundary.Do("discovery/restore-root", func() error {
		for name := range strings.SplitSeq(string(names[:max(n, 0)]), "\x00") {
			if strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "system.posix_acl_") {
				if err := unix.Fremovexattr(fd, name); err != nil && !errors.Is(err, unix.ENODATA) {
					return fmt.Errorf("attribute %s: %w", name, err)
				}
			}
		}
		return errors.Join(unix.Fchown(fd, int(m.UID), int(m.GID)), unix.Fchmod(fd, m.Mode), unix.Fsync(fd))
	})
	if err != nil {
		return fmt.Errorf("restore the root of %s: %w", root.Name(), err)
	}
	return nil
}
