package try

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/loop"
	"berth.io/berth/internal/plugin/intree/removal"
)

// workPrefix begins the names of the directories of runs.
const workPrefix = "berth-try-"

// maxWork keeps the instance's sockets below it short enough (standalone.maxDirLength, less "/d").
const maxWork = 56

// workBase is where the directories of runs are: TMPDIR, where that is short enough.
func workBase() (string, error) {
	base, err := filepath.EvalSymlinks(os.TempDir())
	if len(base) > maxWork-len(workPrefix)-12 {
		base = "/tmp"
	}
	return base, err
}

// makeTries: another run that begins at the same moment may take the new directory for one that a killed run left, until it is held.
const makeTries = 100

// makeWork makes the directory of a run and holds it by a lock, which the caller keeps open.
func makeWork() (dir string, lock *os.File, err error) {
	base, err := workBase()
	if err != nil {
		return "", nil, err
	}
	for range makeTries {
		dir, lock, err = tryWork(base)
		if err == nil || !errors.Is(err, errBusy) && !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return dir, lock, err
}

func tryWork(base string) (dir string, lock *os.File, err error) {
	err = boundary.Do("try/make-work", func() error {
		dir, err = os.MkdirTemp(base, workPrefix)
		return err
	})
	if err != nil {
		return "", nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil { // a driver may serve pods under other users
		return "", nil, err
	}
	lock, err = hold(dir)
	return dir, lock, err
}

// hold locks a run's directory; errBusy when its run still lives.
func hold(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, errBusy
	}
	locked, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if there, err := os.Lstat(f.Name()); err != nil || !os.SameFile(locked, there) {
		f.Close()
		return nil, errBusy // taken away, before the lock was free
	}
	return f, nil
}

var errBusy = errors.New("its run still lives")

// kept marks a directory that --keep left: its owner removes it.
const kept = "kept"

// former is what killed runs left in drivers that live on: a file's line for each, of ledger.go.
type former map[string][]formerEntry // by driver

type formerEntry struct{ Kind, ID string }

// sweepFormer takes away what killed runs of this user left here, and returns what they left in drivers.
func sweepFormer(skip string, say func(string)) former {
	base, err := workBase()
	if err != nil {
		return nil
	}
	left := former{}
	found, _ := filepath.Glob(filepath.Join(base, workPrefix+"*"))
	for _, dir := range found {
		if dir == skip || !ours(dir) {
			continue
		}
		if _, err := os.Lstat(filepath.Join(dir, kept)); err == nil {
			continue
		}
		lock, err := hold(dir)
		if err != nil {
			continue
		}
		driver, entries := readLedger(filepath.Join(dir, "ledger"))
		if err := sweep(dir); err != nil {
			say(fmt.Sprintf("what a killed run left in %s could not be taken away: %v", dir, err))
		} else {
			say(fmt.Sprintf("took away what a killed run left in %s", dir))
		}
		lock.Close()
		if driver == "" {
			continue
		}
		for _, e := range entries {
			left[driver] = append(left[driver], formerEntry{e.kind, e.id})
			say(fmt.Sprintf("its %s %q is still in driver %s; trying that driver again deletes it", e.kind, e.id, driver))
		}
	}
	return left
}

// ours: the directory is one that this user made, not a link that somebody put there.
func ours(dir string) bool {
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// sweep takes away everything of a run whose processes have ended: mounts, loop devices on files in it, the directory.
func sweep(dir string) error {
	errs := []error{unmountBelow(dir), detachLoops(dir)}
	err := boundary.Do("try/remove-work", func() error { return removal.All(dir) })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// detachLoops lets go of the loop devices whose files a driver kept below dir.
func detachLoops(dir string) error {
	if os.Geteuid() != 0 {
		return nil // without root there are none
	}
	loops, err := loop.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range loops {
		if strings.HasPrefix(l.Backing, dir+"/") {
			errs = append(errs, boundary.Do("try/detach-loop", func() error { return loop.Detach(l) }))
		}
	}
	return errors.Join(errs...)
}
