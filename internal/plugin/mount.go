package plugin

import (
	"context"
	"errors"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Mounter is a Plugin that makes volumes usable by pods on this node (phase 3).
//
// Errors are one of two kinds. One that wraps ErrUncertain leaves the outcome unknown (a deadline, a lost
// connection): the volume must be treated as mounted until an unmount has succeeded. Any other error is final: the call changed nothing.
type Mounter interface {
	Plugin
	// Staged says whether v has a step per node (NodeStageVolume) before the step per pod.
	Staged(v *Volume) (bool, error)
	// Stage makes the volume available on the node, once for all its pods.
	Stage(ctx context.Context, r StageRequest) error
	// Unstage undoes Stage; it works from what is on the disk when r.Volume is nil.
	Unstage(ctx context.Context, r UnstageRequest) error
	// Publish makes the volume appear in the pod's directory. Calling it again for a published volume refreshes it.
	Publish(ctx context.Context, r PublishRequest) (Published, error)
	// Unpublish takes it away and removes the directory.
	Unpublish(ctx context.Context, r UnpublishRequest) error
	// Refreshes says whether a published v must be published again when one of its sources changes (configMap,
	// secret, projected, CSI's requiresRepublish).
	Refreshes(v *Volume) bool
	// Reconstruct reads back, from the node's directories alone, the volume published for the pod.
	Reconstruct(podUID types.UID, specName string, mode v1.PersistentVolumeMode) (Reconstructed, error)
}

// Expander is a Mounter that can grow a volume on the node (NodeExpandVolume).
type Expander interface {
	// Expand grows the volume on the node to at least the given size in bytes. Its errors may wrap ErrExpandNotServed,
	// ErrExpandInUse or ErrExpandInfeasible.
	Expand(ctx context.Context, r ExpandRequest) error
}

// Inspector is a Mounter that can tell how full and how well a published volume is.
type Inspector interface {
	// Inspect changes nothing. What its driver can't tell is left empty.
	Inspect(ctx context.Context, v *Volume) (Inspection, error)
}

// Inspection is a published volume at one moment.
type Inspection struct {
	// Bytes and Inodes are nil when they are not known.
	Bytes, Inodes *Usage
	// Health says that Problems is known: empty means well.
	Health   bool
	Problems []Problem
}

// Usage in bytes or inodes.
type Usage struct{ Total, Used, Available int64 }

// Problem is one adverse condition of a volume, in its driver's words.
type Problem struct {
	// Kind is the spec's: DEGRADED, INACCESSIBLE, DATA_LOSS, or a number that this version does not know.
	Kind string
	// Reason is one word in CamelCase, Message is for a user; both may be empty.
	Reason, Message string
}

func (p Problem) String() string {
	s := p.Kind
	if p.Reason != "" {
		s += " (" + p.Reason + ")"
	}
	if p.Message != "" {
		s += ": " + p.Message
	}
	return s
}

// What an expansion on the node can end in besides success.
var (
	// ErrExpandNotServed: the driver has no expansion on the node.
	ErrExpandNotServed = errors.New("driver does not expand volumes on the node")
	// ErrExpandInUse: not while the volume is in use; the mount goes on with the old size.
	ErrExpandInUse = errors.New("volume can't be expanded while it is in use")
	// ErrExpandInfeasible: the size can't be had; not retried until the claim asks for another.
	ErrExpandInfeasible = errors.New("size can't be reached")
)

// ErrDriverMissing says that the volume's driver is not on this node now. Nothing was done; DriverNotifier tells when it comes.
var ErrDriverMissing = errors.New("not registered on this node")

// DriverNotifier is a Mounter whose drivers come and go at run time.
type DriverNotifier interface {
	// NotifyDrivers has f called, from any goroutine, after a driver has come.
	NotifyDrivers(f func(driver string))
}

// StagedLister is a Mounter that finds staged volumes again from the node's directories alone, also those that no pod
// has published (a crash between Stage and Publish, or between Unpublish and Unstage).
type StagedLister interface {
	// StagedVolumes changes nothing. An entry without a Name is a staging path about which nothing is known any more; Unstage
	// with its GlobalPath removes it.
	StagedVolumes() ([]Reconstructed, error)
	// GlobalPath is where v is staged.
	GlobalPath(v *Volume) string
}

// Keeper is a Mounter with volumes that are nothing but a directory of the pod's: no mount stands behind them, and what is
// in them lives as long as the pod does.
type Keeper interface {
	// Keeps says whether the published volume is such a directory. A teardown leaves it, as a kubelet that is stopped does.
	Keeps(podUID types.UID, specName string) bool
}

// Driven is a Mounter that calls out to drivers. Operations of one driver are capped together, so that a driver that
// hangs holds up only its own volumes.
type Driven interface {
	Driver(v *Volume) string
}

// StageRequest asks for a volume on the node. DevicePath is what the attach reported.
type StageRequest struct {
	Volume     *Volume
	DevicePath string
	// FSGroup of the pod that causes the stage, for drivers with VOLUME_MOUNT_GROUP.
	FSGroup *int64
	// Again: the volume may be staged already (found on the disk, or an earlier call whose outcome is unknown). A
	// failure must then leave what is there.
	Again bool
}

// UnstageRequest names a staged volume; Volume is nil after a reconstruction without the API.
type UnstageRequest struct {
	Name   v1.UniqueVolumeName
	Volume *Volume
	// GlobalPath as Reconstruct reported it.
	GlobalPath string
}

// PublishRequest asks for a volume in a pod.
type PublishRequest struct {
	Volume  *Volume
	FSGroup *int64
	// Again: the volume may be published already (a refresh, found on the disk, or an earlier call whose outcome is
	// unknown). A failure must then leave what is there: a pod may be looking at it (kubernetes#121271).
	Again bool
}

// Published says where the volume is.
type Published struct {
	// Path is the host directory, or the device node for raw block.
	Path string
}

// UnpublishRequest names a published volume by what is on the disk.
type UnpublishRequest struct {
	PodUID   types.UID
	SpecName string
	Mode     v1.PersistentVolumeMode
	// Volume is nil after a reconstruction without the API.
	Volume *Volume
}

// ExpandRequest: sizes in bytes.
type ExpandRequest struct {
	Volume           *Volume
	OldSize, NewSize int64
}

// Reconstructed is a published volume found on the disk at start. Everything in it is uncertain.
type Reconstructed struct {
	Name       v1.UniqueVolumeName
	SpecName   string
	Mode       v1.PersistentVolumeMode
	Path       string
	GlobalPath string
	Attachable bool
	// Driver as Driven names it; empty for plugins without drivers.
	Driver string
}
