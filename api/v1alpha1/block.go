package v1alpha1

import (
	"crypto/sha256"
	"encoding/hex"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What the objects of the block store carry.
const (
	// LabelNode is the node that an object's data are on, as NodeLabel writes it. The agent of a node watches by it.
	LabelNode = Group + "/node"
	// FinalizerNode keeps the object of a volume or a snapshot until its node has deleted the data. It is there from the object's
	// first moment; the node's agent takes it away.
	FinalizerNode = Group + "/node"
	// AnnotationNodeLost, set by an administrator on a BlockPool, a BlockVolume or a BlockSnapshot to the name of its node, says
	// that the node will not come back with its data: deleting and detaching no longer wait for it. Where the Node object itself
	// is gone, that is known without it.
	AnnotationNodeLost = Group + "/node-lost"
	// AnnotationDeleteData, on a BlockVolume or a BlockSnapshot that was made and is being deleted, with the object's own name as its
	// value, says that its data are to go with it. The controller writes it before it deletes an object; without it the data stay, and
	// the object with them: who deletes objects or their definitions by hand loses nothing.
	AnnotationDeleteData = Group + "/delete-data"
)

// longestLabel is how many bytes a label's value can have.
const longestLabel = 63

// NodeLabel is the value of LabelNode for a node: its name, or a hash of a name that is too long for a label.
func NodeLabel(node string) string {
	if len(node) <= longestLabel {
		return node
	}
	sum := sha256.Sum256([]byte(node))
	return "sha256-" + hex.EncodeToString(sum[:16])
}

// ErrorKind tells the errors of a node's operations apart. They are the typed errors of internal/backend.
//
// +kubebuilder:validation:Enum=Internal;NotFound;NodeNotFound;SnapshotNotFound;Exists;NoSpace;TooLarge;Invalid;InUse;NotStaged;CannotFreeze;InGroup;Busy
type ErrorKind string

// Kinds of errors.
const (
	ErrorInternal         ErrorKind = "Internal"
	ErrorNotFound         ErrorKind = "NotFound"
	ErrorNodeNotFound     ErrorKind = "NodeNotFound"
	ErrorSnapshotNotFound ErrorKind = "SnapshotNotFound"
	ErrorExists           ErrorKind = "Exists"
	ErrorNoSpace          ErrorKind = "NoSpace"
	ErrorTooLarge         ErrorKind = "TooLarge"
	ErrorInvalid          ErrorKind = "Invalid"
	ErrorInUse            ErrorKind = "InUse"
	ErrorNotStaged        ErrorKind = "NotStaged"
	ErrorCannotFreeze     ErrorKind = "CannotFreeze"
	ErrorInGroup          ErrorKind = "InGroup"
	// ErrorBusy: another operation has the volume; it is tried again.
	ErrorBusy ErrorKind = "Busy"
)

// Operation is what the node was asked for.
//
// +kubebuilder:validation:Enum=Create;Delete;Resize;Modify;Attach;Detach
type Operation string

// Operations.
const (
	OperationCreate Operation = "Create"
	OperationDelete Operation = "Delete"
	OperationResize Operation = "Resize"
	OperationModify Operation = "Modify"
	OperationAttach Operation = "Attach"
	OperationDetach Operation = "Detach"
)

// OperationError is why the node could not do what the spec asks for. It is gone as soon as the node could, or nobody asks any more.
type OperationError struct {
	Operation Operation `json:"operation"`
	Kind      ErrorKind `json:"kind"`
	// Message for a user.
	//
	// +kubebuilder:validation:MaxLength=4096
	Message string `json:"message"`
	// Time of the latest try.
	Time metav1.MicroTime `json:"time"`
}

// Phase of a volume.
//
// +kubebuilder:validation:Enum=Pending;Ready;Failed
type Phase string

// Phases. A volume that is Ready once stays so: what goes wrong later stands in problem and errors.
const (
	// PhasePending: the node has not made it yet.
	PhasePending Phase = "Pending"
	// PhaseReady: its data are on the node.
	PhaseReady Phase = "Ready"
	// PhaseFailed: the node has refused to make it, and has nothing of it.
	PhaseFailed Phase = "Failed"
)
