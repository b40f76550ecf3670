package pool

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

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
	loops, err := loopsUnder(p.path(volumesName))
	if err != nil {
		return err
	}
	for _, l := range loops {
		if _, ok := p.volumes[volumeOf(l)]; ok && !l.Deleted {
			continue
		}
		if err := boundary.Do("pool/detach-deleted", func() error { return loop.Detach(l.Number) }); err != nil {
			return err
		}
	}
	return nil
}

// loopsUnder lists the loop devices of files below dir.
func loopsUnder(dir string) ([]loop.Info, error) {
	all, err := loop.List()
	if err != nil {
		return nil, err
	}
	var out []loop.Info
	for _, l := range all {
		if strings.HasPrefix(l.Backing, dir+"/") {
			out = append(out, l)
		}
	}
	return out, nil
}

// volumeOf is the name of the volume directory that holds the backing file of l.
func volumeOf(l loop.Info) string { return filepath.Base(filepath.Dir(l.Backing)) }
