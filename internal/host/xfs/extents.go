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
	fiemapUnwritten   = 0x800
	extentsPerRequest = 512
)

// Extent is a piece of a file: where it is in the file and where on the device, in bytes.
type Extent struct {
	Logical, Physical, Length int64
	// Unwritten: allocated, and reads as zeros.
	Unwritten bool
}

// Extents maps the allocated pieces of f in [offset, offset+length), unwritten ones too, in file order. It works on
// any filesystem that has FIEMAP.
func Extents(f *os.File, offset, length int64) ([]Extent, error) {
	var out []Extent
	c := NewCursor(f, offset, offset+length)
	for {
		e, ok, err := c.Next()
		if err != nil || !ok {
			return out, err
		}
		out = append(out, e)
	}
}

// Cursor goes through the extents of a file, asking the kernel for a batch at a time, so that the first is there at once however
// many there are.
type Cursor struct {
	f       *os.File
	at, end int64
	batch   []Extent
}

// NewCursor goes through the extents of f that have a byte in [from, to), in file order.
func NewCursor(f *os.File, from, to int64) *Cursor { return &Cursor{f: f, at: from, end: to} }

// Next returns the next extent; false at the end.
func (c *Cursor) Next() (Extent, bool, error) {
	for len(c.batch) == 0 {
		if c.at >= c.end {
			return Extent{}, false, nil
		}
		if err := c.fill(); err != nil {
			return Extent{}, false, fmt.Errorf("map the extents of %s: %w", c.f.Name(), err)
		}
	}
	e := c.batch[0]
	c.batch = c.batch[1:]
	return e, true, nil
}

func (c *Cursor) fill() error {
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
	r := request{Start: uint64(c.at), Length: uint64(c.end - c.at), Flags: fiemapSync, Count: extentsPerRequest}
	if err := ioctl(c.f, iocFiemap, unsafe.Pointer(&r)); err != nil {
		return err
	}
	if r.Mapped == 0 {
		c.at = c.end
		return nil
	}
	for _, e := range r.Extents[:r.Mapped] {
		c.at = int64(e.Logical + e.Length)
		if e.Flags&(fiemapUnknown|fiemapDelalloc) == 0 {
			c.batch = append(c.batch, Extent{int64(e.Logical), int64(e.Physical), int64(e.Length), e.Flags&fiemapUnwritten != 0})
		}
	}
	if last := r.Extents[r.Mapped-1]; last.Flags&fiemapExtentLast != 0 {
		c.at = c.end
	}
	return nil
}
