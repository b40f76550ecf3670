package xfs

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	iocFDToHandle   = 0xc038586a // XFS_IOC_FD_TO_HANDLE
	iocOpenByHandle = 0xc038586b // XFS_IOC_OPEN_BY_HANDLE
	// handleBytes is struct xfs_handle: the filesystem's id, and length, generation and inode of the file.
	handleBytes = 24
)

// handleRequest is struct xfs_fsop_handlereq.
type handleRequest struct {
	fd        uint32
	path      unsafe.Pointer
	oflags    uint32
	in        unsafe.Pointer
	inBytes   uint32
	out       unsafe.Pointer
	outLength unsafe.Pointer // *uint32
}

// OpenUntimed opens f's file a second time, for reading and writing, so that what goes through the new descriptor leaves the file's times as
// they are. XFS keeps that for programs that move a file's data (FMODE_NOCMTIME; xfsctl(3), XFS_IOC_OPEN_BY_HANDLE). A write into
// blocks that are there already then changes no metadata, so an fsync after it is a flush of the disk and no write of the log.
//
// It needs CAP_SYS_ADMIN (EPERM) and an XFS (ENOTTY). f's name must be its path.
func OpenUntimed(f *os.File) (*os.File, error) {
	dir, err := os.Open(filepath.Dir(f.Name())) // handles are opened through a directory
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var handle [handleBytes]byte
	length := uint32(len(handle))
	var pinned runtime.Pinner
	defer pinned.Unpin()
	pinned.Pin(&handle)
	pinned.Pin(&length)
	r := handleRequest{fd: uint32(f.Fd()), out: unsafe.Pointer(&handle), outLength: unsafe.Pointer(&length)}
	if err := ioctl(dir, iocFDToHandle, unsafe.Pointer(&r)); err != nil {
		return nil, fmt.Errorf("handle of %s: %w", f.Name(), err)
	}
	r = handleRequest{oflags: unix.O_RDWR, in: unsafe.Pointer(&handle), inBytes: length}
	syscall.ForkLock.RLock() // the kernel has no close-on-exec here
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), iocOpenByHandle, uintptr(unsafe.Pointer(&r)))
	if errno == 0 {
		unix.CloseOnExec(int(fd))
	}
	syscall.ForkLock.RUnlock()
	if errno != 0 {
		return nil, fmt.Errorf("open %s by its handle: %w", f.Name(), errno)
	}
	return os.NewFile(fd, f.Name()), nil
}
