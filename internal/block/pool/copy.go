package pool

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/host/loop"
	"berth.io/berth/internal/host/xfs"
)

// Copying is a copy of volumes that are written meanwhile, on its way: whoever holds the writes back does so for Copy alone.
type Copying interface {
	// Approach shares what was written since the last time, with writes going on. After it Copy is short.
	Approach() error
	// Copy makes it what the volumes hold at this moment. still says that nobody writes to them until it returns.
	Copy(still bool) error
}

// copying is a reflink copy of one file being made.
//
// To share an extent costs the kernel some 60 µs, and 1 µs when it is shared already; a file that was written at random has 100 000.
// So the file is shared in three steps: as a whole, piece by piece (share); what was written meanwhile, again and again (approach); and
// what was written since then, while nobody writes (all). What was written is known from the loop device. Where the kernel does
// not tell, the last step goes through the whole file.
type copying struct {
	from, to *os.File
	loops    *loop.Table
	log      *slog.Logger
	extents  int
	size     int64
	attached bool // to a loop device, so that somebody may write to it
	// writes to that device since before the last pass; nil when nobody tells.
	writes  *loop.Writes
	changed changed
	missed  bool // there is more that changed, and writes is of no more use
	// passes over the file, and how long the last one took.
	passes int
	took   time.Duration
	// flushed the disk's cache last.
	flushed time.Time
}

// newCopying makes the file to, which must not be there.
//
// boundary: held by the caller.
func (p *Pool) newCopying(from, to string) (*copying, error) {
	src, err := os.Open(from)
	if err != nil {
		return nil, err
	}
	dst, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		src.Close()
		return nil, err
	}
	c := &copying{from: src, to: dst, loops: p.o.Loops, log: p.o.Log}
	if err := xfs.SetExtentSize(dst, extentBytes); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

const (
	// manyExtents is how many extents a file can have and still be copied in some 10 ms.
	manyExtents = 200
	// One piece of share has so many extents, at least and at most.
	fewExtents, mostExtents = 32, 4096
	// shareStep is how long one piece of share or approach should hold back writes.
	shareStep = 4 * time.Millisecond
	// An extent that was written costs so much, and one that is shared already so much, on a machine of 2025.
	writtenCost = 60 * time.Microsecond
	sharedCost  = time.Microsecond
	// pieceCost: each piece waits for the writes under way, and they for it.
	pieceCost = time.Millisecond
)

// share copies the file piece by piece, with writes going on in between. What they change is not in the copy, but all that they
// left is.
//
// boundary: held by the caller.
func (c *copying) share() error {
	n, err := xfs.ExtentCount(c.from)
	if err != nil || n < manyExtents {
		return err
	}
	st, err := c.from.Stat()
	if err != nil {
		return err
	}
	c.extents, c.size = n, st.Size()
	c.watch()
	if err := c.to.Truncate(c.size); err != nil {
		return err
	}
	return c.pass()
}

// pass copies the whole file in pieces.
//
// boundary: held by the caller.
func (c *copying) pass() error {
	c.passes++
	pass := time.Now()
	defer func() { c.took = time.Since(pass) }()
	next := xfs.NewCursor(c.from, 0, c.size)
	count := fewExtents
	if err := c.flush(); err != nil {
		return err
	}
	for at := int64(0); at < c.size; {
		end, err := after(next, count, c.size)
		if err != nil {
			return err
		}
		if end <= at { // several extents in one unit; and for the kernel a length of 0 is all that follows
			continue
		}
		began := time.Now()
		if err := c.clone(at, end); err != nil {
			return err
		}
		at = end
		switch took := time.Since(began); {
		case took < shareStep/2:
			count = min(2*count, mostExtents)
		case took > 2*shareStep:
			count = max(count/2, fewExtents)
		}
		if err := c.flushInTime(); err != nil {
			return err
		}
	}
	return nil
}

// flushEvery so often the disk under the pool is told to write out its cache.
const flushEvery = 200 * time.Millisecond

// flush makes the disk write out its cache. Many disks let other requests wait meanwhile, for as long as there is something to write:
// after seconds of writes some 100 ms. The freeze and what follows it cannot do without flushes, so theirs find little left. Where nobody
// can be writing, nobody waits.
//
// boundary: held by the caller.
func (c *copying) flush() error {
	if !c.attached {
		return nil
	}
	if err := c.to.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", c.to.Name(), noSpace(err))
	}
	c.flushed = time.Now()
	return nil
}

// boundary: held by the caller.
func (c *copying) flushInTime() error {
	if time.Since(c.flushed) < flushEvery {
		return nil
	}
	return c.flush()
}

// after is where the next so many extents end.
func after(next *xfs.Cursor, count int, size int64) (int64, error) {
	for {
		e, ok, err := next.Next()
		if err != nil || !ok {
			return size, err
		}
		if count--; count <= 0 {
			return min(size, (e.Logical+e.Length+changedUnit-1)/changedUnit*changedUnit), nil
		}
	}
}

// watch begins to note what is written.
func (c *copying) watch() {
	file, err := loop.FileOf(c.from)
	if err != nil {
		return
	}
	dev, attached, err := c.loops.Open(file)
	if c.attached = attached; err != nil || !attached {
		return
	}
	defer dev.Close()
	if c.writes, err = loop.WatchWrites(dev); err != nil {
		c.log.Debug("the last step of a copy goes through the whole file", slog.Any("reason", err))
	}
}

