package filesystem

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/host/xfs"
)

const (
	iocExt4Resize  = 0x40086610 // EXT4_IOC_RESIZE_FS, fs/ext4/ext4.h
	iocBtrfsResize = 0x50009403 // BTRFS_IOC_RESIZE, include/uapi/linux/btrfs.h
)

// Grow makes the mounted filesystem at path fill its device of deviceBytes. One that fills it already is no error.
func Grow(fsType, path string, deviceBytes int64) error {
	root, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	switch fsType {
	case Ext4:
		err = growExt4(root, deviceBytes)
	case XFS:
		err = xfs.Grow(root, deviceBytes)
	case Btrfs:
		err = growBtrfs(root)
	default:
		_, err = MinimumBytes(fsType)
	}
	if err != nil {
		return fmt.Errorf("grow the %s at %s to %d bytes: %w", fsType, path, deviceBytes, err)
	}
	return nil
}

func growExt4(root *os.File, deviceBytes int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(root.Fd()), &st); err != nil {
		return err
	}
	blocks := uint64(deviceBytes / st.Bsize)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, root.Fd(), iocExt4Resize, uintptr(unsafe.Pointer(&blocks)))
	if errno != 0 {
		return errno
	}
	return nil
}

func growBtrfs(root *os.File) error {
	args := struct {
		fd   int64
		name [4088]byte
	}{}
	copy(args.name[:], "1:max")
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, root.Fd(), iocBtrfsResize, uintptr(unsafe.Pointer(&args)))
	if errno != 0 {
		return errno
	}
	return nil
}

// MinimumGrownBytes is the smallest size that fsType can be grown to: btrfs refuses to be resized to less than 256 MiB.
func MinimumGrownBytes(fsType string) int64 {
	if fsType == Btrfs {
		return 256 * mib
	}
	return 0
}
