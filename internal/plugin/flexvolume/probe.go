package flexvolume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// identity tells one version of a program from another: a file that is replaced, rewritten or made executable has another one.
type identity struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
	mode         uint32
}

// identify follows links: what would be run counts.
func identify(path string) (identity, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return identity{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return identity{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim, mode: st.Mode}, nil
}

const worldWritable = 0o002

// found is what a look at a driver's directory shows.
type found struct {
	name     string
	path     string
	identity identity
	// dir is the identity of the directory: it changes with the names in it.
	dir identity
	// nothing: there is no such directory, or it is a file that nobody could take for a driver.
	nothing bool
}

// look checks a directory below root without running anything. The error is why it is no driver.
//
// What everybody may write is refused: it is run as root, so whoever can write to it would be root. Upstream runs it.
func look(root, base string) (found, error) {
	dir := filepath.Join(root, base)
	f := found{}
	info, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		f.nothing = true
		return f, err
	}
	if err != nil {
		return f, err
	}
	if !info.IsDir() && !strings.Contains(base, "~") {
		f.nothing = true
		return f, errors.New("it is no directory")
	}
	if f.name, err = driverOfDir(base); err != nil {
		return f, err
	}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return f, errors.New("it is a symbolic link: want a directory")
	case !info.IsDir():
		return f, fmt.Errorf("it is a file: want a directory with the file %s in it", filepath.Base(f.name))
	}
	if f.dir, err = identify(dir); err != nil {
		return f, err
	}
	for _, d := range []string{root, dir} {
		if st, err := os.Stat(d); err != nil {
			return f, err
		} else if st.Mode().Perm()&worldWritable != 0 {
			return f, fmt.Errorf("everybody may write to %s, and what is in it runs as root: chmod o-w %s", d, d)
		}
	}
	f.path = filepath.Join(dir, filepath.Base(f.name))
	st, err := os.Stat(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		if target, linkErr := os.Readlink(f.path); linkErr == nil {
			return f, fmt.Errorf("%s is a link to %s, which is not there", f.path, target)
		}
		return f, fmt.Errorf("the file %s is not there", f.path)
	}
	switch {
	case err != nil:
		return f, err
	case st.IsDir():
		return f, fmt.Errorf("%s is a directory: want an executable file", f.path)
	case !st.Mode().IsRegular():
		return f, fmt.Errorf("%s is no file: want an executable", f.path)
	case st.Mode().Perm()&0o111 == 0:
		return f, fmt.Errorf("%s is not executable: chmod +x %s", f.path, f.path)
	case st.Mode().Perm()&worldWritable != 0:
		return f, fmt.Errorf("everybody may write to %s, and it runs as root: chmod o-w %s", f.path, f.path)
	}
	f.identity, err = identify(f.path)
	return f, err
}

// begin runs init.
func (t *table) begin(ctx context.Context, f found) (*driver, error) {
	d := &driver{name: f.name, path: f.path, identity: f.identity, host: t.host, unsupported: map[callOut]bool{}}
	a, err := d.call(ctx, subject{volume: "-"}, callInit, redactor{})
	switch {
	case errors.Is(err, errNotSupported):
		return nil, errors.New("it answers init with \"Not supported\": init is what every driver must do")
	case err != nil:
		return nil, err
	}
	d.caps = *a.Capabilities
	return d, nil
}

// beingWritten: the program can't be started because somebody still writes it. Its end makes no event that could be waited for.
func beingWritten(err error) bool { return errors.Is(err, syscall.ETXTBSY) }
