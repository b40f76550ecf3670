package block

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/backend/hold"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/filesystem"
	"berth.io/berth/internal/host/loop"
	"berth.io/berth/internal/host/mountpoint"
)

// A copy of a mounted volume is taken while its filesystem is frozen, so that it is a clean one; several volumes are of one
// instant because all are frozen at once. A freeze outlives the process that made it. So a link in the volume's directory
// (pool.FrozenLink) says so before it begins, and whoever starts next thaws.

const (
	// freezePatience is how long a filesystem may take to write out what it has in memory and to come to rest.
	freezePatience = 30 * time.Second
	// frozenLimit is how long writes are held back at most: past it the filesystem is thawed, and the copy has failed.
	frozenLimit = 10 * time.Second
)

// held is a volume that the caller holds.
type held struct {
	v pool.Volume
	h *hold.Hold
}

// quiesced makes the copy while nothing changes the volumes. Several that are in use must all be mounted: ErrCannotFreeze for an
// attached block device, whose writes nothing holds back. The copy of one alone is of one instant all the same, because the
// kernel copies a file in one step (FICLONE); what its user wrote and did not sync may be missing from it.
func (b *Backend) quiesced(ctx context.Context, volumes []held, c pool.Copying) (err error) {
	var all []*freezing
	defer func() {
		for _, f := range all {
			f.root.Close()
		}
	}()
	for _, one := range volumes {
		f, err := b.freezable(one, len(volumes) > 1)
		if err != nil {
			return err
		}
		if f != nil {
			all = append(all, f)
		}
	}
	if err := b.approach(ctx, all, c); err != nil {
		return err
	}
	b.freezes.RLock()
	defer b.freezes.RUnlock()
	if len(all) > 0 && b.stopping.Err() != nil {
		return fmt.Errorf("%w: the driver is stopping", backend.ErrCannotFreeze)
	}
	if len(all) > 0 {
		expedite := b.o.Pool.Expedite()
		if err := expedite.On(); err != nil {
			b.o.Log.Debug("the kernel takes its time to freeze", slog.Any("reason", err))
		}
		defer func() {
			if err := expedite.Off(); err != nil {
				b.o.Log.Warn("leave the kernel's grace periods as they were", slog.Any("error", err))
			}
		}()
	}
	var frozen []*freezing
	began := time.Now()
	rest, copied := began, began
	defer func() {
		for _, f := range frozen {
			err = errors.Join(err, b.thaw(f))
		}
		if len(frozen) > 0 {
			b.pauses.Observe(time.Since(began).Seconds())
			b.o.Log.Debug("volumes were frozen", slog.Int("volumes", len(frozen)), slog.Duration("freeze", rest.Sub(began)),
				slog.Duration("copy", copied.Sub(rest)), slog.Duration("thaw", time.Since(copied)))
		}
	}()
	for _, f := range all {
		f.h.Step("freezing its filesystem")
		frozen = append(frozen, f)
		if err := b.freeze(ctx, f); err != nil {
			return fmt.Errorf("%w: volume %s: %w", backend.ErrCannotFreeze, f.v.ID, err)
		}
	}
	for _, one := range volumes {
		one.h.Step("copying it")
	}
	// A block device alone may be written. Everything else is frozen, or not in use.
	still := len(all) > 0 || len(volumes) > 1
	rest, copied = time.Now(), time.Now()
	if err := c.Copy(still); err != nil {
		return err
	}
	copied = time.Now()
	for _, f := range frozen {
		ours, late := f.state()
		if late {
			return fmt.Errorf("%w: volume %s: the copy took longer than the %s for which its writes may be held back", backend.ErrCannotFreeze, f.v.ID, frozenLimit)
		}
		if ours {
			continue
		}
		// Its user had frozen it before. Unless it is so still, it was written while it was copied.
		err := b.freeze(ctx, f)
		if ours, late := f.state(); err != nil || ours || late {
			return errors.Join(fmt.Errorf("%w: volume %s: its filesystem was frozen by somebody else, who thawed it while it was copied", backend.ErrCannotFreeze, f.v.ID), err)
		}
	}
	return nil
}

// While it becomes less, the filesystem is synced and the copy follows what is written. What is left then is for the freeze.
const (
	mostSyncs = 4
	shortSync = 20 * time.Millisecond
	// littleWritten during a sync, and another one has nothing to do.
	littleWritten = 256 << 10
)

// approach does all that can be done with writes going on.
func (b *Backend) approach(ctx context.Context, all []*freezing, c pool.Copying) error {
	var last time.Duration
	for range mostSyncs {
		for _, f := range all {
			f.h.Step("sharing with the copy what is written meanwhile")
		}
		if err := c.Approach(); err != nil || len(all) == 0 {
			return err
		}
		began, before := time.Now(), writtenTo(all)
		for _, f := range all {
			f.h.Step("syncing its filesystem before freezing it")
			if err := b.sync(ctx, f); err != nil {
				return fmt.Errorf("%w: volume %s: %w", backend.ErrCannotFreeze, f.v.ID, err)
			}
		}
		took := time.Since(began)
		if took < shortSync || last > 0 && took > last/4*3 || writtenTo(all)-before < littleWritten {
			return nil
		}
		last = took
	}
	return nil
}

