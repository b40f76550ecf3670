package why

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// volumeElsewhere: the volume is bound to nodes that are not there, or take no pods.
func volumeElsewhere(f *facts, vf *volumeFacts) (what, advice string) {
	if f.pod == nil || f.pod.Spec.NodeName != "" || finished(f.pod) || vf.pv == nil || vf.pv.Spec.NodeAffinity == nil ||
		vf.pv.Spec.NodeAffinity.Required == nil || f.unread("nodes") {
		return "", ""
	}
	fits, err := nodeaffinity.NewNodeSelector(vf.pv.Spec.NodeAffinity.Required)
	if err != nil {
		return fmt.Sprintf("The nodeAffinity of volume %s cannot be read: %v.", vf.pv.Name, err), "Delete the PersistentVolume and create it again with a nodeAffinity that is valid."
	}
	var closed []string
	for i := range f.nodes {
		n := &f.nodes[i]
		if !fits.Match(n) {
			continue
		}
		why := closedTo(n, f.pod)
		if why == "" {
			return "", ""
		}
		closed = append(closed, "node "+n.Name+" "+why)
	}
	where := affinityWords(vf.pv.Spec.NodeAffinity.Required)
	if len(closed) == 0 {
		return fmt.Sprintf("Volume %s can be used only where %s, and there is no such node.", vf.pv.Name, where),
			"Bring that node back under its name and labels. If it is gone for good, so is what was on it: delete pod and claim, and restore from a backup."
	}
	return fmt.Sprintf("Volume %s can be used only where %s, and no pod gets there now: %s.", vf.pv.Name, where, strings.Join(closed, ", ")),
		"Make the node take pods again: kubectl uncordon NODE, remove the taint, or start its kubelet."
}

// closedTo says why no pod like this is placed on the node: "is cordoned"; empty when it can be.
func closedTo(n *v1.Node, p *v1.Pod) string {
	for i := range n.Status.Conditions {
		if c := &n.Status.Conditions[i]; c.Type == v1.NodeReady && c.Status != v1.ConditionTrue {
			return "is not Ready"
		}
	}
	if n.Spec.Unschedulable {
		return "is cordoned"
	}
	for i := range n.Spec.Taints {
		t := &n.Spec.Taints[i]
		if t.Effect != v1.TaintEffectPreferNoSchedule && !slices.ContainsFunc(p.Spec.Tolerations, func(o v1.Toleration) bool { return tolerates(&o, t) }) {
			return "has the taint " + t.Key
		}
	}
	return ""
}

// tolerates: comparisons of numbers (Lt, Gt) are left to the scheduler's own words.
func tolerates(o *v1.Toleration, t *v1.Taint) bool {
	return (o.Key == t.Key || o.Key == "" && o.Operator == v1.TolerationOpExists) && (o.Effect == "" || o.Effect == t.Effect) &&
		(o.Operator == v1.TolerationOpExists || o.Value == t.Value)
}

// affinityWords: "kubernetes.io/hostname is n1", alternatives joined by "or".
func affinityWords(s *v1.NodeSelector) string {
	var terms []string
	for _, t := range s.NodeSelectorTerms {
		var all []string
		for _, r := range slices.Concat(t.MatchExpressions, t.MatchFields) {
			switch r.Operator {
			case v1.NodeSelectorOpIn:
				all = append(all, r.Key+" is "+strings.Join(r.Values, " or "))
			default:
				all = append(all, strings.TrimSpace(r.Key+" "+string(r.Operator)+" "+strings.Join(r.Values, ", ")))
			}
		}
		terms = append(terms, strings.Join(all, " and "))
	}
	return strings.Join(terms, ", or ")
}

// topologyNowhere: the class allows places that no node is in.
func topologyNowhere(f *facts, vf *volumeFacts) (what, advice string) {
	if !open(vf) || vf.class == nil || len(vf.class.AllowedTopologies) == 0 || f.pod == nil || f.pod.Spec.NodeName != "" || f.unread("nodes") || len(f.nodes) == 0 {
		return "", ""
	}
	var places []string
	for _, t := range vf.class.AllowedTopologies {
		if slices.ContainsFunc(f.nodes, func(n v1.Node) bool { return inTopology(&n, t) }) {
			return "", ""
		}
		var all []string
		for _, r := range t.MatchLabelExpressions {
			all = append(all, r.Key+" is "+strings.Join(r.Values, " or "))
		}
		places = append(places, strings.Join(all, " and "))
	}
	return fmt.Sprintf("Class %s makes volumes only where %s (allowedTopologies), and no node has such labels.", vf.className, strings.Join(places, ", or ")),
		"Label a node, or make the class again with places that exist: kubectl get nodes --show-labels."
}

func inTopology(n *v1.Node, t v1.TopologySelectorTerm) bool {
	return !slices.ContainsFunc(t.MatchLabelExpressions, func(r v1.TopologySelectorLabelRequirement) bool { return !slices.Contains(r.Values, n.Labels[r.Key]) })
}

// roomByPlace lists what the class has room for, place by place: " Room: n1 10Gi, n2 844Mi." Empty when places are not told.
func (f *facts) roomByPlace(class *storagev1.StorageClass) string {
	type room struct {
		place string
		bytes int64
	}
	var rooms []room
	for i := range f.capacities {
		o := &f.capacities[i]
		if o.StorageClassName != class.Name || o.NodeTopology == nil {
			continue
		}
		q := o.Capacity
		if o.MaximumVolumeSize != nil {
			q = o.MaximumVolumeSize
		}
		if place := topologyWords(o.NodeTopology); q != nil && place != "" {
			rooms = append(rooms, room{place, q.Value()})
		}
	}
	if len(rooms) == 0 {
		return ""
	}
	slices.SortFunc(rooms, func(a, b room) int { return cmp.Or(cmp.Compare(b.bytes, a.bytes), strings.Compare(a.place, b.place)) })
	var told []string
	for _, r := range rooms[:min(len(rooms), 5)] {
		told = append(told, r.place+" "+bytesOf(r.bytes))
	}
	if more := len(rooms) - len(told); more > 0 {
		told = append(told, fmt.Sprintf("%d more with less", more))
	}
	return " The largest volume by place: " + strings.Join(told, ", ") + "."
}

// topologyWords are the values of a segment's labels: "n1", "zone-a/rack-2".
func topologyWords(s *metav1.LabelSelector) string {
	keys := make([]string, 0, len(s.MatchLabels))
	for k := range s.MatchLabels {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var values []string
	for _, k := range keys {
		values = append(values, s.MatchLabels[k])
	}
	for _, e := range s.MatchExpressions {
		values = append(values, strings.Join(e.Values, "|"))
	}
	return strings.Join(values, "/")
}
