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

const lockName = "lock"

// hold locks a run's directory; errBusy when its run still lives.
func hold(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
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

// former is what killed runs left in drivers that live on, by driver.
type former map[string]formerDriver

type formerDriver struct {
	Entries []formerEntry
	// Dirs of the killed runs. Their ledgers stay, whatever is tried, until a run of that driver has taken them over.
	Dirs []string
}

type formerEntry struct {
	Kind, ID string
	Members  []string
}

// ledgerName is the file of a run's ledger in its directory.
const ledgerName = "ledger"

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
		driver, entries := readLedger(filepath.Join(dir, ledgerName))
		owed := driver != "" && len(entries) > 0
		if took, err := sweepBut(dir, owed); err != nil {
			say(fmt.Sprintf("what a killed run left in %s could not be taken away: %v", dir, err))
		} else if took {
			say(fmt.Sprintf("took away what a killed run left in %s", dir))
		}
		lock.Close()
		if !owed {
			continue
		}
		d := left[driver]
		for _, e := range entries {
			d.Entries = append(d.Entries, formerEntry{e.kind, e.id, e.members})
			say(fmt.Sprintf("a killed run's %s is still in driver %s; trying that driver again deletes it (noted in %s)", e, driver, filepath.Join(dir, ledgerName)))
		}
		d.Dirs = append(d.Dirs, dir)
		left[driver] = d
	}
	return left
}

// sweepBut is sweep, but for the ledger, where the driver still has what stands in it; took is false when only that was there.
func sweepBut(dir string, keepLedger bool) (took bool, err error) {
	if !keepLedger {
		return true, sweep(dir)
	}
	errs := []error{unmountBelow(dir), detachLoops(dir)}
	found, err := os.ReadDir(dir)
	errs = append(errs, err)
	for _, f := range found {
		if f.Name() == ledgerName || f.Name() == lockName {
			continue
		}
		took = true
		errs = append(errs, removeWork(filepath.Join(dir, f.Name())))
	}
	return took, errors.Join(errs...)
}

// takeOver notes in the ledger of this run what killed ones left in its driver; from then on it is this run's to delete, and their
// own ledgers go.
func (b *bench) takeOver(before former) error {
	d := before[b.name]
	for _, e := range d.Entries {
		b.former = append(b.former, entry{e.Kind, e.ID, e.Members})
		b.ledger.add(b.former[len(b.former)-1])
	}
	var errs []error
	for _, dir := range d.Dirs {
		errs = append(errs, sweep(dir))
	}
	return errors.Join(errs...)
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
	return errors.Join(append(errs, removeWork(dir))...)
}

func removeWork(path string) error {
	err := boundary.Do("try/remove-work", func() error { return removal.All(path) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
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
