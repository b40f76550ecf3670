// Package removal takes directory trees off the disk without ever crossing a mount point.
//
// A directory below pods/ can be, or contain, a mount of somebody's data, and a bind mount from the same filesystem has
// the same device number as its surroundings, so comparing st_dev is not enough. Every directory is therefore opened
// relative to its parent by openat2 with RESOLVE_NO_XDEV, which refuses mount points of any kind, and symbolic links
// are removed, never followed.
package removal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
)

// ErrMounted says that something is still mounted at or below the directory; nothing behind the mount was touched.
var ErrMounted = errors.New("still a mount point")

// ErrNotEmpty says that EmptyDirs found a file.
var ErrNotEmpty = errors.New("not empty")

// All removes dir and everything in it, up to mount points: those make it fail with ErrMounted. A dir that does not
// exist is success.
func All(dir string) error { return remove(dir, true) }

// EmptyDirs removes dir and the directories below it as long as they hold nothing but directories; a file makes it
// fail with ErrNotEmpty and stays.
func EmptyDirs(dir string) error { return remove(dir, false) }

func remove(dir string, files bool) error {
	parent, err := unix.Open(filepath.Dir(dir), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Dir(dir), Err: err}
	}
	defer unix.Close(parent)
	return removeAt(parent, filepath.Base(dir), dir, files)
}

// removeAt removes the entry name of the open directory parent; path is for messages only.
func removeAt(parent int, name, path string, files bool) error {
	fd, err := unix.Openat2(parent, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EXDEV):
		return fmt.Errorf("remove %s: %w", path, ErrMounted)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		if !files {
			return fmt.Errorf("remove %s: %w", filepath.Dir(path), ErrNotEmpty)
		}
		return unlinkat(parent, name, path, 0)
	case err != nil:
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	err = removeEntries(fd, path, files)
	if err != nil {
		return err
	}
	return unlinkat(parent, name, path, unix.AT_REMOVEDIR)
}

// removeEntries empties the open directory fd and closes it.
func removeEntries(fd int, path string, files bool) error {
	d := os.NewFile(uintptr(fd), path)
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if err := removeAt(fd, name, filepath.Join(path, name), files); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func unlinkat(parent int, name, path string, flags int) error {
	err := boundary.Do("intree/remove", func() error { return unix.Unlinkat(parent, name, flags) })
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("remove %s: %w", path, ErrMounted)
	}
	return &os.PathError{Op: "remove", Path: path, Err: err}
}
