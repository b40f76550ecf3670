package pool

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/durable"
)

// A snapshot is taken in steps, so that whoever holds the volumes' writes back does so for Copy alone:
//
//	Begin     reserves, makes the files, and shares with them what the volumes hold now
//	Approach  shares what was written since, with writes going on; any number of times
//	Copy      makes them what the volumes hold at this moment
//	Finish    writes the descriptions, makes all of it durable, and gives it its name
//
// Until Finish has renamed the directory there is no snapshot; what is there is removed by Abandon, or at the next start.

// Take is a snapshot, or a group of them, being taken. It is used by one goroutine.
type Take struct {
	p        *Pool
	group    Group // without an id for a single snapshot
	taken    []Snapshot
	copies   []*copying
	reserved int64
	making   string // directory
	name     string // what it becomes
}

// TakeRequest names one snapshot of one volume.
type TakeRequest struct{ ID, Name, VolumeID string }

// Begin takes snapshots. With a group id they are one group. ErrExists, ErrNotFound, ErrNoSpace; an error leaves nothing.
func (p *Pool) Begin(groupID, groupName string, requests ...TakeRequest) (*Take, error) {
	t := &Take{p: p}
	if groupID != "" {
		t.group = Group{Version: snapshotVersion, ID: groupID, Name: groupName}
		t.making, t.name = p.path(groupsName, makingPrefix+groupID), p.path(groupsName, groupID)
	} else {
		t.making, t.name = p.path(snapshotsName, makingPrefix+requests[0].ID), p.path(snapshotsName, requests[0].ID)
	}
	for _, r := range requests {
		if err := ValidID(r.ID); err != nil {
			return nil, err
		}
		if s, err := p.Snapshot(r.ID); err == nil {
			return nil, fmt.Errorf("%w: %s, of volume %s", ErrExists, s.ID, s.VolumeID)
		}
		v, err := p.Get(r.VolumeID)
		if err != nil {
			return nil, err
		}
		t.taken = append(t.taken, Snapshot{
			Version: snapshotVersion, ID: r.ID, Name: r.Name, VolumeID: v.ID, GroupID: groupID,
			SizeBytes: v.SizeBytes, SectorBytes: v.SectorBytes, FSType: v.FSType, Content: v.Content,
		})
		t.group.Members = append(t.group.Members, r.ID)
	}
	if err := t.begin(); err != nil {
		return nil, errors.Join(err, t.Abandon())
	}
	return t, nil
}

func (t *Take) begin() error {
	for _, s := range t.taken {
		own, err := allocatedIn(t.p.Disk(s.VolumeID))
		if err != nil {
			return err
		}
		if err := t.reserve(s, snapshotReservation(own)); err != nil {
			return err
		}
	}
	return boundary.Do("pool/make-snapshot", func() error {
		if err := os.Mkdir(t.making, 0o700); err != nil {
			return err
		}
		for _, s := range t.taken {
			if t.group.ID != "" {
				if err := os.Mkdir(t.directory(s), 0o700); err != nil {
					return err
				}
			}
			c, err := t.p.newCopying(t.p.Disk(s.VolumeID), filepath.Join(t.directory(s), diskName))
			if err != nil {
				return err
			}
			t.copies = append(t.copies, c)
			if err := c.share(); err != nil {
				return err
			}
		}
		return nil
	})
}

// directory of a member while it is being made.
func (t *Take) directory(s Snapshot) string {
	if t.group.ID == "" {
		return t.making
	}
	return filepath.Join(t.making, s.ID)
}

func (t *Take) reserve(s Snapshot, bytes int64) error {
	if err := t.p.reserve(bytes); err != nil {
		return fmt.Errorf("a snapshot of volume %s may come to own all that the volume holds now, %d MiB: %w", s.VolumeID, bytes/mib, err)
	}
	t.reserved += bytes
	return nil
}

// Approach implements Copying.
func (t *Take) Approach() error {
	return boundary.Do("pool/approach-snapshot", func() error {
		for _, c := range t.copies {
			if err := c.approach(); err != nil {
				return err
			}
		}
		return nil
	})
}

// Copy implements Copying.
func (t *Take) Copy(still bool) error {
	t.group.Taken = time.Now().UTC()
	for i := range t.taken {
		t.taken[i].Taken = t.group.Taken
	}
	return boundary.Do("pool/copy-snapshot", func() error {
		for _, c := range t.copies {
			if err := c.all(still); err != nil {
				return err
			}
		}
		if len(t.copies) == 1 {
			return nil
		}
		for i, c := range t.copies { // each has looked for itself; the first ones had to be still until the last was copied
			if err := c.undisturbed(); err != nil {
				return fmt.Errorf("%w: volume %s of a group: %w", ErrDisturbed, t.taken[i].VolumeID, err)
			}
		}
		return nil
	})
}

// ErrDisturbed: a volume was written while it was copied together with others.
var ErrDisturbed = errors.New("written while it was copied")

