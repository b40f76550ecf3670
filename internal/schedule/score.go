package schedule

import (
	"cmp"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/klog/v2"
)

// candidate is a node that would do, and what would have to happen there.
type candidate struct {
	node     *nodeState
	decision *decision

	preference int64 // weight of the pod's preferred node affinity terms that hold
	avoid      int   // taints PreferNoSchedule that the pod does not tolerate
	prebinds   int   // claims served by a volume that exists
	free       int64 // bytes that would be left for the drivers
	volumes    int   // claims in use on the node
}

// best chooses among the nodes that would do. In this order: the pod's preference, fewer taints that ask to stay
// away, more claims served by volumes that exist, more space left for the drivers (less what is promised to claims
// not provisioned yet), fewer volumes, fewer pods, the name.
func (s *search) best(candidates []candidate) *decision {
	if len(candidates) == 1 {
		return candidates[0].decision
	}
	for i := range candidates {
		s.weigh(&candidates[i])
	}
	return slices.MinFunc(candidates, func(a, b candidate) int {
		return cmp.Or(
			cmp.Compare(b.preference, a.preference),
			cmp.Compare(a.avoid, b.avoid),
			cmp.Compare(b.prebinds, a.prebinds),
			cmp.Compare(b.free, a.free),
			cmp.Compare(a.volumes, b.volumes),
			cmp.Compare(len(a.node.pods), len(b.node.pods)),
			cmp.Compare(a.decision.node, b.decision.node),
		)
	}).decision
}

func (s *search) weigh(k *candidate) {
	node := k.node.object
	if a := s.pod.Spec.Affinity; a != nil && a.NodeAffinity != nil {
		if terms, err := nodeaffinity.NewPreferredSchedulingTerms(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution); err == nil {
			k.preference = terms.Score(node)
		}
	}
	for i := range node.Spec.Taints {
		t := &node.Spec.Taints[i]
		if t.Effect == v1.TaintEffectPreferNoSchedule && !corev1.TolerationsTolerateTaint(klog.Background(), s.pod.Spec.Tolerations, t, true) {
			k.avoid++
		}
	}
	k.prebinds = len(k.decision.prebinds)
	for _, claim := range k.decision.provisions {
		if class := s.classes[storagehelpers.GetPersistentVolumeClaimClass(claim)]; class != nil {
			available, _ := s.capacity(class, claim, node)
			k.free += available
		}
	}
	for _, other := range k.node.pods {
		for _, key := range claimKeys(other.pod) {
			k.volumes++
			if claim := s.claim(key); k.free > 0 && claim != nil && claim.Spec.VolumeName == "" {
				k.free -= claim.Spec.Resources.Requests.Storage().Value()
			}
		}
	}
}