// writtenTo is how much was ever written to them; what cannot be known does not count.
func writtenTo(all []*freezing) (sum int64) {
	for _, f := range all {
		n, _ := loop.WrittenBytes(f.device)
		sum += n
	}
	return sum
}

// sync can hang as long as the disk does.
func (b *Backend) sync(ctx context.Context, f *freezing) error {
	root, err := dup(f.root) // the kernel may have it longer than the caller
	if err != nil {
		return err
	}
	return within(ctx, freezePatience, func() error {
		defer root.Close()
		return filesystem.Sync(root)
	})
}

// freezing is one filesystem on its way to being frozen, and back.
type freezing struct {
	held
	root   *os.File // where it is mounted
	device string   // it is mounted from

	mu       sync.Mutex
	begun    bool // the kernel has the request, and has not answered
	frozen   bool // by us
	late     bool // the watchdog was first
	thawed   bool // nobody wants it frozen any more
	watchdog *time.Timer
}

// freezable finds what is to be frozen; nil when nothing is attached, so that nobody writes.
func (b *Backend) freezable(one held, several bool) (*freezing, error) {
	dev, attached, err := b.openLoop(one.v.ID)
	if err != nil || !attached {
		return nil, err
	}
	defer dev.Close()
	for _, at := range append([]string{b.stagedAt(one.v.ID)}, b.liveTargets(one.v.ID)...) {
		if is, err := mountpoint.Is(at); at == "" || err != nil || !is {
			continue
		}
		root, err := os.OpenFile(at, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOTDIR) {
			continue // a device node
		}
		if err != nil {
			return nil, fmt.Errorf("%w: volume %s: %w", backend.ErrCannotFreeze, one.v.ID, err)
		}
		if err := b.mustBe(at, dev, one.v.FSType); err != nil {
			root.Close()
			continue
		}
		return &freezing{held: one, root: root, device: dev.Name()}, nil
	}
	if several {
		return nil, fmt.Errorf("%w: volume %s is attached as a block device: nothing can hold back what its user writes, so that no snapshot of it and of others is of one instant; stop its pods, or leave it out of the group", backend.ErrCannotFreeze, one.v.ID)
	}
	if err := dev.Sync(); err != nil { // what went through the device's cache
		return nil, fmt.Errorf("sync the device of volume %s: %w", one.v.ID, err)
	}
	return nil, nil
}

// freeze is noted before it begins. It can hang in the kernel: then it is thawed when it comes back, whoever waits no more.
func (b *Backend) freeze(ctx context.Context, f *freezing) error {
	link := filepath.Join(b.o.Pool.Directory(f.v.ID), pool.FrozenLink)
	err := boundary.Do("backend-block/note-freeze", func() error {
		if err := os.Symlink(f.root.Name(), link); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	root, err := dup(f.root) // the kernel may have it longer than the caller
	if err != nil {
		return err
	}
	f.begun = true
	return within(ctx, freezePatience, func() error {
		defer root.Close()
		err := boundary.Do("backend-block/freeze", func() error { return filesystem.Freeze(root) })
		f.mu.Lock()
		defer f.mu.Unlock()
		f.begun = false
		switch {
		case errors.Is(err, filesystem.ErrFrozen): // by its user, who thaws it: nobody else is to
			return b.forgetFreeze(f.v.ID)
		case err == nil && f.thawed:
			err = boundary.Do("backend-block/thaw-late", func() error { return filesystem.Thaw(root) })
			return errors.Join(err, b.forgetFreeze(f.v.ID))
		case err != nil && f.thawed:
			return errors.Join(err, b.forgetFreeze(f.v.ID))
		case err != nil:
			return err
		}
		f.frozen = true
		f.watchdog = time.AfterFunc(frozenLimit, func() { b.thawOverdue(f) })
		return nil
	})
}

// thawOverdue ends a freeze that its copy does not.
func (b *Backend) thawOverdue(f *freezing) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.frozen {
		return
	}
	f.late, f.frozen = true, false
	err := boundary.Do("backend-block/thaw-overdue", func() error { return filesystem.Thaw(f.root) })
	b.o.Log.Warn("thawed a filesystem whose copy took too long", slog.String("volume", f.v.ID), slog.Any("error", err))
}

// state says whether it is frozen by us, and whether the watchdog thawed it.
func (f *freezing) state() (ours, late bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.frozen, f.late
}

// thaw always thaws what we froze; the note goes when it is done.
func (b *Backend) thaw(f *freezing) error {
	f.h.Step("thawing its filesystem")
	f.mu.Lock()
	f.thawed = true
	begun := f.begun
	if f.watchdog != nil {
		f.watchdog.Stop()
	}
	var err error
	if f.frozen {
		f.frozen = false
		err = boundary.Do("backend-block/thaw", func() error { return filesystem.Thaw(f.root) })
	}
	f.mu.Unlock()
	if err != nil || begun { // whoever waits for the kernel's answer thaws, and forgets
		return err
	}
	return b.forgetFreeze(f.v.ID)
}

func (b *Backend) forgetFreeze(id string) error {
	link := filepath.Join(b.o.Pool.Directory(id), pool.FrozenLink)
	return boundary.Do("backend-block/forget-freeze", func() error {
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// within waits for f for at most so long. f goes on by itself when that was not enough.
func within(ctx context.Context, limit time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done within %s: %w", limit, context.DeadlineExceeded))
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate the descriptor of %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
