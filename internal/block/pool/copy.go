package pool

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/host/xfs"
)

// copying is a reflink copy of one file being made.
type copying struct{ from, to *os.File }

// newCopying makes the file to, which must not be there.
//
// boundary: held by the caller.
func newCopying(from, to string) (*copying, error) {
	src, err := os.Open(from)
	if err != nil {
		return nil, err
	}
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		src.Close()
		return nil, err
	}
	c := &copying{from: src, to: dst}
	if err := xfs.SetExtentSize(dst, extentBytes); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// manyExtents is how many extents a file can have and still be copied in some 10 ms, 10 µs for each.
const manyExtents = 1000

// shareStep is how long one piece of share should hold back writes.
const shareStep = 4 * time.Millisecond

// A pass over the file that took longer than this is followed by another one, which finds only what was written meanwhile; three
// at most, when writes are faster than that.
const (
	longPass   = 100 * time.Millisecond
	mostPasses = 3
)

// share copies the file piece by piece, with writes going on in between. What they change is not in the copy, but all that they
// left is, and copying again what is copied already takes 2 µs for an extent and not 10.
//
// boundary: held by the caller.
func (c *copying) share() error {
	n, err := xfs.ExtentCount(c.from)
	if err != nil || n < manyExtents {
		return err
	}
	for range mostPasses {
		began := time.Now()
		if err := c.pass(); err != nil || time.Since(began) < longPass {
			return err
		}
	}
	return nil
}

// pass copies the whole file in pieces.
//
// boundary: held by the caller.
func (c *copying) pass() error {
	st, err := c.from.Stat()
	if err != nil {
		return err
	}
	size := st.Size()
	if err := c.to.Truncate(size); err != nil {
		return err
	}
	// Short, or the writes of the volume wait for each piece; not shorter than the kernel needs to begin.
	piece := 4 * mib
	for at := int64(0); at < size; {
		length := min(piece, size-at)
		began := time.Now()
		r := unix.FileCloneRange{Src_fd: int64(c.from.Fd()), Src_offset: uint64(at), Src_length: uint64(length), Dest_offset: uint64(at)}
		if err := unix.IoctlFileCloneRange(int(c.to.Fd()), &r); err != nil {
			return fmt.Errorf("share the blocks of %s with %s: %w", c.from.Name(), c.to.Name(), noSpace(err))
		}
		at += length
		switch took := time.Since(began); {
		case took < shareStep/2:
			piece = min(2*piece, gib)
		case took > 2*shareStep:
			piece = max(piece/2, mib)
		}
	}
	return nil
}

// all makes the copy what the file is at one instant: the kernel holds writes to it back meanwhile.
//
// boundary: held by the caller.
func (c *copying) all() error {
	if err := unix.IoctlFileClone(int(c.to.Fd()), int(c.from.Fd())); err != nil {
		return fmt.Errorf("share the blocks of %s with %s: %w", c.from.Name(), c.to.Name(), noSpace(err))
	}
	return nil
}

func (c *copying) allocated() (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(c.to.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", c.to.Name(), err)
	}
	return st.Blocks * 512, nil
}

func (c *copying) close() {
	c.from.Close()
	c.to.Close()
}
