// Package plugin is how a phase of the journey calls storage.
//
// The rooms above (claim, attach, mount) know these interfaces and never a driver; the rooms below (csi, intree,
// flexvolume) implement them. What flows in is a Volume: one volume of one pod with its claim and its
// PersistentVolume resolved. What flows out is an attachment, a staged device or a published directory. An
// implementation keeps no truth of its own: it can be asked again after any crash, and every call is idempotent.
//
// The names follow upstream's pkg/volume (VolumePlugin, AttachableVolumePlugin, DeviceMountableVolumePlugin,
// ProvisionableVolumePlugin), so that plugin names, unique volume names and paths are the same to the byte.
package plugin

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// Volume is one volume as a pod uses it, resolved: either an inline source of the pod, or a claim with its bound
// PersistentVolume. Attach-only callers leave Pod nil where no pod is known (a dangling attachment).
type Volume struct {
	// Name is pod.spec.volumes[].name.
	Name string
	// Pod that uses the volume; nil for attach-only work.
	Pod *v1.Pod
	// Source is the pod's inline volume; nil when the volume comes through a claim.
	Source *v1.Volume
	// Claim and PV are set together, or PV alone (attach-only).
	Claim *v1.PersistentVolumeClaim
	PV    *v1.PersistentVolume
	// ReadOnly as the pod asks for it (persistentVolumeClaim.readOnly or the inline source's own field).
	ReadOnly bool
}

// SpecName is the volume's directory name on the node: the PV's name, or the pod's name for an inline volume
// (upstream volume.Spec.Name).
func (v *Volume) SpecName() string {
	if v.PV != nil {
		return v.PV.Name
	}
	return v.Name
}

// Mode is Filesystem unless the PersistentVolume says Block.
func (v *Volume) Mode() v1.PersistentVolumeMode {
	if v.PV != nil && v.PV.Spec.VolumeMode != nil {
		return *v.PV.Spec.VolumeMode
	}
	return v1.PersistentVolumeFilesystem
}

// Plugin serves one kind of volume source.
type Plugin interface {
	// Name is upstream's: "kubernetes.io/csi", "kubernetes.io/empty-dir", "berth/nfs" for a FlexVolume driver.
	Name() string
	// Supports says whether this plugin serves v.
	Supports(v *Volume) bool
	// UniqueName identifies the volume on a node ("kubernetes.io/csi/<driver>^<handle>"): the name that stands in
	// node.status.volumesInUse and volumesAttached. Volumes that are per pod put the pod's UID into it.
	UniqueName(v *Volume) (v1.UniqueVolumeName, error)
}

// Registry finds the plugin of a volume. It is filled once, before anything runs.
type Registry struct{ plugins []Plugin }

// NewRegistry keeps the plugins in the order in which they are asked.
func NewRegistry(plugins ...Plugin) *Registry { return &Registry{plugins: plugins} }

// ErrNotServed says that no plugin serves a volume's type. Volume is the pod's name for it, Type the field of
// pod.spec.volumes[] or of pv.spec that names the source.
type ErrNotServed struct{ Volume, Type string }

func (e *ErrNotServed) Error() string {
	return fmt.Sprintf("volume %q is of type %q, which this node does not serve", e.Volume, e.Type)
}

// Find returns the plugin that serves v, or *ErrNotServed.
func (r *Registry) Find(v *Volume) (Plugin, error) {
	for _, p := range r.plugins {
		if p.Supports(v) {
			return p, nil
		}
	}
	return nil, &ErrNotServed{Volume: v.SpecName(), Type: SourceType(v)}
}

// ByName returns the plugin called name, or the one of a Family's driver of that name, for reconstruction from a directory on disk.
func (r *Registry) ByName(name string) (Plugin, bool) {
	for _, p := range r.plugins {
		if p.Name() == name {
			return p, true
		}
	}
	for _, p := range r.plugins {
		if f, ok := p.(Family); ok {
			if driver, ok := f.Member(name); ok && driver == name {
				return f.Of(driver), true
			}
		}
	}
	return nil, false
}

// All lists the plugins in order.
func (r *Registry) All() []Plugin { return r.plugins }

// EscapeName makes a plugin or volume name usable as one path element, as upstream's utilstrings.EscapeQualifiedName.
func EscapeName(name string) string { return strings.ReplaceAll(name, "/", "~") }

// UnescapeName undoes EscapeName.
func UnescapeName(name string) string { return strings.ReplaceAll(name, "~", "/") }
