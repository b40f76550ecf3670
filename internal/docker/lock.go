package docker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// nameLock says who serves a plugin's name: a file beside the socket, locked with flock. The lock goes with the process, however
// it ends; the file stays after a death, and the next process locks it.
//
// Not the socket itself: between finding one that a killed process left and making a new one, two processes could each
// remove the other's. Not an address in the kernel's abstract namespace: anybody on the host could take that first.
type nameLock struct{ f *os.File }

// takeLock locks the name of the socket's plugin; ErrInUse when another process has it.
func takeLock(socket string) (nameLock, error) {
	path := filepath.Join(filepath.Dir(socket), "."+filepath.Base(socket)+".lock")
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
		if err != nil {
			return nameLock{}, err
		}
		held, err := lockFile(f, path)
		switch {
		case errors.Is(err, unix.EWOULDBLOCK):
			f.Close()
			return nameLock{}, fmt.Errorf("%s is %w", socket, ErrInUse)
		case err != nil:
			f.Close()
			return nameLock{}, err
		case held:
			return nameLock{f}, nil
		}
		f.Close() // its holder has just removed it
	}
}

// lockFile locks f, and says whether it is still the file at path. A file that somebody else made is refused: its maker can
// lock it, too.
func lockFile(f *os.File, path string) (held bool, err error) {
	var made unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &made); err != nil {
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	if made.Mode&unix.S_IFMT != unix.S_IFREG || int(made.Uid) != os.Geteuid() || made.Mode&0o077 != 0 {
		return false, fmt.Errorf("%s is not a lock that only this user can open; remove it, and keep others from writing to its directory", path)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return false, fmt.Errorf("lock %s: %w", path, err)
	}
	var there unix.Stat_t
	switch err := unix.Lstat(path, &there); {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	return there.Ino == made.Ino && there.Dev == made.Dev, nil
}

// Close removes the file while it is locked, so that nobody who waits for the name gets a lock that is of no file.
func (l nameLock) Close() error {
	return errors.Join(os.Remove(l.f.Name()), l.f.Close())
}
