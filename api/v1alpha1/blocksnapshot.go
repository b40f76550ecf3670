package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BlockSnapshot is the state of a BlockVolume at an instant. Its name is the snapshot's id, which is the snapshotHandle of its
// VolumeSnapshotContent. Users make VolumeSnapshots, not these.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=bsnap,categories=storage
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Volume",type=string,JSONPath=`.spec.volume`
// +kubebuilder:printcolumn:name="Group",type=string,JSONPath=`.spec.group.id`
// +kubebuilder:printcolumn:name="Ready",type=boolean,JSONPath=`.status.readyToUse`
// +kubebuilder:printcolumn:name="Size",type=integer,JSONPath=`.status.sizeBytes`
// +kubebuilder:printcolumn:name="Taken",type=date,JSONPath=`.status.creationTime`
// +kubebuilder:printcolumn:name="Error",type=string,JSONPath=`.status.errors[0].message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$')",message="the name is the snapshot's id: 1 to 63 of a-z, 0-9 and '-'"
// +kubebuilder:validation:XValidation:rule="!has(self.spec.group) || self.spec.group.members.exists(m, m.snapshot == self.metadata.name && m.volume == self.spec.volume)",message="spec.group.members must name this snapshot and its volume"
type BlockSnapshot struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec BlockSnapshotSpec `json:"spec"`
	// +optional
	Status BlockSnapshotStatus `json:"status,omitempty"`
}

// BlockSnapshotSpec is what is wanted. Nothing of it can change.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a snapshot cannot be changed"
type BlockSnapshotSpec struct {
	// Node that has the volume.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`
	// Volume by its id.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')",message="want the id of a volume: a-z, 0-9 and '-'"
	Volume string `json:"volume"`
	// Name under which the snapshot, or its group, was asked for.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	Name string `json:"name"`
	// Parameters of its VolumeSnapshotClass.
	//
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	Parameters map[string]Parameter `json:"parameters,omitempty"`
	// Group that it is taken with at one instant; none for one taken alone.
	//
	// +optional
	Group *BlockSnapshotGroup `json:"group,omitempty"`
}

// BlockSnapshotGroup is the same in each snapshot of a group. The node takes it when all of them are there, and deletes it when all are
// being deleted.
type BlockSnapshotGroup struct {
	// ID of the group.
	//
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')",message="want the id of a group: a-z, 0-9 and '-'"
	ID string `json:"id"`
	// Members ordered by volume.
	//
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=100
	Members []BlockSnapshotMember `json:"members"`
}

// BlockSnapshotMember is one of a group.
type BlockSnapshotMember struct {
	// Snapshot by its id.
	//
	// +kubebuilder:validation:MaxLength=63
	Snapshot string `json:"snapshot"`
	// Volume by its id.
	//
	// +kubebuilder:validation:MaxLength=63
	Volume string `json:"volume"`
}

// BlockSnapshotStatus is written by the node's agent alone.
type BlockSnapshotStatus struct {
	// ObservedGeneration of the spec that the rest is about.
	//
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// ReadyToUse: it was taken, and volumes can be made from it.
	//
	// +optional
	ReadyToUse bool `json:"readyToUse"`
	// CreationTime is the instant.
	//
	// +optional
	CreationTime *metav1.MicroTime `json:"creationTime,omitempty"`
	// SizeBytes of the volume at that instant: the least that a volume made from it can have.
	//
	// +optional
	SizeBytes int64 `json:"sizeBytes,omitempty"`
	// FSType of the volume; empty for a raw one.
	//
	// +optional
	FSType string `json:"fsType,omitempty"`
	// Problem in words; empty for a healthy snapshot.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	Problem string `json:"problem,omitempty"`
	// Errors of what is asked for and the node could not do.
	//
	// +optional
	// +listType=map
	// +listMapKey=operation
	Errors []OperationError `json:"errors,omitempty"`
}

// BlockSnapshotList is a list of them.
//
// +kubebuilder:object:root=true
type BlockSnapshotList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []BlockSnapshot `json:"items"`
}
