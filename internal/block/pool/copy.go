package pool

import (
	"fmt"
	"os"

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
