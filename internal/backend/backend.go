// Package backend is what a CSI driver serves: one interface, one folder for each kind of storage.
//
// internal/driver speaks CSI and knows this interface; a backend knows its storage and no CSI. Errors are typed here,
// and gRPC codes are chosen from them in internal/driver alone. Sizes are in bytes.
//
// Every method is idempotent and may be killed at any point: the same call again completes it. Calls may be made from
// many goroutines; two calls for one volume exclude each other inside the backend, and the one that cannot wait any
// longer gets *BusyError.
package backend

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Backend serves the volumes of one driver. One that can do more implements Snapshotter, Modifier or Changes as well, and its
// driver then advertises it.
type Backend interface {
	Controller
	Node
	// OnCapacityChange has f called after Capacity's answer may have changed. f must not block.
	OnCapacityChange(f func())
}

// Controller is the half that is independent of where a volume is used.
type Controller interface {
	// Create makes the volume called r.Name, or returns the one that is there when it is compatible with r.
	// ErrExists when it is not; ErrNoSpace, ErrTooLarge, ErrInvalid. With a Source: ErrSnapshotNotFound, ErrNotFound;
	// ErrTooLarge when it is to be smaller than its source.
	Create(ctx context.Context, r CreateRequest) (Volume, error)
	// Delete removes a volume. Not there is success. ErrInUse while it is attached or staged.
	Delete(ctx context.Context, id string) error
	// Get returns a volume. ErrNotFound.
	Get(ctx context.Context, id string) (Volume, error)
	// List returns all volumes ordered by id.
	List(ctx context.Context) ([]Volume, error)
	// Attach lets node use the volume, for reading alone when readOnly. ErrNotFound, ErrNodeNotFound, ErrInUse when another node
	// has it, ErrExists when this one has it otherwise.
	Attach(ctx context.Context, id, node string, readOnly bool) error
	// Detach takes it from node, or from every node when node is empty. Not attached, or no such volume, is success.
	Detach(ctx context.Context, id, node string) error
	// Resize grows the volume to at least bytes, also while it is in use. A smaller size is no error and changes nothing.
	Resize(ctx context.Context, id string, bytes int64) (Volume, error)
	// Capacity that new volumes may have.
	Capacity(ctx context.Context) (Capacity, error)
	// CheckParameters refuses parameters that Create would refuse: ErrInvalid, with the parameter's name.
	CheckParameters(parameters map[string]string) error
}

// Node is the half on the node that uses a volume.
type Node interface {
	// Stage makes the volume ready on this node: mounted at r.Path, or attached as a block device. A blank volume is
	// formatted; one that holds data never is (ErrInvalid when it holds something other than r.FSType).
	Stage(ctx context.Context, r StageRequest) error
	// Unstage undoes Stage. ErrInUse while it is published or something has files open in it.
	Unstage(ctx context.Context, id, path string) error
	// Publish makes the staged volume appear at r.Target. ErrNotStaged, ErrInUse.
	Publish(ctx context.Context, r PublishRequest) error
	// Unpublish takes it away from target and removes target.
	Unpublish(ctx context.Context, id, target string) error
	// Expand makes the volume on this node, and its filesystem, as large as the volume is, and returns that size.
	// path is where it is staged or published.
	Expand(ctx context.Context, id, path string) (int64, error)
	// Stats of the volume at path; where it is staged when path is empty.
	Stats(ctx context.Context, id, path string) (Stats, error)
}

// Rounder is a backend whose volumes come in units.
type Rounder interface {
	// RoundSize is the size that a volume is given for which so many bytes are asked.
	RoundSize(bytes int64) int64
}

// CreateRequest asks for a volume.
type CreateRequest struct {
	Name string
	// RequiredBytes: at least; LimitBytes: at most, 0 for no limit.
	RequiredBytes, LimitBytes int64
	// FSType that the volume will be formatted with; empty for a raw block volume.
	FSType string
	// FSTypeIsDefault: nobody asked for FSType. A volume with a Source then takes its source's filesystem.
	FSTypeIsDefault bool
	Parameters      map[string]string
	// Mutable parameters, as Modify takes them.
	Mutable map[string]string
	// Source of its content; zero for an empty volume.
	Source Source
	// Place is where it may be; for a Placer.
	Place Place
}

// Volume as a driver shows it.
type Volume struct {
	ID, Name  string
	SizeBytes int64
	FSType    string
	// Source that it was made from, if any; it may be gone since.
	Source Source
	// Mutable parameters that are in force.
	Mutable map[string]string
	// Node that has the volume, where the backend is a Placer; else empty.
	Node string
	// Nodes that the volume is attached to.
	Nodes []string
	// Problem is empty for a healthy volume.
	Problem string
}

// Capacity in bytes.
type Capacity struct {
	// Total is what all volumes together may have; 0 where nobody knows.
	Total int64
	// Available for new volumes now, and the largest and smallest single one.
	Available, MaximumVolume, MinimumVolume int64
}

// StageRequest asks for a volume on this node.
type StageRequest struct {
	ID, Path string
	// Block: as a device, nothing is mounted.
	Block        bool
	FSType       string
	MountOptions []string
}

// PublishRequest asks for a staged volume at one more place.
type PublishRequest struct {
	ID, StagingPath, Target string
	Block                   bool
	ReadOnly                bool
	// Exclusive: no other target may have it (ReadWriteOncePod).
	Exclusive    bool
	MountOptions []string
}

// Stats of a volume in use. Inodes are 0 for a block device, and where the filesystem has no fixed number.
type Stats struct {
	TotalBytes, UsedBytes, AvailableBytes int64
	Inodes, InodesUsed, InodesFree        int64
	// Problem in words; empty: none known.
	Problem string
}

// Errors, told apart with errors.Is. The text that wraps them is for a user.
var (
	ErrNotFound     = errors.New("volume not found")
	ErrNodeNotFound = errors.New("node not found")
	// ErrExists: there is one of that name, made with something else.
	ErrExists  = errors.New("exists with other properties")
	ErrNoSpace = errors.New("no space")
	// ErrTooLarge: more, or less, than a volume can ever have here.
	ErrTooLarge = errors.New("size out of range")
	ErrInvalid  = errors.New("invalid")
	ErrInUse    = errors.New("in use")
	// ErrNotStaged: published before it was staged.
	ErrNotStaged = errors.New("not staged")
)

// BusyError says who has a volume, and since when.
type BusyError struct {
	Volume, Holder, Step string
	Since                time.Time
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("volume %s is busy: %s is %s since %s", e.Volume, e.Holder, e.Step, e.Since.UTC().Format(time.RFC3339Nano))
}
