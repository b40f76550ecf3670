package mount

import (
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/component-helpers/storage/ephemeral"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"berth.io/berth/internal/plugin"
)

// protectionFinalizer keeps a claim that a pod uses; a claim that is being deleted without it may vanish under the pod.
const protectionFinalizer = "kubernetes.io/pvc-protection"

// waitError is a reason to wait: an event will change it.
type waitError struct{ reason string }

func (e *waitError) Error() string { return e.reason }

func waitFor(format string, args ...any) error { return &waitError{fmt.Sprintf(format, args...)} }

// usedVolumes are the names of the pod's volumes that a container mounts (Filesystem), or has as a device (Block). The kubelet leaves
// the others alone.
func usedVolumes(pod *v1.Pod) (mounts, devices map[string]bool) {
	mounts, devices = map[string]bool{}, map[string]bool{}
	add := func(ms []v1.VolumeMount, ds []v1.VolumeDevice) {
		for _, m := range ms {
			mounts[m.Name] = true
		}
		for _, d := range ds {
			devices[d.Name] = true
		}
	}
	for _, c := range pod.Spec.InitContainers {
		add(c.VolumeMounts, c.VolumeDevices)
	}
	for _, c := range pod.Spec.Containers {
		add(c.VolumeMounts, c.VolumeDevices)
	}
	for _, c := range pod.Spec.EphemeralContainers {
		add(c.VolumeMounts, c.VolumeDevices)
	}
	return mounts, devices
}

// claimName is the name of the claim behind a pod's volume; empty for other sources. A generic ephemeral volume's claim is
// named after pod and volume.
func claimName(pod *v1.Pod, source *v1.Volume) string {
	switch {
	case source.PersistentVolumeClaim != nil:
		return source.PersistentVolumeClaim.ClaimName
	case source.Ephemeral != nil:
		return ephemeral.VolumeClaimName(pod, source)
	}
	return ""
}

// resolve follows a pod's volume to its claim and its PersistentVolume, and refuses what must not be mounted. A
// *waitError means that the outcome depends on something yet to come.
func (m *Manager) resolve(pod *v1.Pod, source *v1.Volume) (*plugin.Volume, error) {
	name := claimName(pod, source)
	if name == "" {
		v := &plugin.Volume{Name: source.Name, Pod: pod, Source: source}
		if source.CSI != nil && source.CSI.ReadOnly != nil {
			v.ReadOnly = *source.CSI.ReadOnly
		}
		return v, nil
	}
	claim, err := m.claims.PersistentVolumeClaims(pod.Namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil, waitFor("claim %s/%s, which does not exist", pod.Namespace, name)
	}
	if err != nil {
		return nil, fmt.Errorf("look up claim %s/%s: %w", pod.Namespace, name, err)
	}
	v := &plugin.Volume{Name: source.Name, Pod: pod, Claim: claim}
	if source.Ephemeral != nil {
		if err := ephemeral.VolumeIsForPod(pod, claim); err != nil {
			return nil, err
		}
	} else {
		v.ReadOnly = source.PersistentVolumeClaim.ReadOnly
	}
	if claim.DeletionTimestamp != nil && !slices.Contains(claim.Finalizers, protectionFinalizer) {
		return nil, fmt.Errorf("claim %s/%s is being deleted", claim.Namespace, claim.Name)
	}
	if claim.Status.Phase != v1.ClaimBound || claim.Spec.VolumeName == "" {
		return nil, waitFor("claim %s/%s to be bound (it is %s)", claim.Namespace, claim.Name, claim.Status.Phase)
	}
	v.PV, err = m.pvs.Get(claim.Spec.VolumeName)
	if apierrors.IsNotFound(err) {
		return nil, waitFor("volume %s, which claim %s/%s is bound to and which does not exist", claim.Spec.VolumeName, claim.Namespace, claim.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("look up volume %s: %w", claim.Spec.VolumeName, err)
	}
	ref := v.PV.Spec.ClaimRef
	if ref == nil {
		return nil, waitFor("volume %s to be bound to claim %s/%s", v.PV.Name, claim.Namespace, claim.Name)
	}
	if ref.UID != claim.UID {
		return nil, fmt.Errorf("volume %s is bound to another claim: %s/%s (UID %s)", v.PV.Name, ref.Namespace, ref.Name, ref.UID)
	}
	return v, nil
}

// admit checks what only matters before the first mount: how containers use the volume, and whether it can be on this node.
func (m *Manager) admit(v *plugin.Volume, mounted, device bool) error {
	mode := v.Mode()
	switch {
	case mounted && mode == v1.PersistentVolumeBlock:
		return fmt.Errorf("volume %s has volumeMode Block, but a container has it in volumeMounts: use volumeDevices", v.Name)
	case device && mode != v1.PersistentVolumeBlock:
		return fmt.Errorf("volume %s has volumeMode %s, but a container has it in volumeDevices: use volumeMounts", v.Name, mode)
	}
	if v.PV == nil || v.PV.Spec.NodeAffinity == nil {
		return nil
	}
	if m.node == nil {
		return waitFor("this node's own object %s", m.opts.Node)
	}
	if err := storagehelpers.CheckNodeAffinity(v.PV, m.node.Labels); err != nil {
		return fmt.Errorf("volume %s can't be on node %s: %w", v.PV.Name, m.opts.Node, err)
	}
	return nil
}
