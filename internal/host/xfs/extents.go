package xfs

import (
	"fmt"
	"os"
	"unsafe"
)

const (
	iocFiemap         = 0xc020660b
	fiemapSync        = 0x1
	fiemapExtentLast  = 0x1
	fiemapUnknown     = 0x2
	fiemapDelalloc    = 0x4
	extentsPerRequest = 512
)

// Extent is a piece of a file: where it is in the file and where on the device, in bytes.
type Extent struct{ Logical, Physical, Length int64 }

// Extents maps the allocated pieces of f in [offset, offset+length), unwritten ones too, in file order. It works on
// any filesystem that has FIEMAP.
func Extents(f *os.File, offset, length int64) ([]Extent, error) {
	type extent struct {
		Logical, Physical, Length uint64
		_                         [2]uint64
		Flags                     uint32
		_                         [3]uint32
	}
	type request struct {
		Start, Length               uint64
		Flags, Mapped, Count, spare uint32
		Extents                     [extentsPerRequest]extent
	}
	var out []Extent
	end := offset + length
	for offset < end {
		r := request{Start: uint64(offset), Length: uint64(end - offset), Flags: fiemapSync, Count: extentsPerRequest}
		if err := ioctl(f, iocFiemap, unsafe.Pointer(&r)); err != nil {
			return nil, fmt.Errorf("map the extents of %s: %w", f.Name(), err)
		}
		if r.Mapped == 0 {
			break
		}
		for _, e := range r.Extents[:r.Mapped] {
			offset = int64(e.Logical + e.Length)
			if e.Flags&(fiemapUnknown|fiemapDelalloc) != 0 {
				continue
			}
			out = append(out, Extent{int64(e.Logical), int64(e.Physical), int64(e.Length)})
		}
		if last := r.Extents[r.Mapped-1]; last.Flags&fiemapExtentLast != 0 {
			break
		}
	}
	return out, nil
}
