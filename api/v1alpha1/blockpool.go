package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BlockPool is the storage that a node offers for volumes. The node's agent writes it; its name is the node's, followed by "-" and the
// pool's where that is not the default one.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=bpool,categories=storage
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Capacity",type=integer,JSONPath=`.status.capacityBytes`
// +kubebuilder:printcolumn:name="Available",type=integer,JSONPath=`.status.availableBytes`
// +kubebuilder:printcolumn:name="Volumes",type=integer,JSONPath=`.status.volumes`
// +kubebuilder:printcolumn:name="Orphans",type=integer,JSONPath=`.status.orphans`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name == (has(self.spec.pool) ? self.spec.node + '-' + self.spec.pool : self.spec.node)",message="the name must be the node's, followed by - and the pool's name where spec.pool is set"
type BlockPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec BlockPoolSpec `json:"spec"`
	// +optional
	Status BlockPoolStatus `json:"status,omitempty"`
}

// BlockPoolSpec says which pool it is.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="the pool of an object cannot be changed"
type BlockPoolSpec struct {
	// Node that has the pool, by the name of its Node object.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`
	// Pool by its name on the node; empty for the default one.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')",message="want a-z, 0-9 and '-'"
	Pool string `json:"pool,omitempty"`
}

// BlockPoolStatus is written by the node's agent when something has changed, at most once a second.
type BlockPoolStatus struct {
	// CapacityBytes is what all volumes together may have.
	//
	// +optional
	CapacityBytes int64 `json:"capacityBytes"`
	// AvailableBytes for new volumes.
	//
	// +optional
	AvailableBytes int64 `json:"availableBytes"`
	// MaximumVolumeBytes and MinimumVolumeBytes that a single new volume may have.
	//
	// +optional
	MaximumVolumeBytes int64 `json:"maximumVolumeBytes"`
	// +optional
	MinimumVolumeBytes int64 `json:"minimumVolumeBytes"`
	// Volumes and Snapshots whose data are in the pool.
	//
	// +optional
	Volumes int32 `json:"volumes"`
	// +optional
	Snapshots int32 `json:"snapshots"`
	// Orphans are volumes and snapshots in the pool that no object names. They are never deleted unasked.
	//
	// +optional
	Orphans int32 `json:"orphans"`
	// OrphanNames are some of them.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	OrphanNames []string `json:"orphanNames,omitempty"`
	// Ready: volumes can be made here.
	//
	// +optional
	Ready bool `json:"ready"`
	// LastHeartbeat is when the agent wrote the status. It is not renewed while nothing changes.
	//
	// +optional
	LastHeartbeat *metav1.MicroTime `json:"lastHeartbeat,omitempty"`
	// Conditions: Ready is False while the pool does not take writes, and Orphaned is True while there are orphans.
	//
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// BlockPoolList is a list of them.
//
// +kubebuilder:object:root=true
type BlockPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []BlockPool `json:"items"`
}

// Conditions of a pool and their reasons.
const (
	ConditionReady    = "Ready"
	ConditionOrphaned = "Orphaned"

	ReasonServing     = "Serving"
	ReasonUnusable    = "PoolUnusable"
	ReasonNoOrphans   = "NoOrphans"
	ReasonWithoutName = "WithoutObject"
)
