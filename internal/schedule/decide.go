package schedule

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// decision says where a pod goes and what must happen to its claims before it can be bound there.
type decision struct {
	node string
	// prebinds are volumes that exist and are chosen for claims.
	prebinds []prebind
	// provisions are claims to be provisioned for the node (selected-node annotation). A claim that has the
	// annotation already is among them: the pod waits for it like for the others.
	provisions []*v1.PersistentVolumeClaim
	// feasible counts the nodes that would have done.
	feasible int
}

// prebind pairs a volume with the claim that it is chosen for, both as they are before the decision.
type prebind struct {
	volume *v1.PersistentVolume
	claim  *v1.PersistentVolumeClaim
}

// refusal says why no node will do, and which events may change that.
type refusal struct {
	// message is upstream's: "0/1 nodes are available: 1 node(s) were unschedulable."
	message string
	wake    wake
	// failed: not the rules but an error stopped the pod (upstream's reason SchedulerError).
	failed bool
}

// wake is a set of kinds of events. Changes of the pod itself and of its claims always wake it.
type wake uint

const (
	wakeNode       wake = 1 << iota // a node appeared, or changed in what matters here
	wakePodGone                     // a pod gave back what it used
	wakeClass                       // a class appeared or its topology changed
	wakeVolume                      // a volume appeared or changed
	wakeCapacity                    // a driver has more space
	wakeCSINode                     // a driver may have more volumes on a node
	wakeAttachment                  // a volume was detached
)

// decide chooses a node for pod. It reads the cluster and changes nothing.
func decide(c *cluster, pod *v1.Pod) (*decision, *refusal) {
	total := len(c.nodeNames)
	if total == 0 {
		return nil, &refusal{message: "no nodes available to schedule pods", wake: wakeNode}
	}
	refuseAll := func(reason string, w wake) (*decision, *refusal) {
		return nil, &refusal{message: fmt.Sprintf("0/%d nodes are available: %s.", total, reason), wake: w}
	}
	if reason := unsupported(pod); reason != "" {
		return refuseAll(reason, 0)
	}
	claims, reason, w := c.claimsOf(pod)
	if reason != "" {
		return refuseAll(reason, w)
	}

	s := &search{
		cluster: c, pod: pod, claims: claims, requests: requestsOf(pod),
		claimTaken: c.claimInUse(pod), zones: c.zonesOf(claims.bound),
	}
	var feasible []candidate
	reasons, wakes := map[string]int{}, wake(0)
	for _, name := range c.nodeNames {
		found, why, w := s.try(c.nodes[name])
		if len(why) == 0 {
			feasible = append(feasible, candidate{node: c.nodes[name], decision: found})
			continue
		}
		wakes |= w
		for _, r := range why {
			reasons[r]++
		}
	}
	if len(feasible) == 0 {
		return refuseNodes(total, reasons, wakes)
	}
	best := s.best(feasible)
	best.feasible = len(feasible)
	return best, nil
}

// refuseNodes tells how many nodes were refused for which reason, sorted as upstream does (framework/types.go, FitError).
func refuseNodes(total int, reasons map[string]int, w wake) (*decision, *refusal) {
	told := make([]string, 0, len(reasons))
	for reason, n := range reasons {
		told = append(told, fmt.Sprintf("%d %s", n, reason))
	}
	slices.Sort(told)
	return nil, &refusal{message: fmt.Sprintf("0/%d nodes are available: %s.", total, strings.Join(told, ", ")), wake: w}
}

// unsupported names what the pod demands and this scheduler cannot honour. Demands that are only preferences
// (preferred terms, ScheduleAnyway) are accepted; of them node affinity alone has weight.
func unsupported(pod *v1.Pod) string {
	refuse := func(field, instead string) string {
		return fmt.Sprintf("the pod demands %s, which Berth's scheduler does not support; %s", field, instead)
	}
	if a := pod.Spec.Affinity; a != nil {
		if a.PodAffinity != nil && len(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution) > 0 {
			return refuse("spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution", "use the preferred form, or node affinity")
		}
		if a.PodAntiAffinity != nil && len(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution) > 0 {
			return refuse("spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution", "use the preferred form, or node affinity")
		}
	}
	for _, t := range pod.Spec.TopologySpreadConstraints {
		if t.WhenUnsatisfiable == v1.DoNotSchedule {
			return refuse("spec.topologySpreadConstraints with whenUnsatisfiable DoNotSchedule", "use ScheduleAnyway")
		}
	}
	if len(pod.Spec.ResourceClaims) > 0 {
		return refuse("spec.resourceClaims (dynamic resource allocation)", "remove them")
	}
	if pod.Spec.SchedulingGroup != nil {
		return refuse("spec.schedulingGroup (gang scheduling)", "remove it")
	}
	return ""
}

// search tries one pod on nodes.
type search struct {
	*cluster
	pod      *v1.Pod
	claims   podClaims
	requests resources
	// claimTaken: another pod has a ReadWriteOncePod claim of this pod, on whichever node.
	claimTaken bool
	zones      []zone
}

// try asks each filter in upstream's order; the first that refuses the node tells the reasons.
func (s *search) try(n *nodeState) (*decision, []string, wake) {
	if reason := nodeRefuses(n.object, s.pod); reason != "" {
		return nil, []string{reason}, wakeNode
	}
	if reasons := lacking(n, s.requests); len(reasons) > 0 {
		return nil, reasons, wakeNode | wakePodGone
	}
	if s.diskConflict(n) {
		return nil, []string{reasonDiskConflict}, wakePodGone | wakeNode
	}
	if s.claimTaken {
		return nil, []string{reasonReadWriteOncePod}, wakePodGone | wakeNode
	}
	if s.limitExceeded(n) {
		return nil, []string{reasonVolumeLimit}, wakePodGone | wakeCSINode | wakeAttachment | wakeNode
	}
	d, reasons, w := s.placeVolumes(n.object)
	if len(reasons) > 0 {
		return nil, reasons, w | wakeNode
	}
	if !inZones(n.object, s.zones) {
		return nil, []string{reasonZone}, wakeNode | wakeVolume
	}
	return d, nil, 0
}