// collect takes over what was written. When not all of it is known, the whole is to be gone through again.
func (c *copying) collect() {
	if c.writes == nil || c.missed {
		return
	}
	switch err := c.writes.Since(c.note); {
	case errors.Is(err, loop.ErrWritesMissed):
		c.missed = true
	case err != nil:
		c.unwatch(err)
	}
}

func (c *copying) note(w loop.Written) { c.changed.add(w.Offset, w.Length) }

func (c *copying) unwatch(reason error) {
	c.log.Debug("the last step of a copy goes through the whole file", slog.Any("reason", reason))
	c.writes.Close()
	c.writes = nil
}

const (
	// Approaching ends when it no longer comes nearer, or is near enough.
	mostRounds = 5
	fewChanges = 64
	// Where nobody tells what was written, a pass that took longer than this is followed by another one, which finds less; where
	// something was missed, any pass.
	longPass   = 100 * time.Millisecond
	mostPasses = 4
)

// approach shares what was written since share or the last approach, as often as that makes it less.
//
// boundary: held by the caller.
func (c *copying) approach() error {
	last := 0
	for range mostRounds {
		c.collect()
		if c.missed && c.passes < mostPasses || c.writes == nil && c.attached && c.took > longPass && c.passes < mostPasses {
			if c.missed {
				c.writes.Close()
				c.writes = nil
				c.watch()
			}
			c.missed, c.changed = false, changed{}
			if err := c.pass(); err != nil {
				return err
			}
			continue
		}
		todo := c.changed.take(c.size)
		if c.missed || c.writes == nil || len(todo) == 0 {
			return nil
		}
		for _, piece := range joined(todo, int64(pieceCost/sharedCost)*c.size/int64(c.extents), shareStep, float64(c.extents)/float64(c.size)) {
			if err := c.clone(piece.Start, piece.End); err != nil {
				return err
			}
			if err := c.flushInTime(); err != nil {
				return err
			}
		}
		if n := len(todo); n < fewChanges || last > 0 && n > last/4*3 {
			return nil
		}
		last = len(todo)
	}
	return nil
}

// all makes the copy what the file is at one instant. still: nobody writes to it until this returns. Otherwise it is the kernel
// that holds writes back while it copies the whole.
//
// boundary: held by the caller.
func (c *copying) all(still bool) error {
	if still && c.writes != nil {
		if done, err := c.rest(); done || err != nil {
			return err
		}
	}
	if err := unix.IoctlFileClone(int(c.to.Fd()), int(c.from.Fd())); err != nil {
		return c.failed(err)
	}
	return nil
}

// rest copies what was written since the last approach; false when that is not known.
//
// boundary: held by the caller.
func (c *copying) rest() (bool, error) {
	if err := c.writes.Complete(c.note); err != nil || c.missed {
		return c.distrust(cmp.Or(err, loop.ErrWritesMissed))
	}
	st, err := c.from.Stat()
	if err != nil || st.Size() != c.size {
		return false, err
	}
	for _, s := range c.changed.take(c.size) {
		if err := c.clone(s.Start, s.End); err != nil {
			return false, err
		}
	}
	// Whoever froze the filesystem is believed, and looked at all the same: somebody else may have thawed it, or write to the device.
	if err := c.undisturbed(); err != nil {
		return c.distrust(err)
	}
	return true, nil
}

var errDisturbed = errors.New("it was written while it was copied")

// undisturbed says whether nothing was written since the last look; nil also where nobody tells.
func (c *copying) undisturbed() error {
	if c.writes == nil || c.missed {
		return nil
	}
	written := false
	if err := c.writes.Complete(func(loop.Written) { written = true }); err != nil {
		return err
	}
	if written {
		return errDisturbed
	}
	return nil
}

// distrust leaves the last step to one that needs no word of what was written. The watch ends with the copying: to end it takes time,
// and writers wait.
func (c *copying) distrust(reason error) (bool, error) {
	c.log.Debug("the last step of a copy goes through the whole file", slog.Any("reason", reason))
	c.missed = true
	return false, nil
}

// clone shares one piece. The kernel holds back writes to the file meanwhile.
//
// boundary: held by the caller.
func (c *copying) clone(start, end int64) error {
	r := unix.FileCloneRange{Src_fd: int64(c.from.Fd()), Src_offset: uint64(start), Src_length: uint64(end - start), Dest_offset: uint64(start)}
	if err := unix.IoctlFileCloneRange(int(c.to.Fd()), &r); err != nil {
		return c.failed(err)
	}
	return nil
}

func (c *copying) failed(err error) error {
	return fmt.Errorf("share the blocks of %s with %s: %w", c.from.Name(), c.to.Name(), noSpace(err))
}

func (c *copying) allocated() (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(c.to.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", c.to.Name(), err)
	}
	return st.Blocks * 512, nil
}

func (c *copying) close() {
	if c.writes != nil {
		c.writes.Close()
		c.writes = nil
	}
	c.from.Close()
	c.to.Close()
}
