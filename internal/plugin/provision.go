package plugin

import (
	"context"
	"errors"
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// ErrInUse says that a volume cannot be deleted yet because something still uses it (an attachment that is going
// away). It is no failure: the claim room tells the user, leaves the volume Released and asks again
// (upstream's deletedVolumeInUseError).
var ErrInUse = errors.New("volume is in use")

// Provisioner is a Plugin that makes volumes in tree, named by StorageClass.provisioner
// (upstream ProvisionableVolumePlugin). External provisioners are no plugins: they watch claims.
type Provisioner interface {
	Plugin
	// SupportsMountOptions says whether a class with mountOptions may be provisioned.
	SupportsMountOptions() bool
	// Provision makes the volume and returns the PersistentVolume that describes it, which the caller completes
	// (claimRef, class, annotations, finalizer) and creates. It is called again with the same VolumeName after a
	// crash and must then find what it made.
	Provision(ctx context.Context, r ProvisionRequest) (*v1.PersistentVolume, error)
}

// ProvisionRequest is upstream's VolumeOptions with what Provision gets beside them.
type ProvisionRequest struct {
	// VolumeName is the name of the PersistentVolume to be: "pvc-<UID of the claim>".
	VolumeName    string
	Claim         *v1.PersistentVolumeClaim
	Parameters    map[string]string
	MountOptions  []string
	ReclaimPolicy v1.PersistentVolumeReclaimPolicy
	// SelectedNode is set when the scheduler chose a node first (WaitForFirstConsumer).
	SelectedNode      *v1.Node
	AllowedTopologies []v1.TopologySelectorTerm
}

// Deleter is a Plugin that deletes volumes in tree (upstream DeletableVolumePlugin). Deleting a volume that is not
// there any more succeeds.
type Deleter interface {
	Plugin
	// Delete removes the volume's data; ErrInUse asks for patience.
	Delete(ctx context.Context, pv *v1.PersistentVolume) error
}

// Recycler is a Plugin that empties a released volume so that another claim can have it (upstream
// RecyclableVolumePlugin). It may hand the work to a pod or to the node that has the volume, and blocks until the volume is empty.
type Recycler interface {
	Plugin
	// Recycle reports progress through say, as events on the PersistentVolume.
	Recycle(ctx context.Context, pv *v1.PersistentVolume, say func(eventType, message string)) error
}

// ControllerExpander is a Plugin that grows volumes in tree, away from the node (upstream ExpandableVolumePlugin).
// For every other volume an external resizer does the work.
type ControllerExpander interface {
	Plugin
	// ExpandVolume grows the volume to at least size and returns what it has now.
	ExpandVolume(ctx context.Context, pv *v1.PersistentVolume, size, old resource.Quantity) (resource.Quantity, error)
	// RequiresFSResize says that a node must grow the filesystem afterwards.
	RequiresFSResize() bool
}

// ExpanderSource is a Plugin of which each volume may be grown in another way.
type ExpanderSource interface {
	ExpanderFor(pv *v1.PersistentVolume) (ControllerExpander, bool)
}

// Provisioner returns the plugin that provisions for classes whose provisioner is name. The error is for a user and
// spelled as upstream's.
func (r *Registry) Provisioner(name string) (Provisioner, error) {
	p, ok := r.byName(name)
	if !ok {
		return nil, fmt.Errorf("no volume plugin matched name: %s", name)
	}
	if pp, ok := p.(Provisioner); ok {
		return pp, nil
	}
	return nil, errors.New("no provisionable volume plugin matched")
}

// DeleterByName returns the plugin that provisioned a volume, when it is one of ours.
func (r *Registry) DeleterByName(name string) (Deleter, error) {
	p, ok := r.byName(name)
	if !ok {
		return nil, fmt.Errorf("no volume plugin matched name: %s", name)
	}
	if d, ok := p.(Deleter); ok {
		return d, nil
	}
	return nil, errors.New("no deletable volume plugin matched")
}

// DeleterOf returns the plugin that can delete pv by what it is made of.
func (r *Registry) DeleterOf(pv *v1.PersistentVolume) (Deleter, error) {
	if p, ok := r.bySource(pv); ok {
		if d, ok := p.(Deleter); ok {
			return d, nil
		}
		return nil, errors.New("no deletable volume plugin matched")
	}
	return nil, errors.New("no volume plugin matched")
}

// RecyclerOf returns the plugin that can recycle pv.
func (r *Registry) RecyclerOf(pv *v1.PersistentVolume) (Recycler, error) {
	if p, ok := r.bySource(pv); ok {
		if rp, ok := p.(Recycler); ok {
			return rp, nil
		}
	}
	return nil, errors.New("no recyclable volume plugin matched")
}

// ExpanderOf returns the plugin that grows pv in tree, if there is one.
func (r *Registry) ExpanderOf(pv *v1.PersistentVolume) (ControllerExpander, bool) {
	p, ok := r.bySource(pv)
	if !ok {
		return nil, false
	}
	if s, ok := p.(ExpanderSource); ok {
		return s.ExpanderFor(pv)
	}
	e, ok := p.(ControllerExpander)
	return e, ok
}

func (r *Registry) byName(name string) (Plugin, bool) {
	if r == nil {
		return nil, false
	}
	return r.ByName(name)
}

func (r *Registry) bySource(pv *v1.PersistentVolume) (Plugin, bool) {
	if r == nil {
		return nil, false
	}
	p, err := r.Find(&Volume{PV: pv})
	return p, err == nil
}
