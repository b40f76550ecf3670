package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/loop"
	"berth.io/berth/internal/host/xfs"
)

// reserve promises n bytes, backing more of the pool first when that is needed. Normally keepHeadroom was there before.
func (p *Pool) reserve(n int64) error {
	p.mu.Lock()
	ok := p.account.reserve(n)
	p.mu.Unlock()
	for !ok {
		if err := p.backMore(n); err != nil {
			return err
		}
		p.mu.Lock()
		ok = p.account.reserve(n)
		p.mu.Unlock()
	}
	p.mu.Lock()
	p.released = max(0, p.released-n)
	p.mu.Unlock()
	p.changedCapacity()
	return nil
}

func (p *Pool) release(n int64) {
	p.mu.Lock()
	p.account.release(n)
	if p.o.GiveBackAfter > 0 {
		p.released += n
	}
	p.mu.Unlock()
	p.changedCapacity()
}

// kick wakes keepHeadroom.
func (p *Pool) kick() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// keepHeadroom backs space ahead of use and gives back what is far beyond it. It acts when a promise was made or taken
// back, and once more when nothing of that kind has happened for a while; it is idle otherwise.
func (p *Pool) keepHeadroom(ctx context.Context) {
	defer close(p.done)
	quiet := time.NewTimer(p.o.GiveBackAfter)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
			quiet.Reset(p.o.GiveBackAfter)
		case <-quiet.C:
			p.mu.Lock()
			p.released = 0
			p.mu.Unlock()
		}
		if p.image == nil {
			continue // a device is backed as a whole
		}
		p.mu.Lock()
		a, released := p.account, p.released
		p.mu.Unlock()
		var err error
		// The two thresholds are far apart, and what was just released may soon be wanted again, so that a volume made and deleted in
		// turn moves nothing.
		switch keep := a.headroom(); {
		case a.free() < keep/2:
			err = p.backMore(keep)
		case a.free() > 3*keep+released:
			err = p.giveBack(keep + keep/2 + released)
		}
		if err != nil && !errors.Is(err, ErrNoSpace) && !errors.Is(err, ErrTooLarge) {
			p.o.Log.Error("change the backing of the pool", slog.Any("error", err))
		}
	}
}

// backMore makes n bytes promisable beside what is promised: ErrTooLarge when the pool's limit is in the way,
// ErrNoSpace when the host's disk is.
func (p *Pool) backMore(n int64) error {
	p.backing.Lock()
	defer p.backing.Unlock()
	p.mu.Lock()
	a := p.account
	p.mu.Unlock()
	if a.free() >= n {
		return nil // somebody else did it meanwhile
	}
	todo, ok := a.planFor(a.reserved + n)
	if !ok || p.image == nil {
		if n > a.usable(max(a.limit, a.backed())) {
			return fmt.Errorf("%w: %d MiB are wanted, the pool holds at most %d MiB", ErrTooLarge, n/mib, a.usable(max(a.limit, a.backed()))/mib)
		}
		return fmt.Errorf("%w: %d MiB are wanted, %d MiB are free of the %d MiB that it may have", ErrNoSpace, n/mib,
			max(0, a.usable(max(a.limit, a.backed()))-a.reserved)/mib, a.usable(max(a.limit, a.backed()))/mib)
	}
	if err := hostHasRoom(p.o.Dir, todo.deflate+max(0, todo.growTo-a.size)); err != nil {
		return err
	}
	if todo.deflate > 0 {
		if err := p.deflate(todo.deflate); err != nil {
			return err
		}
	}
	if todo.growTo > a.size {
		return p.growImage(a.size, todo.growTo)
	}
	return nil
}

// growImage allocates on the host first, then lets the loop device and XFS see it. recoverBacking goes on from anywhere
// in between.
func (p *Pool) growImage(from, to int64) error {
	fd := int(p.image.Fd())
	st, err := p.image.Stat()
	if err != nil {
		return err
	}
	// KEEP_SIZE: the file must not be longer than what is allocated, whenever the process dies.
	err = boundary.Do("pool/allocate-growth", func() error {
		return unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, from, to-from)
	})
	if err != nil {
		// To the file's own size, never below: after a growth whose end reported an error, XFS may have more than the account knows.
		undo := boundary.Do("pool/give-up-growth", func() error { return unix.Ftruncate(fd, st.Size()) })
		return errors.Join(fmt.Errorf("grow the pool from %d to %d MiB: %w", from/mib, to/mib, noSpace(err)), undo)
	}
	err = boundary.Do("pool/extend-image", func() error {
		if err := unix.Ftruncate(fd, to); err != nil {
			return err
		}
		return p.image.Sync()
	})
	if err != nil {
		return fmt.Errorf("extend the pool file: %w", err)
	}
	return p.showGrowth(to)
}

