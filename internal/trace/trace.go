// Package trace keeps the journey of each volume: what happened to it, when, how long it took, what it waits for now.
//
// Times in API objects are whole seconds and events expire, so the journey has a record of its own, on the disk of
// the node, written off the hot path: Record puts an entry on a bounded queue and returns. Every room records its
// steps here; `berth why` reads them back and joins them with the API objects.
//
// A nil *Journal records nothing, so that a room can be tested without one.
package trace

import (
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Step is a station of the journey.
type Step string

// The stations in the order in which a volume passes them.
const (
	Claimed     Step = "Claimed"     // the claim was seen
	Matched     Step = "Matched"     // a volume was chosen or the claim handed to its provisioner
	Scheduled   Step = "Scheduled"   // a node was chosen (claim: selected-node; pod: bound to the node)
	Provisioned Step = "Provisioned" // CreateVolume, and the PersistentVolume made
	Bound       Step = "Bound"       // claim and volume are bound to each other
	Attached    Step = "Attached"    // attached to the node
	Staged      Step = "Staged"      // mounted on the node
	Published   Step = "Published"   // mounted in the pod's directory
	Running     Step = "Running"     // the pod has all its volumes
	Expanded    Step = "Expanded"
	Snapshotted Step = "Snapshotted"
	Modified    Step = "Modified" // its attributes were changed (VolumeAttributesClass)
	Unpublished Step = "Unpublished"
	Unstaged    Step = "Unstaged"
	Detached    Step = "Detached"
	Released    Step = "Released" // the claim is gone, the volume stays
	Deleted     Step = "Deleted"  // the volume is gone

	Lost Step = "Lost" // no station: entries that did not reach the journal
)

// State is what became of a step.
type State string

const (
	Began   State = "Began"
	Done    State = "Done"
	Failed  State = "Failed"
	Waiting State = "Waiting"
)

// Entry is one line of a journey. The claim, the pod and the volume that it concerns are named as far as the room
// knows them; the reader joins entries by any of them.
type Entry struct {
	Time  time.Time `json:"time"`
	Step  Step      `json:"step"`
	State State     `json:"state"`
	// Detail is for a user: what was decided and why, what is waited for and who holds it, or the error.
	Detail string    `json:"detail,omitempty"`
	Claim  ObjectRef `json:"claim,omitzero"`
	Pod    ObjectRef `json:"pod,omitzero"`
	Volume string    `json:"volume,omitempty"` // name of the PersistentVolume
	Node   string    `json:"node,omitempty"`
}

// ObjectRef names a namespaced object.
type ObjectRef struct {
	Namespace string    `json:"namespace,omitempty"`
	Name      string    `json:"name,omitempty"`
	UID       types.UID `json:"uid,omitempty"`
}

// Claim refers to a claim; nil gives the empty reference.
func Claim(c *v1.PersistentVolumeClaim) ObjectRef {
	if c == nil {
		return ObjectRef{}
	}
	return ObjectRef{Namespace: c.Namespace, Name: c.Name, UID: c.UID}
}

// ClaimOf refers to the claim that a volume is bound to.
func ClaimOf(pv *v1.PersistentVolume) ObjectRef {
	if pv == nil || pv.Spec.ClaimRef == nil {
		return ObjectRef{}
	}
	r := pv.Spec.ClaimRef
	return ObjectRef{Namespace: r.Namespace, Name: r.Name, UID: r.UID}
}

// Pod refers to a pod; nil gives the empty reference.
func Pod(p *v1.Pod) ObjectRef {
	if p == nil {
		return ObjectRef{}
	}
	return ObjectRef{Namespace: p.Namespace, Name: p.Name, UID: p.UID}
}
