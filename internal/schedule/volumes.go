package schedule

import (
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/storage/ephemeral"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"
)

// What upstream's volume binder says (volumebinding/binder.go:63-70).
const (
	reasonBindConflict   = "node(s) didn't find available persistent volumes to bind"
	reasonNodeConflict   = "node(s) didn't match PersistentVolume's node affinity"
	reasonNotEnoughSpace = "node(s) did not have enough free storage"
	reasonVolumeMissing  = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"
	reasonUnbound        = "pod has unbound immediate PersistentVolumeClaims"
)

// podClaims are the claims of a pod that matter for its place.
type podClaims struct {
	bound []*v1.PersistentVolumeClaim
	// delayed wait for this decision (WaitForFirstConsumer), smallest request first.
	delayed []*v1.PersistentVolumeClaim
}

// claimsOf collects the pod's claims, or says why the pod cannot be placed anywhere yet.
func (c *cluster) claimsOf(pod *v1.Pod) (claims podClaims, reason string, w wake) {
	seen := map[string]bool{}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		name, isEphemeral := claimName(pod, v)
		if name == "" || seen[name] {
			continue
		}
		seen[name] = true
		claim := c.claim(pod.Namespace + "/" + name)
		switch {
		case claim == nil && isEphemeral:
			return claims, fmt.Sprintf("waiting for ephemeral volume controller to create the persistentvolumeclaim %q", name), 0
		case claim == nil:
			return claims, fmt.Sprintf("persistentvolumeclaim %q not found", name), 0
		case claim.Status.Phase == v1.ClaimLost:
			return claims, fmt.Sprintf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, claim.Spec.VolumeName), 0
		case claim.DeletionTimestamp != nil:
			return claims, fmt.Sprintf("persistentvolumeclaim %q is being deleted", name), 0
		}
		if isEphemeral {
			if err := ephemeral.VolumeIsForPod(pod, claim); err != nil {
				return claims, err.Error(), 0
			}
		}
		switch {
		case fullyBound(claim):
			claims.bound = append(claims.bound, claim)
		case claim.Spec.VolumeName == "" && c.delayed(claim):
			claims.delayed = append(claims.delayed, claim)
		default:
			return claims, reasonUnbound, wakeClass
		}
	}
	slices.SortStableFunc(claims.delayed, func(a, b *v1.PersistentVolumeClaim) int {
		return a.Spec.Resources.Requests.Storage().Cmp(*b.Spec.Resources.Requests.Storage())
	})
	return claims, "", 0
}

// fullyBound says that both sides of the binding are written.
func fullyBound(claim *v1.PersistentVolumeClaim) bool {
	return claim.Spec.VolumeName != "" && metav1.HasAnnotation(claim.ObjectMeta, storagehelpers.AnnBindCompleted)
}

// delayed says that the claim's class waits for its first consumer.
func (c *cluster) delayed(claim *v1.PersistentVolumeClaim) bool {
	class := c.classes[storagehelpers.GetPersistentVolumeClaimClass(claim)]
	return class != nil && ptr.Deref(class.VolumeBindingMode, storagev1.VolumeBindingImmediate) == storagev1.VolumeBindingWaitForFirstConsumer
}

// placeVolumes says what must happen to the pod's claims for the pod to run on the node, all claims at once, or why
// it cannot be. Follows upstream's volumebinding FindPodVolumes.
func (s *search) placeVolumes(node *v1.Node) (*decision, []string, wake) {
	d := &decision{node: node.Name}
	var reasons []string
	var w wake
	switch s.boundVolumes(node) {
	case reasonNodeConflict:
		reasons, w = append(reasons, reasonNodeConflict), w|wakeVolume
	case reasonVolumeMissing:
		reasons, w = append(reasons, reasonVolumeMissing), w|wakeVolume
	}

	chosen := map[string]bool{}
	var provision []*v1.PersistentVolumeClaim
	for _, claim := range s.claims.delayed {
		if selected, ok := claim.Annotations[storagehelpers.AnnSelectedNode]; ok {
			if selected != node.Name {
				return nil, append(reasons, reasonBindConflict), w | wakeVolume
			}
			provision = append(provision, claim)
			continue
		}
		if pv := s.match(claim, node, chosen); pv != nil {
			chosen[pv.Name] = true
			d.prebinds = append(d.prebinds, prebind{volume: pv, claim: claim})
			continue
		}
		provision = append(provision, claim)
	}
	for _, claim := range provision {
		if reason := s.provisionable(claim, node); reason != "" {
			return nil, append(reasons, reason), w | wakeVolume | wakeClass | wakeCapacity
		}
	}
	d.provisions = provision
	return d, reasons, w
}

// boundVolumes says whether the volumes that are bound already can be used on the node.
func (s *search) boundVolumes(node *v1.Node) string {
	for _, claim := range s.claims.bound {
		pv := s.volume(claim.Spec.VolumeName)
		if pv == nil {
			return reasonVolumeMissing
		}
		if storagehelpers.CheckNodeAffinity(pv, node.Labels) != nil {
			return reasonNodeConflict
		}
	}
	return ""
}

