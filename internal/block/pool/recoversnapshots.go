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

	"berth.io/berth/internal/boundary"
)

// recoverSnapshots reads every snapshot, removes what a crash left half made or half removed, and counts the promises.
func (p *Pool) recoverSnapshots() error {
	for _, in := range []string{snapshotsName, groupsName} {
		err := boundary.Do("pool/make-snapshot-directory", func() error {
			if err := os.Mkdir(p.path(in), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			return nil
		})
		if err != nil {
			return err
		}
		entries, err := os.ReadDir(p.path(in))
		if err != nil {
			return err
		}
		for _, e := range entries {
			name := e.Name()
			if strings.HasPrefix(name, makingPrefix) || strings.HasPrefix(name, removingPrefix) {
				err := boundary.Do("pool/remove-unfinished-snapshot", func() error { return os.RemoveAll(p.path(in, name)) })
				if err != nil {
					return fmt.Errorf("remove %s, which a crash left: %w", name, err)
				}
				continue
			}
			if in == groupsName {
				err = p.recoverGroup(name)
			} else {
				err = p.recoverSnapshot(p.path(in, name), "")
			}
			if err != nil {
				p.damaged = append(p.damaged, name)
				p.o.Log.Error("snapshot left alone", slog.String("snapshot", name), slog.Any("error", err))
			}
		}
	}
	return nil
}

func (p *Pool) recoverGroup(id string) error {
	dir := p.path(groupsName, id)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var failed []error
	for _, e := range entries { // each counts, also without the group's description
		if e.IsDir() {
			failed = append(failed, p.recoverSnapshot(filepath.Join(dir, e.Name()), id))
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, describeGroupName))
	if err := errors.Join(append(failed, err)...); err != nil {
		return err
	}
	g, err := parseGroup(id, data)
	if err != nil {
		return err
	}
	for _, m := range g.Members {
		if p.snapshots[m].GroupID != id {
			return fmt.Errorf("group snapshot %s: %w: its member %s is not there", id, ErrDamaged, m)
		}
	}
	p.groups[id] = g
	return nil
}

func (p *Pool) recoverSnapshot(dir, group string) error {
	own, err := allocatedIn(filepath.Join(dir, diskName))
	if err != nil {
		return err
	}
	p.account.reserved += snapshotReservation(own) // whatever it is, it occupies space
	s, err := readSnapshot(dir, group)
	if err != nil {
		return err
	}
	p.snapshots[s.ID] = s
	return nil
}

// readSnapshot reads the snapshot that dir holds, as a member of group.
func readSnapshot(dir, group string) (Snapshot, error) {
	data, err := os.ReadFile(filepath.Join(dir, describeSnapshotName))
	if err != nil {
		return Snapshot{}, err
	}
	s, err := parseSnapshot(filepath.Base(dir), data)
	if err != nil {
		return Snapshot{}, err
	}
	if s.GroupID != group {
		return Snapshot{}, fmt.Errorf("snapshot %s: %w: it says that it belongs to group %q", s.ID, ErrDamaged, clip(s.GroupID))
	}
	own, err := allocatedIn(filepath.Join(dir, diskName))
	s.ReservedBytes = snapshotReservation(own)
	return s, err
}

// isDamaged says that there is a volume or a snapshot of this id whose description cannot be read; p.mu is held.
func (p *Pool) isDamaged(id string) bool { return slices.Contains(p.damaged, id) }
