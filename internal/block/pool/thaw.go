package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/filesystem"
	"berth.io/berth/internal/host/mountpoint"
	"berth.io/berth/internal/host/rcu"
)

// FrozenLink in a volume's directory points to where its filesystem is mounted, for as long as that is being frozen or is
// frozen. A freeze outlives the process that made it, and everything that writes to the volume waits for the thaw.
const FrozenLink = "frozen"

// Thaw lets the filesystems of the pools under dir (<data directory>/pools) be written again that a killed process left
// frozen. It needs no open pool; nobody may be taking snapshots.
func Thaw(dir string) error {
	dir, names, err := poolsUnder(dir)
	if err != nil {
		return err
	}
	var failed []error
	for _, name := range names {
		failed = append(failed, thawIn(MountPoint(dir, name)))
	}
	return errors.Join(failed...)
}

// expeditedLink in the pool is the note of Expedite.
const expeditedLink = "expedited"

// Expedite is the machine's switch that makes freezes short, noted in this pool while it is on.
func (p *Pool) Expedite() *rcu.Switch { return &p.expedite }

func thawIn(at string) error {
	volumes, err := os.ReadDir(filepath.Join(at, volumesName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, v := range volumes {
		link := filepath.Join(at, volumesName, v.Name(), FrozenLink)
		path, err := os.Readlink(link)
		if err != nil {
			continue
		}
		if err := thawAt(path); err != nil {
			return fmt.Errorf("thaw the volume %s, which a killed process left frozen: %w", v.Name(), err)
		}
		err = boundary.Do("pool/forget-crashed-freeze", func() error { return removeIfThere(link) })
		if err != nil {
			return err
		}
	}
	return (&rcu.Switch{Note: filepath.Join(at, expeditedLink)}).Recover()
}

func thawAt(path string) error {
	if is, err := mountpoint.Is(path); err != nil || !is {
		return err // unmounted since; nothing that anybody could write to
	}
	root, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	return boundary.Do("pool/thaw-after-crash", func() error { return filesystem.Thaw(root) })
}