// showGrowth lets the loop device and XFS have the pool file's new size.
func (p *Pool) showGrowth(to int64) error {
	id, err := loop.FileOf(p.image)
	if err != nil {
		return err
	}
	err = boundary.Do("pool/grow-loop-device", func() error {
		dev, ok, err := p.o.Loops.Open(id)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("%w: the pool file is not attached", ErrDamaged)
		}
		defer dev.Close()
		return loop.SetCapacity(dev)
	})
	if err != nil {
		return err
	}
	if err := boundary.Do("pool/grow-filesystem", func() error { return xfs.Grow(p.root, to) }); err != nil {
		return err
	}
	g, err := xfs.GeometryOf(p.root)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.account.grown(g.DataBytes)
	p.mu.Unlock()
	p.changedCapacity()
	return nil
}

// recoverBacking makes true at start what the account will say: the pool file's size has reached XFS, and each block
// that XFS may use has its block on the host's disk (a copied pool file may have holes).
func (p *Pool) recoverBacking() error {
	if p.image == nil {
		return nil
	}
	st, err := p.image.Stat()
	if err != nil {
		return err
	}
	if size := st.Size() / quantum * quantum; size > p.account.size {
		if err := p.showGrowth(size); err != nil {
			return err
		}
	}
	held, err := p.ballastSpans()
	if err != nil {
		return err
	}
	have, err := spansOf(p.image, p.account.size)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		have, err = nil, nil // no map to be had: fallocate finds out by itself
	}
	if err != nil {
		return err
	}
	if have != nil {
		if err := p.punchHeld(held, have); err != nil {
			return err
		}
	}
	for _, hole := range subtract([]span{{0, p.account.size}}, append(have, held...)) {
		err := boundary.Do("pool/fill-hole", func() error {
			return unix.Fallocate(int(p.image.Fd()), unix.FALLOC_FL_KEEP_SIZE, hole.Start, hole.End-hole.Start)
		})
		if err != nil {
			return fmt.Errorf("the pool file has a hole of %d MiB that its volumes may write to, and the host's disk has no room for it: %w", (hole.End-hole.Start)/mib, noSpace(err))
		}
	}
	return nil
}

// punchHeld gives back to the host what the ballast holds and the host still has: a crash came between the two.
func (p *Pool) punchHeld(held, have []span) error {
	for _, s := range subtract(held, subtract(held, have)) {
		err := boundary.Do("pool/punch-held", func() error {
			return unix.Fallocate(int(p.image.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, s.Start, s.End-s.Start)
		})
		if err != nil {
			return fmt.Errorf("give %d MiB back to the host: %w", (s.End-s.Start)/mib, err)
		}
	}
	return nil
}

// spansOf maps where f has blocks, by offset in f.
func spansOf(f *os.File, size int64) ([]span, error) {
	extents, err := xfs.Extents(f, 0, size)
	if err != nil {
		return nil, err
	}
	out := make([]span, 0, len(extents))
	for _, e := range extents {
		out = append(out, span{e.Logical, e.Logical + e.Length})
	}
	return out, nil
}

// Verify reads from the disk, not from the account, whether the promise holds: each block that XFS may use must have its block on
// the host's disk, and the ballast must hold what the account says. For tests and for whoever doubts.
func (p *Pool) Verify() error {
	p.backing.Lock()
	defer p.backing.Unlock()
	p.mu.Lock()
	a := p.account
	p.mu.Unlock()
	if err := a.check(); err != nil || p.image == nil {
		return err
	}
	read := &Pool{o: p.o}
	held, err := read.ballastSpans()
	if err != nil {
		return err
	}
	if read.account.ballast != a.ballast {
		return fmt.Errorf("the ballast holds %d MiB, the account says %d", read.account.ballast/mib, a.ballast/mib)
	}
	have, err := spansOf(p.image, a.size)
	if err != nil {
		return err
	}
	if holes := subtract([]span{{0, a.size}}, append(have, held...)); len(holes) > 0 {
		return fmt.Errorf("XFS may use %d pieces that the host has not allocated, the first at %d MiB", len(holes), holes[0].Start/mib)
	}
	return nil
}
