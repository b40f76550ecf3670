package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/xfs"
)

// The ballast is a file in the pool that occupies free blocks of XFS which the host has not allocated. Nobody reads or
// writes it. The loop device begins at offset 0 of the pool file, so where a piece of the ballast is on XFS's device is also
// where its hole is in the pool file.

func (p *Pool) openBallast() (f *os.File, err error) {
	err = boundary.Do("pool/open-ballast", func() error {
		f, err = os.OpenFile(p.path(ballastName), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
		return err
	})
	return f, err
}

// ballastSpans reads, at start, which parts of the pool file the ballast holds, and notes how much that is.
func (p *Pool) ballastSpans() ([]span, error) {
	f, err := os.Open(p.path(ballastName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	extents, err := xfs.Extents(f, 0, st.Size())
	if err != nil {
		return nil, err
	}
	var held []span
	var sum int64
	for _, e := range extents {
		held = append(held, span{e.Physical, e.Physical + e.Length})
		sum += e.Length
	}
	p.account.ballast = sum
	return held, nil
}

// giveBack lets the host have what is free beyond keep.
func (p *Pool) giveBack(keep int64) error {
	p.backing.Lock()
	defer p.backing.Unlock()
	p.mu.Lock()
	n := p.account.takeBack(p.account.backed(), keep)
	p.mu.Unlock()
	if n == 0 {
		return nil
	}
	err := p.inflate(n)
	p.changedCapacity()
	return err
}

// inflate takes n bytes from XFS, then from the pool file. The account has them off already. A crash between the two leaves
// blocks that nobody uses and that are backed: the next growth finds them so.
func (p *Pool) inflate(n int64) error {
	f, err := p.openBallast()
	if err != nil {
		p.inflationFailed(n)
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		p.inflationFailed(n)
		return err
	}
	size := st.Size()
	err = boundary.Do("pool/inflate-ballast", func() error {
		if err := unix.Fallocate(int(f.Fd()), 0, size, n); err != nil {
			return err
		}
		return f.Sync()
	})
	if err != nil {
		undo := boundary.Do("pool/give-up-inflating", func() error { return f.Truncate(size) })
		p.inflationFailed(n)
		return errors.Join(fmt.Errorf("take %d MiB from the pool: %w", n/mib, err), undo)
	}
	extents, err := xfs.Extents(f, size, n)
	if err != nil {
		return err
	}
	return boundary.Do("pool/punch-image", func() error {
		for _, e := range extents {
			if err := unix.Fallocate(int(p.image.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, e.Physical, e.Length); err != nil {
				return fmt.Errorf("give %d MiB back to the host: %w", e.Length/mib, err)
			}
		}
		return nil
	})
}

func (p *Pool) inflationFailed(n int64) {
	p.mu.Lock()
	p.account.deflated(n)
	p.mu.Unlock()
}

// deflate gives n bytes of the ballast back to XFS: the host's blocks first, on disk, then XFS's.
func (p *Pool) deflate(n int64) error {
	f, err := p.openBallast()
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	to := max(0, st.Size()-n)
	extents, err := xfs.Extents(f, to, st.Size()-to)
	if err != nil {
		return err
	}
	err = boundary.Do("pool/back-ballast", func() error {
		for _, e := range extents {
			if err := unix.Fallocate(int(p.image.Fd()), unix.FALLOC_FL_KEEP_SIZE, e.Physical, e.Length); err != nil {
				return err
			}
		}
		return p.image.Sync()
	})
	if err != nil {
		// What was allocated before the disk was full belongs to the ballast still: let the host have it again.
		undo := boundary.Do("pool/give-up-backing", func() error {
			for _, e := range extents {
				if err := unix.Fallocate(int(p.image.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, e.Physical, e.Length); err != nil {
					return err
				}
			}
			return nil
		})
		return errors.Join(fmt.Errorf("back %d MiB of the pool again: %w", n/mib, noSpace(err)), undo)
	}
	err = boundary.Do("pool/deflate-ballast", func() error {
		if err := f.Truncate(to); err != nil {
			return err
		}
		return f.Sync()
	})
	if err != nil {
		return err
	}
	var freed int64
	for _, e := range extents {
		freed += e.Length
	}
	p.mu.Lock()
	p.account.deflated(freed)
	p.mu.Unlock()
	p.changedCapacity()
	return nil
}
