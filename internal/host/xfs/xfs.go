// Package xfs asks the kernel's XFS for what the pool needs, by ioctl: geometry, growth, extent-size hints, the map of
// a file's extents; and it reads a superblock so that a damaged or truncated pool is recognised before it is mounted.
// Numbers are the kernel's (fs/xfs/libxfs/xfs_fs.h, xfs_format.h, include/uapi/linux/fs.h, fiemap.h).
package xfs

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	iocFSGetXAttr  = 0x801c581f
	iocFSSetXAttr  = 0x401c5820
	iocGeometryV1  = 0x80705864
	iocGrowFSData  = 0x4010586e
	flagExtentSize = 0x00000800
	flagCowExtent  = 0x00010000
)

// Geometry of a mounted XFS, in bytes.
type Geometry struct {
	BlockBytes int64
	DataBytes  int64 // the data device's size, log included
	LogBytes   int64 // internal log
	GroupBytes int64 // one allocation group
}

type geometryV1 struct {
	BlockSize, RtExtSize, AGBlocks, AGCount, LogBlocks, SectSize, InodeSize, IMaxPct uint32
	DataBlocks, RtBlocks, RtExtents, LogStart                                        uint64
	UUID                                                                             [16]byte
	SUnit, SWidth                                                                    uint32
	Version                                                                          int32
	Flags, LogSectSize, RtSectSize, DirBlockSize                                     uint32
}

// GeometryOf the XFS that holds f. ENOTTY when it is not XFS.
func GeometryOf(f *os.File) (Geometry, error) {
	var g geometryV1
	if err := ioctl(f, iocGeometryV1, unsafe.Pointer(&g)); err != nil {
		return Geometry{}, fmt.Errorf("read the XFS geometry of %s: %w", f.Name(), err)
	}
	b := int64(g.BlockSize)
	return Geometry{BlockBytes: b, DataBytes: int64(g.DataBlocks) * b, LogBytes: int64(g.LogBlocks) * b, GroupBytes: int64(g.AGBlocks) * b}, nil
}

// Grow makes the XFS that is mounted at root (open) use size bytes of its device. A size that it has already is no
// error.
func Grow(root *os.File, size int64) error {
	var g geometryV1
	if err := ioctl(root, iocGeometryV1, unsafe.Pointer(&g)); err != nil {
		return fmt.Errorf("read the XFS geometry of %s: %w", root.Name(), err)
	}
	blocks := uint64(size) / uint64(g.BlockSize)
	if blocks <= g.DataBlocks {
		return nil
	}
	in := struct {
		NewBlocks uint64
		IMaxPct   uint32
		_         uint32
	}{NewBlocks: blocks, IMaxPct: g.IMaxPct}
	if err := ioctl(root, iocGrowFSData, unsafe.Pointer(&in)); err != nil {
		return fmt.Errorf("grow the XFS at %s to %d bytes: %w", root.Name(), size, err)
	}
	return nil
}

type fsXAttr struct {
	XFlags, ExtentSize, Extents, ProjectID, CowExtentSize uint32
	_                                                     [8]byte
}

// SetExtentSize asks XFS to allocate f in extents of the given bytes, also when a shared extent is written. The file
// must have no extents yet.
func SetExtentSize(f *os.File, bytes uint32) error {
	var x fsXAttr
	if err := ioctl(f, iocFSGetXAttr, unsafe.Pointer(&x)); err != nil {
		return fmt.Errorf("read the extent size of %s: %w", f.Name(), err)
	}
	x.XFlags |= flagExtentSize | flagCowExtent
	x.ExtentSize, x.CowExtentSize = bytes, bytes
	if err := ioctl(f, iocFSSetXAttr, unsafe.Pointer(&x)); err != nil {
		return fmt.Errorf("set the extent size of %s: %w", f.Name(), err)
	}
	return nil
}

// ExtentCount is how many extents f has.
func ExtentCount(f *os.File) (int, error) {
	var x fsXAttr
	if err := ioctl(f, iocFSGetXAttr, unsafe.Pointer(&x)); err != nil {
		return 0, fmt.Errorf("read the number of extents of %s: %w", f.Name(), err)
	}
	return int(x.Extents), nil
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
