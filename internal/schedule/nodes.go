package schedule

import (
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

// What upstream's plugins say (nodeunschedulable, tainttoleration, nodeaffinity, volumezone).
const (
	reasonUnschedulable = "node(s) were unschedulable"
	reasonTaint         = "node(s) had untolerated taint(s)"
	reasonNodeAffinity  = "node(s) didn't match Pod's node affinity/selector"
	reasonZone          = "node(s) had no available volume zone"
)

// nodeRefuses says why the node takes no such pod at all: cordoned, tainted, or not the node that the pod asks for.
func nodeRefuses(n *v1.Node, pod *v1.Pod) string {
	if n.Spec.Unschedulable {
		cordon := v1.Taint{Key: v1.TaintNodeUnschedulable, Effect: v1.TaintEffectNoSchedule}
		if !corev1.TolerationsTolerateTaint(klog.Background(), pod.Spec.Tolerations, &cordon, true) {
			return reasonUnschedulable
		}
	}
	if _, untolerated := corev1.FindMatchingUntoleratedTaint(klog.Background(), n.Spec.Taints, pod.Spec.Tolerations, repels, true); untolerated {
		return reasonTaint
	}
	if match, err := nodeaffinity.GetRequiredNodeAffinity(pod).Match(n); err != nil || !match {
		return reasonNodeAffinity
	}
	return ""
}

func repels(t *v1.Taint) bool {
	return t.Effect == v1.TaintEffectNoSchedule || t.Effect == v1.TaintEffectNoExecute
}

// zone is one topology label of a bound volume: the node's label must be one of the values.
type zone struct {
	key    string
	values sets.Set[string]
}

var zoneLabels = []string{
	v1.LabelFailureDomainBetaZone, v1.LabelFailureDomainBetaRegion, v1.LabelTopologyZone, v1.LabelTopologyRegion,
}

// betaZoneLabels maps the labels of old volumes to those that nodes carry today.
var betaZoneLabels = map[string]string{
	v1.LabelFailureDomainBetaZone:   v1.LabelTopologyZone,
	v1.LabelFailureDomainBetaRegion: v1.LabelTopologyRegion,
}

// zonesOf collects the zone labels of the volumes that the claims are bound to. A label may name several zones,
// joined by "__" (a volume replicated among them).
func (c *cluster) zonesOf(bound []*v1.PersistentVolumeClaim) []zone {
	var zones []zone
	for _, claim := range bound {
		pv := c.volume(claim.Spec.VolumeName)
		if pv == nil {
			continue
		}
		for _, key := range zoneLabels {
			if value, ok := pv.Labels[key]; ok {
				zones = append(zones, zone{key: key, values: sets.New(strings.Split(value, "__")...)})
			}
		}
	}
	return zones
}

// inZones says whether the node is where the volumes' labels say. A node without any zone label is everywhere.
func inZones(n *v1.Node, zones []zone) bool {
	labelled := false
	for _, key := range zoneLabels {
		if _, ok := n.Labels[key]; ok {
			labelled = true
		}
	}
	if !labelled {
		return true
	}
	for _, z := range zones {
		at, ok := n.Labels[z.key]
		if !ok {
			at, ok = n.Labels[betaZoneLabels[z.key]]
		}
		if !ok || !z.values.Has(at) {
			return false
		}
	}
	return true
}
