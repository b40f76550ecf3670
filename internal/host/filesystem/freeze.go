package filesystem

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	iocFreeze = 0xc0045877 // FIFREEZE, include/uapi/linux/fs.h
	iocThaw   = 0xc0045878 // FITHAW
)

// ErrFrozen: somebody else has it frozen.
var ErrFrozen = errors.New("the filesystem is frozen already")

// Freeze writes out what the filesystem of root has in memory and holds every further write back until Thaw. The process may
// end meanwhile: it stays frozen. It waits for writes under way and for the disk; Sync before it makes it short.
//
// boundary: held by the caller.
func Freeze(root *os.File) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, root.Fd(), iocFreeze, 0)
	switch errno {
	case 0:
		return nil
	case unix.EBUSY:
		return fmt.Errorf("freeze %s: %w", root.Name(), ErrFrozen)
	}
	return fmt.Errorf("freeze %s: %w", root.Name(), errno)
}

// Thaw lets writes go on. Not frozen is success.
//
// boundary: held by the caller.
func Thaw(root *os.File) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, root.Fd(), iocThaw, 0)
	if errno != 0 && errno != unix.EINVAL {
		return fmt.Errorf("thaw %s: %w", root.Name(), errno)
	}
	return nil
}

// Sync writes out what the filesystem of root has in memory.
func Sync(root *os.File) error {
	if err := unix.Syncfs(int(root.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", root.Name(), err)
	}
	return nil
}