// match finds the volume for claim: one whose claimRef names it, else the smallest free one that fits and can be used
// on the node. It is upstream's storagehelpers.FindMatchingVolume over an index.
func (c *cluster) match(claim *v1.PersistentVolumeClaim, node *v1.Node, chosen map[string]bool) *v1.PersistentVolume {
	class := storagehelpers.GetPersistentVolumeClaimClass(claim)
	requested := claim.Spec.Resources.Requests.Storage()
	fits := func(pv *v1.PersistentVolume) bool {
		return !chosen[pv.Name] && pv.DeletionTimestamp == nil &&
			pv.Spec.Capacity.Storage().Cmp(*requested) >= 0 &&
			!storagehelpers.CheckVolumeModeMismatches(&claim.Spec, &pv.Spec) &&
			ptr.Deref(claim.Spec.VolumeAttributesClassName, "") == ptr.Deref(pv.Spec.VolumeAttributesClassName, "")
	}
	for _, pv := range c.claimed[claimKey(claim)] {
		if storagehelpers.IsVolumeBoundToClaim(pv, claim) && storagehelpers.GetPersistentVolumeClass(pv) == class && fits(pv) {
			if storagehelpers.CheckNodeAffinity(pv, node.Labels) != nil {
				return nil // this volume is meant for the claim, and it is elsewhere
			}
			return pv
		}
	}
	tree := c.free[class]
	if tree == nil {
		return nil
	}
	selector := labels.Everything()
	if claim.Spec.Selector != nil {
		var err error
		if selector, err = metav1.LabelSelectorAsSelector(claim.Spec.Selector); err != nil {
			return nil // the API server validates selectors; nothing matches an invalid one
		}
	}
	var found *v1.PersistentVolume
	smallest := &v1.PersistentVolume{Spec: v1.PersistentVolumeSpec{Capacity: v1.ResourceList{v1.ResourceStorage: *requested}}}
	tree.AscendGreaterOrEqual(smallest, func(pv *v1.PersistentVolume) bool {
		if pv.Status.Phase == v1.VolumeAvailable && fits(pv) && storagehelpers.CheckAccessModes(claim, pv) &&
			selector.Matches(labels.Set(pv.Labels)) && storagehelpers.CheckNodeAffinity(pv, node.Labels) == nil {
			found = pv
		}
		return found == nil
	})
	return found
}

// provisionable says why a volume for claim cannot be made for the node; empty when it can.
func (s *search) provisionable(claim *v1.PersistentVolumeClaim, node *v1.Node) string {
	class := s.classes[storagehelpers.GetPersistentVolumeClaimClass(claim)]
	if class == nil || class.Provisioner == "" || class.Provisioner == storagehelpers.NotSupportedProvisioner {
		return reasonBindConflict
	}
	if !allowedTopology(class.AllowedTopologies, node) {
		return reasonBindConflict
	}
	if _, enough := s.capacity(class, claim, node); !enough {
		return reasonNotEnoughSpace
	}
	return ""
}

// allowedTopology says whether the node is in one of the terms; all expressions of a term must hold.
func allowedTopology(terms []v1.TopologySelectorTerm, node *v1.Node) bool {
	if len(terms) == 0 {
		return true
	}
	return slices.ContainsFunc(terms, func(term v1.TopologySelectorTerm) bool {
		if len(term.MatchLabelExpressions) == 0 {
			return false // as upstream: an empty term matches nothing
		}
		for _, e := range term.MatchLabelExpressions {
			at, ok := node.Labels[e.Key]
			if !ok || !slices.Contains(e.Values, at) {
				return false
			}
		}
		return true
	})
}

// capacity says whether the class's driver has room for the claim where the node can reach it, and how many bytes at
// most (0 when the driver does not tell). Each claim is checked by itself, as upstream: what several claims need
// together the driver knows best, and its refusal brings the pod back here.
func (c *cluster) capacity(class *storagev1.StorageClass, claim *v1.PersistentVolumeClaim, node *v1.Node) (available int64, enough bool) {
	driver := c.drivers[class.Provisioner]
	size, asked := claim.Spec.Resources.Requests[v1.ResourceStorage]
	if !asked || driver == nil || !ptr.Deref(driver.Spec.StorageCapacity, false) {
		return 0, true
	}
	for _, o := range c.capacities[class.Name] {
		limit := volumeLimit(o)
		if limit < size.Value() || o.NodeTopology == nil {
			continue
		}
		selector, err := metav1.LabelSelectorAsSelector(o.NodeTopology)
		if err != nil || !selector.Matches(labels.Set(node.Labels)) {
			continue
		}
		enough = true
		if o.Capacity != nil {
			available = max(available, o.Capacity.Value())
		}
	}
	return available, enough
}

// volumeLimit is the size in bytes of the largest volume that the capacity object promises; -1 when it tells none.
func volumeLimit(o *storagev1.CSIStorageCapacity) int64 {
	switch {
	case o.MaximumVolumeSize != nil:
		return o.MaximumVolumeSize.Value()
	case o.Capacity != nil:
		return o.Capacity.Value()
	}
	return -1
}
