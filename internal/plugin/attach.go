package plugin

import (
	"context"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Attacher is a Plugin whose volumes can need phase 2: attach to a node before the node can mount them.
//
// Attach and Detach ask for the outcome and report what is there now; they do not wait. A plugin whose backend
// answers later (CSI: the VolumeAttachment's status) returns Pending, and the attach room asks again when a
// VolumeAttachment or the volume's node has changed. A plugin that must block (FlexVolume) blocks under the context's deadline.
type Attacher interface {
	Plugin
	// Attachable says whether v needs an attach at all (CSIDriver.spec.attachRequired; a FlexVolume driver's attach
	// capability). An error means that it cannot be known yet.
	Attachable(v *Volume) (bool, error)
	// Attach asks for v on node.
	Attach(ctx context.Context, v *Volume, node types.NodeName) (Attachment, error)
	// Detach asks for the volume to leave node; false means that it is under way.
	Detach(ctx context.Context, a AttachedVolume, node types.NodeName) (done bool, err error)
	// Attached lists what the backend believes to be attached, for the rebuild of the actual state at start.
	Attached(ctx context.Context) ([]AttachedVolume, error)
}

// Blocking is an Attacher whose Attach and Detach run to their end, each call-out under a deadline of its own. They are made beside
// the workers of the attach room, so that a driver that hangs holds up only its own volumes.
type Blocking interface{ Blocks() }

// AttachVerifier is an Attacher that can be asked whether a volume still is where it was attached (FlexVolume's isattached).
type AttachVerifier interface {
	Attacher
	// StillAttached changes nothing. An error means that it is not known.
	StillAttached(ctx context.Context, v *Volume, node types.NodeName) (bool, error)
}

// Attachment is what Attach reports.
type Attachment struct {
	// Pending is empty when the volume is attached; otherwise the reason why it is not yet, for a user.
	Pending string
	// DevicePath as node.status.volumesAttached carries it (CSI: empty; FlexVolume: the device).
	DevicePath string
}

// AttachedVolume is one volume on one node as the backend or the node's status knows it. Volume is nil when only the
// names are left (the PV was deleted while the volume was attached).
type AttachedVolume struct {
	Name       v1.UniqueVolumeName
	Node       types.NodeName
	DevicePath string
	Volume     *Volume
	// Uncertain: a step towards attaching began and its outcome is not known.
	Uncertain bool
}
