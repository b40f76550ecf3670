package backend

import (
	"context"
	"errors"
	"time"
)

// Source is what a new volume's content is copied from: at most one of the two.
type Source struct{ SnapshotID, VolumeID string }

// Snapshotter keeps the state of volumes at an instant.
type Snapshotter interface {
	// CreateSnapshot takes the snapshot called r.Name, or returns the one that is there when it is of the same volume.
	// A mounted volume is frozen for it: the snapshot is a clean filesystem. ErrNotFound: no such volume; ErrExists;
	// ErrNoSpace.
	CreateSnapshot(ctx context.Context, r SnapshotRequest) (Snapshot, error)
	// DeleteSnapshot removes a snapshot; volumes made from it stay whole. Not there is success. ErrInGroup while it
	// belongs to a group snapshot that is there.
	DeleteSnapshot(ctx context.Context, id string) error
	// Snapshot returns one. ErrSnapshotNotFound.
	Snapshot(ctx context.Context, id string) (Snapshot, error)
	// Snapshots returns all, ordered by id.
	Snapshots(ctx context.Context) ([]Snapshot, error)

	// CreateGroupSnapshot takes a snapshot of each volume at one instant: all are frozen, all are copied, all are thawed.
	// ErrCannotFreeze for a raw device in use, with the reason; ErrNotFound; ErrExists.
	CreateGroupSnapshot(ctx context.Context, r GroupSnapshotRequest) (GroupSnapshot, error)
	// DeleteGroupSnapshot removes the group and its snapshots. Not there is success.
	DeleteGroupSnapshot(ctx context.Context, id string) error
	// GroupSnapshot returns one. ErrSnapshotNotFound.
	GroupSnapshot(ctx context.Context, id string) (GroupSnapshot, error)
}

// SnapshotRequest asks for a snapshot.
type SnapshotRequest struct {
	Name, VolumeID string
	Parameters     map[string]string
}

// Snapshot as a driver shows it. It is ready to use as soon as it exists.
type Snapshot struct {
	ID, Name, VolumeID string
	// GroupID is empty for one taken alone.
	GroupID string
	// Node that has the snapshot, where the backend is a Placer; else empty.
	Node string
	// SizeBytes of the volume when it was taken: the least that a volume made from it can have.
	SizeBytes int64
	// FSType of the volume; empty for a raw one.
	FSType string
	Taken  time.Time
}

// GroupSnapshotRequest asks for snapshots of several volumes at one instant.
type GroupSnapshotRequest struct {
	Name       string
	VolumeIDs  []string
	Parameters map[string]string
}

// GroupSnapshot as a driver shows it.
type GroupSnapshot struct {
	ID, Name  string
	Snapshots []Snapshot
	Taken     time.Time
}

// Modifier changes what can be changed of a volume in use (a VolumeAttributesClass in Kubernetes).
type Modifier interface {
	// Modify sets these parameters of the volume and leaves its others, also those that another call sets at the same time.
	// ErrInvalid names the parameter and what it may be.
	Modify(ctx context.Context, id string, parameters map[string]string) error
	// CheckMutable refuses what Modify would refuse.
	CheckMutable(parameters map[string]string) error
}

// Changes tells which blocks of a snapshot hold data, or differ from an earlier one.
type Changes interface {
	// Allocated calls f with the ranges that hold data, from offset start on, in order, without overlap.
	// It stops at f's first error. ErrSnapshotNotFound; ErrInvalid for a start beyond the end.
	Allocated(ctx context.Context, snapshotID string, start int64, f func(Range) error) error
	// Delta calls f with the ranges in which target differs from base: both of one volume, base the older one.
	// What differs is always told; nothing is told that is shared by both.
	Delta(ctx context.Context, baseID, targetID string, start int64, f func(Range) error) error
}

// Range of bytes.
type Range struct{ Offset, Length int64 }

// Errors of snapshots, told apart with errors.Is.
var (
	ErrSnapshotNotFound = errors.New("snapshot not found")
	// ErrCannotFreeze: writes to the volume cannot be held back, so that its snapshot would be of no one instant.
	ErrCannotFreeze = errors.New("cannot be frozen")
	ErrInGroup      = errors.New("belongs to a group snapshot")
)
