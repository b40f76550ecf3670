package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/loop"
	"berth.io/berth/internal/host/mountpoint"
)

// Teardown unmounts everything that comes from the pools under dir (<data directory>/pools), in the order in which
// that works: what pods see, what is staged, the volumes' loop devices, the pools themselves. It needs no running
// driver, and fails with ErrInUse when there is one. Data stays; the next Open goes on with it. Nothing there is success.
func Teardown(dir string) error {
	dir, names, err := poolsUnder(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := teardownPool(dir, name); err != nil {
			return fmt.Errorf("take down pool %s: %w", name, err)
		}
	}
	return nil
}

// poolsUnder names the pools that were ever opened under dir, and dir's real path, by which the kernel shows what is in it.
func poolsUnder(dir string) (real string, names []string, err error) {
	real, err = filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return dir, nil, nil
	}
	if err != nil {
		return "", nil, err
	}
	entries, err := os.ReadDir(real)
	for _, e := range entries {
		if name, is := strings.CutSuffix(e.Name(), ".lock"); is {
			names = append(names, name)
		}
	}
	return real, names, err
}

func teardownPool(dir, name string) error {
	lock, err := takeLock(dir, name)
	if err != nil {
		return err
	}
	defer lock.Close()
	at := MountPoint(dir, name)
	if err := thawIn(at); err != nil {
		return err
	}
	loops, err := loopsOf(at)
	if err != nil {
		return err
	}
	mounts, err := mountpoint.List()
	if err != nil {
		return err
	}
	var failed []error
	for _, m := range slices.Backward(mounts) {
		if !slices.ContainsFunc(loops, func(l loop.Info) bool { return l.ShownBy(m) }) {
			continue
		}
		if err := boundary.Do("pool/teardown-unmount-volume", func() error { return mountpoint.Unmount(m.Path) }); err != nil {
			failed = append(failed, err)
		}
	}
	for _, l := range loops {
		if err := boundary.Do("pool/teardown-detach-volume", func() error { return loop.Detach(l) }); err != nil {
			failed = append(failed, err)
		}
	}
	if len(failed) > 0 {
		return errors.Join(failed...)
	}
	if is, err := mountpoint.Is(at); err != nil || !is {
		return err
	}
	// The pool's own loop device goes with the mount (AutoClear).
	return boundary.Do("pool/teardown-unmount", func() error { return mountpoint.Unmount(at) })
}

// Survey is what is there of a pool, read without opening it.
type Survey struct {
	Name    string `json:"name"`
	Mounted bool   `json:"mounted"`
	// Volumes by id: whoever asks knows which of them somebody wants.
	Volumes []Volume `json:"volumes,omitempty"`
	// Snapshots, those of groups too, with the space that each may come to own.
	Snapshots []Snapshot `json:"snapshots,omitempty"`
	// Damaged: volume and snapshot directories whose description cannot be read.
	Damaged []string `json:"damaged,omitempty"`
	// Unfinished: directories of volumes and snapshots that a crash left half made or half removed; the next Open removes them.
	Unfinished []string `json:"unfinished,omitempty"`
	// Loops without a volume, by device path.
	Loops []string `json:"loops,omitempty"`
}

// Look surveys the pools under dir, whether or not a driver has them open. Volumes being made or removed at this
// moment by a running driver can show as unfinished.
func Look(dir string) ([]Survey, error) {
	dir, names, err := poolsUnder(dir)
	if err != nil {
		return nil, err
	}
	var out []Survey
	for _, name := range names {
		s, err := lookAt(dir, name)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

func lookAt(dir, name string) (Survey, error) {
	at := MountPoint(dir, name)
	s := Survey{Name: name}
	var err error
	if s.Mounted, err = mountpoint.Is(at); err != nil {
		return s, err
	}
	volumes := filepath.Join(at, volumesName)
	if s.Mounted {
		entries, err := os.ReadDir(volumes)
		if err != nil {
			return s, err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") {
				s.Unfinished = append(s.Unfinished, e.Name())
				continue
			}
			data, err := os.ReadFile(filepath.Join(volumes, e.Name(), describeName))
			var v Volume
			if err == nil {
				v, err = parseVolume(e.Name(), data)
			}
			if err != nil {
				s.Damaged = append(s.Damaged, e.Name())
				continue
			}
			s.Volumes = append(s.Volumes, v)
		}
	}
	if s.Mounted {
		s.lookAtSnapshots(filepath.Join(at, snapshotsName), "")
		groups, _ := os.ReadDir(filepath.Join(at, groupsName))
		for _, g := range groups {
			if strings.HasPrefix(g.Name(), ".") {
				s.Unfinished = append(s.Unfinished, g.Name())
				continue
			}
			s.lookAtSnapshots(filepath.Join(at, groupsName, g.Name()), g.Name())
		}
	}
	loops, err := loopsOf(at)
	for _, l := range loops {
		known := slices.ContainsFunc(s.Volumes, func(v Volume) bool { return v.ID == volumeOf(l) })
		if l.Deleted || !known {
			s.Loops = append(s.Loops, loop.Path(l.Number))
		}
	}
	return s, err
}

func (s *Survey) lookAtSnapshots(dir, group string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		switch {
		case !e.IsDir(): // the group's description
		case strings.HasPrefix(e.Name(), "."):
			s.Unfinished = append(s.Unfinished, e.Name())
		default:
			snap, err := readSnapshot(filepath.Join(dir, e.Name()), group)
			if err != nil {
				s.Damaged = append(s.Damaged, e.Name())
				continue
			}
			s.Snapshots = append(s.Snapshots, snap)
		}
	}
}
