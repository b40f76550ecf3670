package why

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"berth.io/berth/internal/node/holder"
	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/trace"
)

// explainInline tells of a volume that the pod itself describes. One that a driver makes (csi, flexVolume) has a way of its own, if a
// short one; the others (secret, emptyDir) are told when something is wrong with them.
func explainInline(f *facts, vf *volumeFacts, s Sources, v *Volume) {
	v.Source = plugin.SourceType(&plugin.Volume{Source: vf.source})
	if v.Driver == "" {
		v.Problem = volumeProblem(f, vf, nil)
		return
	}
	v.Steps = timeline(f, vf, entriesOf(s.Entries, f, vf))
	v.Total = total(v.Steps)
	v.Problem = volumeProblem(f, vf, v.Steps)
	if v.Problem != nil {
		for _, c := range inlineCauses {
			if what, advice := c.find(f, vf); what != "" {
				v.Problem.Cause, v.Problem.What, v.Problem.Advice = c.name, what, advice
				break
			}
		}
	}
	v.Note = "it is made for the pod, and its data goes with the pod"
	v.Waiting = inlineWaiting(f, vf, v, s.Holders)
	if v.Waiting != nil && v.Problem == nil {
		for _, c := range inlineCauses {
			if what, advice := c.find(f, vf); what != "" {
				v.Problem = &Problem{Cause: c.name, What: what, Advice: advice}
				break
			}
		}
	}
	tellHealth(f, vf, s, v)
}

// isInline says whether the node's name of a volume is that of this volume of the pod ("kubernetes.io/csi/<uid>-<name>").
func (vf *volumeFacts) isInline(unique string, pod *v1.Pod) bool {
	return strings.HasSuffix(unique, "/"+string(pod.UID)+"-"+vf.name)
}

func inlineWaiting(f *facts, vf *volumeFacts, v *Volume, holders []Holder) *Waiting {
	p := f.pod
	if p == nil || p.Spec.NodeName == "" || finished(p) {
		return nil
	}
	w := &Waiting{Since: waitingSince(f, vf, v.Steps)}
	ready, _ := holder.Ready(p)
	switch {
	case p.DeletionTimestamp != nil:
		w.For = "the volume to be unmounted from pod " + p.Name
	case ready || published(v.Steps):
		return nil
	default:
		w.For = fmt.Sprintf("node %s to mount the volume with %s", p.Spec.NodeName, v.Driver)
	}
	for i := range holders {
		if h := &holders[i]; vf.isInline(h.Volume, p) {
			w.Holder, w.HolderSince = fmt.Sprintf("driver %s, step %s", v.Driver, h.Step), h.Since
		}
	}
	return w
}

// published: the volume itself is there; the pod waits for another one.
func published(steps []Step) bool {
	return slices.ContainsFunc(steps, func(s Step) bool { return s.rank() == order[trace.Published] && s.State == trace.Done })
}

// inlineCauses are the reasons why a driver does not mount an inline volume that the objects show.
var inlineCauses = []cause{
	{"inline-not-served", func(f *facts, vf *volumeFacts) (string, string) {
		if vf.source.CSI == nil || f.unread("csidrivers") {
			return "", ""
		}
		d := f.driver(vf.driverOf())
		if d != nil && slices.Contains(d.Spec.VolumeLifecycleModes, storagev1.VolumeLifecycleEphemeral) {
			return "", ""
		}
		if d == nil {
			return fmt.Sprintf("There is no CSIDriver object %s: only a driver that has one, with the lifecycle mode Ephemeral, serves inline volumes.", vf.driverOf()),
				"Correct csi.driver in the pod, or install the driver."
		}
		return fmt.Sprintf("CSI driver %s serves no inline volumes: its CSIDriver object does not name the lifecycle mode Ephemeral.", d.Name),
			"Use a claim, or a generic ephemeral volume (ephemeral.volumeClaimTemplate), which is a claim that goes with the pod."
	}},
	{"driver-not-on-node", func(f *facts, vf *volumeFacts) (string, string) {
		if vf.source.CSI == nil || f.pod.Spec.NodeName == "" || f.unread("csinodes") || slices.Contains(f.registeredOn(vf.driverOf()), f.pod.Spec.NodeName) {
			return "", ""
		}
		return fmt.Sprintf("CSI driver %s is not registered on node %s.", vf.driverOf(), f.pod.Spec.NodeName),
			"Start the driver's node part there; it registers through a socket in the plugins_registry directory. The volume is mounted as soon as it has."
	}},
	{"node-not-ready", causeNamed("node-not-ready")},
}

// causeNamed is the search of one of the causes of volumes with a claim.
func causeNamed(name string) func(f *facts, vf *volumeFacts) (what, advice string) {
	return func(f *facts, vf *volumeFacts) (string, string) {
		for _, c := range causes {
			if c.name == name {
				return c.find(f, vf)
			}
		}
		return "", ""
	}
}
