package filesystem

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/host/command"
	"berth.io/berth/internal/host/xfs"
)

const (
	iocExt4Resize  = 0x40086610 // EXT4_IOC_RESIZE_FS, fs/ext4/ext4.h
	iocBtrfsResize = 0x50009403 // BTRFS_IOC_RESIZE, include/uapi/linux/btrfs.h
)

// ErrNeedsUnmount says that this process may not grow the filesystem while it is mounted.
var ErrNeedsUnmount = errors.New("it can be grown only while it is not mounted")

// Grow makes the filesystem that is mounted at path, from the open device dev, fill its device of deviceBytes. One that
// fills it already is no error. ErrNeedsUnmount: GrowUnmounted can do it.
func Grow(fsType, path string, dev *os.File, deviceBytes int64) error {
	root, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	switch fsType {
	case Ext4:
		err = growExt4(root, dev, deviceBytes)
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

func growExt4(root, dev *os.File, deviceBytes int64) error {
	if !Outgrown(Ext4, dev, deviceBytes) {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(root.Fd()), &st); err != nil {
		return err
	}
	blocks := uint64(deviceBytes / st.Bsize)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, root.Fd(), iocExt4Resize, uintptr(unsafe.Pointer(&blocks)))
	if errno == unix.EPERM {
		// The kernel wants CAP_SYS_RESOURCE for it, which containers often lack.
		return fmt.Errorf("%w (this process lacks CAP_SYS_RESOURCE)", ErrNeedsUnmount)
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// Outgrown says whether dev, of deviceBytes, is larger than the ext4 on it, by its superblock. Of other filesystems it
// says no: they tell by themselves.
func Outgrown(fsType string, dev io.ReaderAt, deviceBytes int64) bool {
	sb := make([]byte, 1024)
	if n, _ := dev.ReadAt(sb, 1024); fsType != Ext4 || n < len(sb) || !has(sb, 56, "\x53\xef") {
		return false
	}
	blockBytes := int64(1024) << min(binary.LittleEndian.Uint32(sb[0x18:]), 6)
	blocks := int64(binary.LittleEndian.Uint32(sb[0x4:]))
	if binary.LittleEndian.Uint32(sb[0x60:])&extIncompat64bit != 0 {
		blocks |= int64(binary.LittleEndian.Uint32(sb[0x150:])) << 32
	}
	return blocks < deviceBytes/blockBytes
}

// MayGrowMounted says whether this process may grow a mounted fsType.
func MayGrowMounted(fsType string) bool {
	if fsType != Ext4 {
		return true
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return true // it will be seen
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// GrowUnmounted makes the ext4 on a device that is not mounted fill it.
func GrowUnmounted(ctx context.Context, device string) error {
	// resize2fs wants a check that is newer than the last mount.
	_, err := command.Run(ctx, makeDeadline, "e2fsck", "-f", "-p", device)
	var e *command.Error
	if err != nil && !(errors.As(err, &e) && e.Exit&^3 == 0) {
		return fmt.Errorf("check %s before growing it: %w", device, err)
	}
	if _, err := command.Run(ctx, makeDeadline, "resize2fs", device); err != nil {
		return fmt.Errorf("grow the ext4 on %s: %w", device, err)
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
