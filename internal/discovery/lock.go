package discovery

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
)

// locks are the disks that this process serves. Each is a lock file of the host, held as long as the process lives: two
// instances (or agents) on one host never offer the same disk, and who is killed lets go. The file is outside the disk, so
// that nothing keeps it mounted.
type locks struct {
	dir    string
	holder string // who this is, for the other one's message

	mu   sync.Mutex
	held map[string]*os.File
}

func newLocks(dir, holder string) *locks {
	return &locks{dir: dir, holder: holder, held: map[string]*os.File{}}
}

func (l *locks) path(disk string) string {
	name := strings.Map(func(r rune) rune {
		if r == '/' || r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, disk)
	if len(name) > 200 || strings.HasPrefix(name, ".") {
		h := fnv.New64a()
		_, _ = h.Write([]byte(disk))
		name = fmt.Sprintf("%x", h.Sum64())
	}
	return filepath.Join(l.dir, name)
}

// take takes the lock of a disk, or says who has it. It does not wait.
func (l *locks) take(disk string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[disk] != nil {
		return nil
	}
	path := l.path(disk)
	var f *os.File
	err := boundary.Do("discovery/lock-disk", func() (err error) {
		if err = os.MkdirAll(l.dir, 0o700); err != nil {
			return err
		}
		if f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600); err != nil {
			return err
		}
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return err
		}
		if err = stillNamed(f, path); err != nil { // the former holder removed it in between
			return err
		}
		return errors.Join(f.Truncate(0), writeAt(f, l.holder))
	})
	if errors.Is(err, unix.EWOULDBLOCK) {
		b := make([]byte, 512)
		n, _ := f.ReadAt(b, 0)
		return errors.Join(fmt.Errorf("another discovery serves this disk: %s (%s)", b[:n], path), f.Close())
	}
	if err != nil {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
		return fmt.Errorf("lock the disk %s: %w", disk, err)
	}
	l.held[disk] = f
	return nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

func stillNamed(f *os.File, path string) error {
	named, err := os.Lstat(path)
	if err != nil {
		return err
	}
	open, err := f.Stat()
	if err == nil && !os.SameFile(named, open) {
		err = errors.New("the lock file was replaced")
	}
	return err
}

// keep lets go of the disks that are not among these.
func (l *locks) keep(disks map[string]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for disk, f := range l.held {
		if disks[disk] {
			continue
		}
		_ = boundary.Do("discovery/unlock-disk", func() error { return errors.Join(os.Remove(l.path(disk)), f.Close()) })
		delete(l.held, disk)
	}
}
