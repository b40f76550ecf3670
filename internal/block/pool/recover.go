package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/loop"
)

// recoverVolumes reads every volume, finishes or undoes what a crash left in between, and counts the promises.
func (p *Pool) recoverVolumes() error {
	entries, err := os.ReadDir(p.path(volumesName))
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, makingPrefix) || strings.HasPrefix(name, removingPrefix) {
			if err := removeFiles(p.path(volumesName, name)); err != nil {
				return fmt.Errorf("remove %s, which a crash left: %w", name, err)
			}
			continue
		}
		if err := p.recoverVolume(name); err != nil {
			// One damaged description must not take all the other volumes away. Its files stay as they are.
			p.damaged = append(p.damaged, name)
			p.o.Log.Error("volume left alone", slog.String("volume", name), slog.Any("error", err))
		}
	}
	if err := p.account.check(); err != nil {
		p.o.Log.Error("no new volumes until space is freed", slog.Any("error", err))
	}
	return p.detachDeleted()
}

func (p *Pool) recoverVolume(id string) error {
	if err := ValidID(id); err != nil {
		return err
	}
	st, err := os.Stat(p.Disk(id))
	if err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(p.Directory(id), describeName))
	if err != nil {
		p.account.reserved += RoundSize(st.Size())
		return err
	}
	v, err := parseVolume(id, data)
	if err != nil {
		p.account.reserved += RoundSize(st.Size()) // whatever it is, it occupies space
		return err
	}
	p.account.reserved += v.SizeBytes
	if st.Size() < v.SizeBytes { // an expansion was promised and described
		err := boundary.Do("pool/finish-extending-volume", func() error { return os.Truncate(p.Disk(id), v.SizeBytes) })
		if err != nil {
			return err
		}
	}
	p.volumes[id] = v
	return nil
}

// detachDeleted lets go of loop devices whose volume is gone.
func (p *Pool) detachDeleted() error {
	loops, err := loopsOf(p.path())
	if err != nil {
		return err
	}
	for _, l := range loops {
		_, known := p.volumes[volumeOf(l)]
		if known = known || slices.Contains(p.damaged, volumeOf(l)); known && !l.Deleted {
			continue
		}
		if err := boundary.Do("pool/detach-deleted", func() error { return loop.Detach(l) }); err != nil {
			return err
		}
	}
	return nil
}

// loopsOf lists the loop devices of the volumes of the pool that is mounted at the path. The path alone would not do: loop
// devices are the whole machine's, and a pool in another container has the same path there.
func loopsOf(at string) ([]loop.Info, error) {
	var st unix.Stat_t
	if err := unix.Stat(at, &st); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("stat %s: %w", at, err)
	}
	all, err := loop.List()
	if err != nil {
		return nil, err
	}
	var out []loop.Info
	for _, l := range all {
		if l.File.Device == st.Dev && strings.HasPrefix(l.Backing, filepath.Join(at, volumesName)+"/") {
			out = append(out, l)
		}
	}
	return out, nil
}

// volumeOf is the name of the volume directory that holds the backing file of l.
func volumeOf(l loop.Info) string { return filepath.Base(filepath.Dir(l.Backing)) }
