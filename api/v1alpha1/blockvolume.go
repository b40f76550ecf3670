package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BlockVolume is one volume of the block store: what is wanted of it, and what its node has made of that. Its name is the volume's
// id, which is the volumeHandle of its PersistentVolume. Users make claims, not these.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=bvol,categories=storage
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Size",type=integer,JSONPath=`.status.sizeBytes`
// +kubebuilder:printcolumn:name="Filesystem",type=string,JSONPath=`.status.fsType`
// +kubebuilder:printcolumn:name="Attached",type=string,JSONPath=`.status.nodes[0]`
// +kubebuilder:printcolumn:name="Error",type=string,JSONPath=`.status.errors[0].message`,priority=1
// +kubebuilder:printcolumn:name="Problem",type=string,JSONPath=`.status.problem`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$')",message="the name is the volume's id: 1 to 63 of a-z, 0-9 and '-'"
// +kubebuilder:validation:XValidation:rule="self.spec.sizeBytes >= oldSelf.spec.sizeBytes || has(oldSelf.status) && has(oldSelf.status.sizeBytes) && self.spec.sizeBytes >= oldSelf.status.sizeBytes",message="volumes do not shrink: spec.sizeBytes can be taken back to status.sizeBytes, and not further"
type BlockVolume struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec BlockVolumeSpec `json:"spec"`
	// +optional
	Status BlockVolumeStatus `json:"status,omitempty"`
}

// BlockVolumeSpec is what is wanted. Of it, only sizeBytes, mutable and attachedTo can change.
//
// +kubebuilder:validation:XValidation:rule="self.node == oldSelf.node",message="spec.node cannot be changed: the data are there"
// +kubebuilder:validation:XValidation:rule="self.name == oldSelf.name",message="spec.name cannot be changed"
// +kubebuilder:validation:XValidation:rule="has(self.limitBytes) == has(oldSelf.limitBytes) && (!has(self.limitBytes) || self.limitBytes == oldSelf.limitBytes)",message="spec.limitBytes cannot be changed"
// +kubebuilder:validation:XValidation:rule="has(self.fsType) == has(oldSelf.fsType) && (!has(self.fsType) || self.fsType == oldSelf.fsType)",message="spec.fsType cannot be changed"
// +kubebuilder:validation:XValidation:rule="has(self.fsTypeIsDefault) == has(oldSelf.fsTypeIsDefault) && (!has(self.fsTypeIsDefault) || self.fsTypeIsDefault == oldSelf.fsTypeIsDefault)",message="spec.fsTypeIsDefault cannot be changed"
// +kubebuilder:validation:XValidation:rule="has(self.parameters) == has(oldSelf.parameters) && (!has(self.parameters) || self.parameters == oldSelf.parameters)",message="spec.parameters cannot be changed; what can stands in spec.mutable"
// +kubebuilder:validation:XValidation:rule="has(self.source) == has(oldSelf.source) && (!has(self.source) || self.source == oldSelf.source)",message="spec.source cannot be changed"
type BlockVolumeSpec struct {
	// Node whose pool has the volume, by the name of its Node object.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`
	// Name under which the volume was asked for.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	Name string `json:"name"`
	// SizeBytes that the volume must have at least; 0 leaves it to the node.
	//
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1152921504606846976
	SizeBytes int64 `json:"sizeBytes"`
	// LimitBytes that it may have at most when it is made; 0 for no limit.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	LimitBytes int64 `json:"limitBytes,omitempty"`
	// FSType that it is formatted with; empty for a raw block volume.
	//
	// +optional
	// +kubebuilder:validation:Enum="";ext4;xfs;btrfs
	FSType string `json:"fsType,omitempty"`
	// FSTypeIsDefault: nobody asked for fsType. A volume with a source then takes its source's.
	//
	// +optional
	FSTypeIsDefault bool `json:"fsTypeIsDefault,omitempty"`
	// Parameters of its StorageClass.
	//
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	Parameters map[string]Parameter `json:"parameters,omitempty"`
	// Mutable parameters, of a VolumeAttributesClass.
	//
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	Mutable map[string]Parameter `json:"mutable,omitempty"`
	// Source of its content; none for an empty volume.
	//
	// +optional
	Source *BlockVolumeSource `json:"source,omitempty"`
	// AttachedTo is the node that shall be able to use it; none: no node.
	//
	// +optional
	AttachedTo *BlockVolumeAttachment `json:"attachedTo,omitempty"`
}

// Parameter is the value of one parameter.
//
// +kubebuilder:validation:MaxLength=4096
type Parameter string

// BlockVolumeSource is one of the two.
//
// +kubebuilder:validation:XValidation:rule="has(self.volume) != has(self.snapshot)",message="a volume has one source, a snapshot or a volume"
type BlockVolumeSource struct {
	// Volume by its id.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')",message="want the id of a volume: a-z, 0-9 and '-'"
	Volume string `json:"volume,omitempty"`
	// Snapshot by its id.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')",message="want the id of a snapshot: a-z, 0-9 and '-'"
	Snapshot string `json:"snapshot,omitempty"`
}

// BlockVolumeAttachment names who may use a volume.
type BlockVolumeAttachment struct {
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`
	// +optional
	ReadOnly bool `json:"readOnly,omitempty"`
}

// BlockVolumeStatus is written by the node's agent alone.
type BlockVolumeStatus struct {
	// ObservedGeneration of the spec that the rest is about.
	//
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	Phase Phase `json:"phase,omitempty"`
	// SizeBytes that it has.
	//
	// +optional
	SizeBytes int64 `json:"sizeBytes,omitempty"`
	// FSType that it has; empty for a raw one.
	//
	// +optional
	FSType string `json:"fsType,omitempty"`
	// Mutable parameters that are in force.
	//
	// +optional
	Mutable map[string]Parameter `json:"mutable,omitempty"`
	// Nodes that it is attached to.
	//
	// +optional
	// +listType=atomic
	Nodes []string `json:"nodes,omitempty"`
	// ReadOnly: it is attached for reading alone.
	//
	// +optional
	ReadOnly bool `json:"readOnly,omitempty"`
	// Problem in words; empty for a healthy volume.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	Problem string `json:"problem,omitempty"`
	// Errors of what the spec asks for and the node could not do; one for each operation at most.
	//
	// +optional
	// +listType=map
	// +listMapKey=operation
	Errors []OperationError `json:"errors,omitempty"`
}

// BlockVolumeList is a list of them.
//
// +kubebuilder:object:root=true
type BlockVolumeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []BlockVolume `json:"items"`
}
