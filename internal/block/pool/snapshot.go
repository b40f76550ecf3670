package pool

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Where snapshots are in the pool, and what is in a snapshot's directory beside its disk.
const (
	snapshotsName        = "snapshots"
	groupsName           = "groups"
	describeSnapshotName = "snapshot.json"
	describeGroupName    = "group.json"
)

// ErrSnapshotNotFound: no such snapshot, or group of them.
var ErrSnapshotNotFound = errors.New("snapshot not found")

// Snapshot is one snapshot's description, as snapshot.json holds it. Its disk never changes.
type Snapshot struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	// Name under which it was asked for.
	Name     string `json:"name"`
	VolumeID string `json:"volumeID"`
	// GroupID of the group snapshot that it belongs to; empty for one taken alone.
	GroupID string `json:"groupID,omitempty"`
	// SizeBytes, SectorBytes, FSType and Content are the volume's when it was taken.
	SizeBytes   int64     `json:"sizeBytes"`
	SectorBytes uint32    `json:"sectorBytes"`
	FSType      string    `json:"fsType,omitempty"`
	Content     Content   `json:"content"`
	Taken       time.Time `json:"taken"`

	// ReservedBytes is what it may come to own: what is allocated in it, known from its disk.
	ReservedBytes int64 `json:"-"`
}

// Group is snapshots of several volumes at one instant. Its directory, groups/<id>, holds those of its members, so that one
// rename makes or removes all.
type Group struct {
	Version int       `json:"version"`
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Taken   time.Time `json:"taken"`
	// Members by id: how many there must be.
	Members []string `json:"members"`
}

const snapshotVersion = 1

func parseSnapshot(id string, data []byte) (Snapshot, error) {
	var s Snapshot
	if err := json.Unmarshal(data, &s); err != nil {
		return Snapshot{}, fmt.Errorf("description of snapshot %s: %w: %w", id, ErrDamaged, err)
	}
	damaged := func(what string, v any) (Snapshot, error) {
		return Snapshot{}, fmt.Errorf("description of snapshot %s: %w: %s %v", id, ErrDamaged, what, v)
	}
	switch {
	case s.Version != snapshotVersion:
		return Snapshot{}, fmt.Errorf("description of snapshot %s: version %d is not one that this program knows (%d)", id, s.Version, snapshotVersion)
	case s.ID != id || ValidID(s.ID) != nil:
		return damaged("names", fmt.Sprintf("%q", clip(s.ID)))
	case ValidID(s.VolumeID) != nil:
		return damaged("volume", fmt.Sprintf("%q", clip(s.VolumeID)))
	case s.GroupID != "" && ValidID(s.GroupID) != nil:
		return damaged("group", fmt.Sprintf("%q", clip(s.GroupID)))
	case s.SizeBytes <= 0:
		return damaged("size", s.SizeBytes)
	case s.SectorBytes != 512 && s.SectorBytes != 4096:
		return damaged("sector bytes", s.SectorBytes)
	case s.Content != Fresh && s.Content != Formatted && s.Content != Raw:
		return damaged("content", fmt.Sprintf("%q", clip(string(s.Content))))
	}
	return s, nil
}

func parseGroup(id string, data []byte) (Group, error) {
	var g Group
	if err := json.Unmarshal(data, &g); err != nil {
		return Group{}, fmt.Errorf("description of group snapshot %s: %w: %w", id, ErrDamaged, err)
	}
	switch {
	case g.Version != snapshotVersion:
		return Group{}, fmt.Errorf("description of group snapshot %s: version %d is not one that this program knows (%d)", id, g.Version, snapshotVersion)
	case g.ID != id || ValidID(g.ID) != nil || len(g.Members) == 0:
		return Group{}, fmt.Errorf("description of group snapshot %s: %w: names %q, %d members", id, ErrDamaged, clip(g.ID), len(g.Members))
	}
	return g, nil
}

// Snapshot returns one, ErrSnapshotNotFound, or ErrDamaged when its description cannot be read.
func (p *Pool) Snapshot(id string) (Snapshot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.snapshots[id]
	if !ok && p.isDamaged(id) {
		return Snapshot{}, fmt.Errorf("%w: the description of snapshot %s cannot be read; its data was left alone", ErrDamaged, id)
	}
	if !ok {
		return Snapshot{}, fmt.Errorf("%w: %s", ErrSnapshotNotFound, clip(id))
	}
	return s, nil
}

// Snapshots returns all, ordered by id.
func (p *Pool) Snapshots() []Snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.SortedFunc(maps.Values(p.snapshots), func(a, b Snapshot) int { return strings.Compare(a.ID, b.ID) })
}

// Group returns a group and its members, ordered as they were asked for. ErrSnapshotNotFound, or ErrDamaged when its description
// cannot be read.
func (p *Pool) Group(id string) (Group, []Snapshot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	g, ok := p.groups[id]
	if !ok && p.isDamaged(id) {
		return Group{}, nil, fmt.Errorf("%w: the description of group snapshot %s cannot be read; its data was left alone", ErrDamaged, id)
	}
	if !ok {
		return Group{}, nil, fmt.Errorf("%w: group %s", ErrSnapshotNotFound, clip(id))
	}
	members := make([]Snapshot, 0, len(g.Members))
	for _, m := range g.Members {
		members = append(members, p.snapshots[m])
	}
	return g, members, nil
}

// SnapshotDisk is the file with the snapshot's data.
func (p *Pool) SnapshotDisk(s Snapshot) string {
	return filepath.Join(p.snapshotDirectory(s), diskName)
}

func (p *Pool) snapshotDirectory(s Snapshot) string {
	if s.GroupID != "" {
		return p.path(groupsName, s.GroupID, s.ID)
	}
	return p.path(snapshotsName, s.ID)
}