// Finish makes the snapshots durable and gives them their name. The volumes may be written again since Copy.
func (t *Take) Finish() ([]Snapshot, error) {
	if err := t.settle(); err != nil {
		return nil, err
	}
	err := boundary.Do("pool/describe-snapshot", func() error {
		for _, s := range t.taken {
			if err := describe(t.directory(s), describeSnapshotName, s); err != nil {
				return err
			}
		}
		if t.group.ID == "" {
			return nil
		}
		return describe(t.making, describeGroupName, t.group)
	})
	if err != nil {
		return nil, fmt.Errorf("describe %s: %w", t.name, err)
	}
	// The name makes it a snapshot. The sync makes all of it durable, the shared extents too (replaceFile says why).
	err = boundary.Do("pool/name-snapshot", func() error {
		if err := unix.Renameat2(unix.AT_FDCWD, t.making, unix.AT_FDCWD, t.name, unix.RENAME_NOREPLACE); err != nil {
			return err
		}
		return durable.SyncDirectory(filepath.Dir(t.name))
	})
	if err != nil {
		return nil, err
	}
	t.close()
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	for _, s := range t.taken {
		t.p.snapshots[s.ID] = s
	}
	if t.group.ID != "" {
		t.p.groups[t.group.ID] = t.group
	}
	t.reserved = 0 // the snapshots have it now
	return t.taken, nil
}

// settle makes the reservation exactly what the snapshots hold: the volumes were written between Begin and Copy.
func (t *Take) settle() error {
	var need int64
	for i := range t.taken {
		own, err := t.copies[i].allocated()
		if err != nil {
			return err
		}
		t.taken[i].ReservedBytes = snapshotReservation(own)
		need += t.taken[i].ReservedBytes
	}
	if more := need - t.reserved; more > 0 {
		return t.reserve(t.taken[0], more)
	} else if more < 0 {
		t.reserved = need
		t.p.release(-more)
	}
	return nil
}

// Abandon removes what there is of it. After a successful Finish it does nothing.
func (t *Take) Abandon() error {
	t.close()
	if t.reserved == 0 {
		return nil
	}
	err := boundary.Do("pool/give-up-snapshot", func() error { return os.RemoveAll(t.making) })
	if err == nil {
		t.p.release(t.reserved)
		t.reserved = 0
	}
	return err
}

func (t *Take) close() {
	for _, c := range t.copies {
		c.close()
	}
	t.copies = nil
}

// DeleteSnapshot removes a snapshot that was taken alone. Not there is success.
func (p *Pool) DeleteSnapshot(id string) error {
	if ValidID(id) == nil {
		if err := p.finishRemovingSnapshots(p.path(snapshotsName), id); err != nil { // an earlier one of this id is in the way of this one
			return err
		}
	}
	s, err := p.Snapshot(id)
	if errors.Is(err, ErrSnapshotNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if s.GroupID != "" {
		return fmt.Errorf("snapshot %s belongs to the group snapshot %s", id, s.GroupID)
	}
	return p.removeSnapshots(p.path(snapshotsName), id, []Snapshot{s})
}

// DeleteGroup removes a group and its members. Not there is success.
func (p *Pool) DeleteGroup(id string) error {
	if ValidID(id) == nil {
		if err := p.finishRemovingSnapshots(p.path(groupsName), id); err != nil {
			return err
		}
	}
	_, members, err := p.Group(id)
	if errors.Is(err, ErrSnapshotNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.removeSnapshots(p.path(groupsName), id, members)
}

func (p *Pool) removeSnapshots(in, id string, members []Snapshot) error {
	removing := filepath.Join(in, removingPrefix+id)
	// Once it has this name it is gone, also after a power cut.
	err := boundary.Do("pool/unname-snapshot", func() error {
		if err := os.Rename(filepath.Join(in, id), removing); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return durable.SyncDirectory(in)
	})
	if err != nil {
		return fmt.Errorf("delete snapshot %s: %w", id, err)
	}
	p.mu.Lock()
	delete(p.groups, id)
	for _, s := range members {
		delete(p.snapshots, s.ID)
	}
	p.unremoved[removing] = members
	p.mu.Unlock()
	return p.finishRemovingSnapshots(in, id)
}

// finishRemovingSnapshots frees what a snapshot or a group without a name holds. Until then its promise stays: the next delete of that
// id tries again, and so does the next start.
func (p *Pool) finishRemovingSnapshots(in, id string) error {
	removing := filepath.Join(in, removingPrefix+id)
	p.mu.Lock()
	members, unfinished := p.unremoved[removing]
	p.mu.Unlock()
	if !unfinished {
		return nil
	}
	err := boundary.Do("pool/remove-snapshot", func() error { return os.RemoveAll(removing) })
	if err != nil {
		return fmt.Errorf("delete snapshot %s: %w", id, err)
	}
	var held int64
	p.mu.Lock()
	delete(p.unremoved, removing)
	for _, s := range members {
		if r, read := p.readings[s.ID]; read { // its blocks are freed when the last reader closes it
			r.kept += s.ReservedBytes
			p.readings[s.ID] = r
		} else {
			held += s.ReservedBytes
		}
	}
	p.mu.Unlock()
	p.release(held)
	return nil
}

// snapshotReservation is what a snapshot with so many allocated bytes may come to own, as the volumes that share them are
// overwritten or deleted. It is read-only, so that it never has more; one unit is for its own metadata.
func snapshotReservation(allocated int64) int64 { return RoundSize(allocated) + VolumeQuantum }

func allocatedIn(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Blocks * 512, nil
}

// describe writes a description into a directory that has no name yet.
//
// boundary: held by the caller.
func describe(dir, name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writeData(filepath.Join(dir, name), append(data, '\n'))
}
