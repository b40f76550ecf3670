package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/loop"
	"berth.io/berth/internal/host/mountpoint"
	"berth.io/berth/internal/host/rcu"
	"berth.io/berth/internal/host/xfs"
)

// Options of a pool.
type Options struct {
	// Dir is where pools live: <data directory>/pools, made if missing.
	Dir string
	// Name of the pool: "default" when empty.
	Name string
	// Device is a raw block device to keep the pool on. Empty: a file <Dir>/<Name>.img on the host's filesystem.
	Device string
	// LimitBytes is the largest that the pool file may grow; 0: three quarters of what the host's disk has free.
	LimitBytes int64
	// GiveBackAfter is for how long what was promised and is not any more stays ready for the next promise, before the host's disk has
	// it again: 0 for a minute, negative for no time.
	GiveBackAfter time.Duration
	Loops         *loop.Table
	Log           *slog.Logger
}

// Pool is an open pool. Its methods may be called from many goroutines.
type Pool struct {
	o      Options
	lock   *os.File
	root   *os.File // the mount point, open
	image  *os.File // the pool file; nil on a raw device
	marker marker
	sector uint32

	mu        sync.Mutex // account, released, volumes, snapshots, groups, changed
	account   account
	released  int64 // since keepHeadroom last gave back, and not promised again
	volumes   map[string]Volume
	snapshots map[string]Snapshot
	groups    map[string]Group
	removing  map[string]int64      // volumes that lost their name and not yet their space, and how much that is
	unremoved map[string][]Snapshot // the same of snapshots, and what a group of them has, by directory
	readings  map[string]reading    // by snapshot: those whose disks are open
	damaged   []string              // volume directories that could not be read
	changed   []func()

	backing sync.Mutex // one change of the backing at a time; taken before mu
	// expedite makes freezes short.
	expedite rcu.Switch
	wake     chan struct{}
	stop     context.CancelFunc
	done     chan struct{}
}

// MountPoint and ImagePath of the pool called name under dir (…/pools).
func MountPoint(dir, name string) string { return filepath.Join(dir, name) }

// ImagePath is the pool file of the pool called name.
func ImagePath(dir, name string) string { return filepath.Join(dir, name+".img") }

// Open opens the pool, making it when there is none, mounts it, and finishes or undoes whatever a crash left: a
// half-made pool, a growth that did not reach XFS, half-made and half-deleted volumes, loop devices of deleted volumes.
//
// Errors: ErrInUse when another process has it open; ErrForeign when the device or file holds something that is no
// pool; ErrDamaged when it is truncated or its header is not what was written; ErrNoSpace; loop.ErrNoDevices. In each
// of these cases nothing was changed.
func Open(ctx context.Context, o Options) (*Pool, error) {
	if o.Name == "" {
		o.Name = "default"
	}
	if err := ValidID(o.Name); err != nil {
		return nil, fmt.Errorf("pool name: %w", err)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.GiveBackAfter == 0 {
		o.GiveBackAfter = time.Minute
	}
	if o.Loops == nil {
		t, err := loop.NewTable()
		if err != nil {
			return nil, err
		}
		o.Loops = t
	}
	p := &Pool{o: o, volumes: map[string]Volume{}, snapshots: map[string]Snapshot{}, groups: map[string]Group{}, removing: map[string]int64{}, unremoved: map[string][]Snapshot{}, readings: map[string]reading{}, wake: make(chan struct{}, 1), done: make(chan struct{})}
	if err := p.open(ctx); err != nil {
		p.closeFiles()
		return nil, fmt.Errorf("open pool %s: %w", o.Name, err)
	}
	run, stop := context.WithCancel(context.Background())
	p.stop = stop
	go p.keepHeadroom(run)
	p.kick()
	return p, nil
}

func (p *Pool) open(ctx context.Context) error {
	err := boundary.Do("pool/make-directories", func() error {
		return os.MkdirAll(MountPoint(p.o.Dir, p.o.Name), 0o700)
	})
	if err != nil {
		return err
	}
	// The kernel shows loop devices and mounts by their real paths.
	if p.o.Dir, err = filepath.EvalSymlinks(p.o.Dir); err != nil {
		return err
	}
	if p.lock, err = takeLock(p.o.Dir, p.o.Name); err != nil {
		return err
	}
	if p.o.Device != "" {
		err = p.openDevice(ctx)
	} else {
		err = p.openImage(ctx)
	}
	if err != nil {
		return err
	}
	if p.marker, err = p.readOrWriteMarker(); err != nil {
		return err
	}
	p.expedite.Note = p.path(expeditedLink)
	if err := thawIn(p.path()); err != nil { // first of all: somebody waits for each
		return err
	}
	if err := p.recoverBacking(); err != nil {
		return err
	}
	if err := p.recoverSnapshots(); err != nil {
		return err
	}
	return p.recoverVolumes()
}

// Close gives the pool back to whoever opens it next. It stays mounted: volumes in it may be in use, as a kubelet
// leaves its mounts when it stops. Teardown unmounts.
func (p *Pool) Close() {
	p.stop()
	<-p.done
	p.closeFiles()
}

func (p *Pool) closeFiles() {
	for _, f := range []*os.File{p.root, p.image, p.lock} {
		if f != nil {
			f.Close()
		}
	}
}

// takeLock makes sure that one process has the pool. The kernel lets go of it when the process dies.
func takeLock(dir, name string) (*os.File, error) {
	path := filepath.Join(dir, name+".lock")
	var f *os.File
	err := boundary.Do("pool/lock", func() (err error) {
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: another process has %s locked", ErrInUse, path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// mountOn mounts device as the pool and opens its root. No discard: what XFS frees stays backed, until the ballast takes it.
func (p *Pool) mountOn(device string) error {
	at := MountPoint(p.o.Dir, p.o.Name)
	err := boundary.Do("pool/mount", func() error {
		return mountpoint.Mount(device, at, "xfs", []string{"noatime", "nosuid", "nodev", "noexec"})
	})
	if errors.Is(err, unix.EUCLEAN) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: the kernel refuses to mount it: %w (see the kernel log; xfs_repair -n %s shows what is wrong)", ErrDamaged, err, device)
	}
	if err != nil {
		return err
	}
	if err := p.openRoot(); err != nil {
		if p.root != nil {
			p.root.Close() // it would keep the mount
		}
		return errors.Join(err, boundary.Do("pool/give-up-mount", func() error { return mountpoint.Unmount(at) }))
	}
	return nil
}

// openRoot opens the pool where it is mounted, and holds it: the lock file is one for each data directory, and two of them may
// be told to use one device. Two processes would each trust a memory that the other does not share, and format or delete
// what the other has just handed out.
func (p *Pool) openRoot() (err error) {
	p.root, err = os.OpenFile(MountPoint(p.o.Dir, p.o.Name), os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(p.root.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%w: another process has this pool open, with another data directory; nothing was changed", ErrInUse)
	} else if err != nil {
		return fmt.Errorf("lock %s: %w", p.root.Name(), err)
	}
	g, err := xfs.GeometryOf(p.root)
	if err != nil {
		return err
	}
	p.account.log, p.account.size = g.LogBytes, g.DataBytes
	return nil
}

func (p *Pool) path(elem ...string) string {
	return filepath.Join(append([]string{MountPoint(p.o.Dir, p.o.Name)}, elem...)...)
}

// ID is the pool's own, made with it and never changed.
func (p *Pool) ID() string { return p.marker.ID }

// Name of the pool.
func (p *Pool) Name() string { return p.o.Name }

// SectorBytes is the logical block size that new volumes get.
func (p *Pool) SectorBytes() uint32 { return p.sector }
