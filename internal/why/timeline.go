package why

import (
	"cmp"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"berth.io/berth/internal/node/holder"
	"berth.io/berth/internal/trace"
)

// order is where a step stands on the way to a mounted volume; the steps back come after.
var order = map[trace.Step]int{
	trace.Claimed: 1, trace.Matched: 2, trace.Scheduled: 3, trace.Provisioned: 4, trace.Bound: 5, // 6: the pod's Scheduled
	trace.Attached: 7, trace.Staged: 8, trace.Published: 9, trace.Running: 10,
	trace.Expanded: 11, trace.Modified: 12, trace.Snapshotted: 13,
	trace.Unpublished: 14, trace.Unstaged: 15, trace.Detached: 16, trace.Released: 17, trace.Deleted: 18,
}

func (s *Step) rank() int {
	if s.Step == trace.Scheduled && s.pod {
		return 6
	}
	return order[s.Step]
}

// timeline lays the journal's entries of one volume, and what the objects show beyond them, into steps in the order
// in which they happened.
func timeline(f *facts, vf *volumeFacts, entries []trace.Entry) []Step {
	steps := fold(entries)
	steps = lastOfEach(steps, f.pod)
	steps = withObjects(steps, f, vf)
	inOrder(steps)
	return steps
}

// inOrder sorts steps by when they happened and fills in the times between them.
func inOrder(steps []Step) {
	slices.SortStableFunc(steps, func(a, b Step) int {
		if open := cmp.Compare(boolRank(a.State != trace.Done), boolRank(b.State != trace.Done)); open != 0 {
			return open // what is not done stands last
		}
		if a.Coarse || b.Coarse || a.Time.Equal(b.Time) {
			return cmp.Compare(a.rank(), b.rank())
		}
		return a.Time.Compare(b.Time)
	})
	between(steps)
}

func boolRank(b bool) int {
	if b {
		return 1
	}
	return 0
}

// fold makes one step of the entries from its beginning to its outcome. A step that comes again is another one.
func fold(entries []trace.Entry) []Step {
	type key struct {
		step trace.Step
		pod  bool
	}
	var steps []Step
	open := map[key]int{}
	for i := range entries {
		e := &entries[i]
		k := key{e.Step, e.Step == trace.Scheduled && e.Claim.Name == "" && e.Volume == ""}
		at, isOpen := open[k]
		if !isOpen {
			steps = append(steps, Step{Step: e.Step, pod: k.pod})
			at = len(steps) - 1
			open[k] = at
		}
		s := &steps[at]
		s.State, s.Time = e.State, e.Time
		if e.Detail != "" {
			s.Detail = e.Detail
		}
		switch e.State {
		case trace.Began:
			if s.Began.IsZero() {
				s.Began = e.Time
			}
		case trace.Waiting:
			if s.waitFrom.IsZero() {
				s.waitFrom = e.Time
			}
			s.endWait(e.Time)
			s.waitFor, s.waitAt = e.Detail, e.Time
		case trace.Failed:
			s.Failures++
			s.Error, s.lastFail = e.Detail, e.Time
		case trace.Done:
			if e.Detail == "" {
				s.Detail = ""
			}
			if !s.Began.IsZero() {
				s.Took = ms(e.Time.Sub(s.Began))
			}
			if !s.waitFrom.IsZero() {
				s.endWait(e.Time)
				s.Waited = ms(e.Time.Sub(s.waitFrom))
			}
			delete(open, k)
		}
	}
	return steps
}

// endWait notes for how long the last reason to wait held.
func (s *Step) endWait(now time.Time) {
	if d := now.Sub(s.waitAt); s.waitFor != "" && d >= s.longestFor {
		s.longest, s.longestFor = s.waitFor, d
	}
}

// lastOfEach keeps of each step the last time that it happened: a volume that many pods have used one after the other
// shows the way to the one that uses it now. What is open and has been overtaken by a later step is left out, and so
// is the way back of an earlier pod while a pod uses the volume.
func lastOfEach(steps []Step, pod *v1.Pod) []Step {
	last := map[int]int{}
	for i := range steps {
		last[steps[i].rank()] = i
	}
	latestDone := map[int]time.Time{} // by rank, of this or a later step on the way
	for i := range steps {
		if s := &steps[i]; s.State == trace.Done {
			for r := 1; r <= s.rank(); r++ {
				if s.Time.After(latestDone[r]) {
					latestDone[r] = s.Time
				}
			}
		}
	}
	undone := undoneBy(steps, pod)
	var kept []Step
	refusal := "" // the scheduler tells it for the claim and for the pod
	for i := range steps {
		s := &steps[i]
		if s.Step == trace.Scheduled && !s.pod && s.State != trace.Done {
			refusal = s.Detail
		}
	}
	for i := range steps {
		s := &steps[i]
		switch {
		case s.pod && s.State != trace.Done && refusal != "" && s.Detail == refusal:
		case last[s.rank()] != i:
		case s.State != trace.Done && !latestDone[s.rank()].Before(s.Time):
		case undone[i]:
		case s.State == trace.Waiting && s.Failures == 0 && olderThanPod(s.waitFrom, pod):
		case s.rank() > order[trace.Snapshotted] && s.State == trace.Done && pod != nil && s.Time.Before(pod.CreationTimestamp.Time):
		default:
			kept = append(kept, *s)
		}
	}
	return kept
}

// onNode says whether the step happens on or for a node, and so belongs to whoever is there.
func onNode(s trace.Step) bool {
	switch s {
	case trace.Attached, trace.Staged, trace.Published, trace.Unpublished, trace.Unstaged, trace.Detached:
		return true
	}
	return false
}

// back is the step that takes one on the way back.
var back = map[trace.Step]trace.Step{trace.Attached: trace.Detached, trace.Staged: trace.Unstaged, trace.Published: trace.Unpublished}

// undoneBy finds the steps back of an earlier pod, by index, and what they undid: a pod that lives shows its own way. One
// that has had the volume shows how it lost it.
func undoneBy(steps []Step, pod *v1.Pod) map[int]bool {
	undone := map[int]bool{}
	if pod == nil || pod.DeletionTimestamp != nil {
		return undone
	}
	var up, had time.Time // the last step up, and when the pod had the volume
	for i := range steps {
		s := &steps[i]
		if r := s.rank(); s.State != trace.Done || r < order[trace.Attached] || r > order[trace.Running] {
			continue
		}
		if s.Time.After(up) {
			up = s.Time
		}
		if s.Step == trace.Published || s.Step == trace.Running {
			had = s.Time
		}
	}
	last := map[trace.Step]time.Time{}
	for i := range steps {
		s := &steps[i]
		if !onNode(s.Step) || s.rank() < order[trace.Unpublished] {
			continue
		}
		if s.Time.Before(up) || had.IsZero() && s.State == trace.Done {
			undone[i] = true
		}
		if s.State == trace.Done {
			last[s.Step] = s.Time
		}
	}
	for i := range steps {
		s := &steps[i]
		if b, isUp := back[s.Step]; isUp && had.IsZero() && s.Time.Before(last[b]) {
			undone[i] = true
		}
	}
	return undone
}

// withObjects adds the steps that the API objects and events show and the journal does not.
func withObjects(steps []Step, f *facts, vf *volumeFacts) []Step {
	has := map[int]bool{}
	for i := range steps {
		if steps[i].State == trace.Done {
			has[steps[i].rank()] = true
		}
	}
	add := func(s Step) {
		if has[s.rank()] {
			return
		}
		s.State, s.Coarse = trace.Done, true
		steps = slices.DeleteFunc(steps, func(o Step) bool { return o.rank() == s.rank() })
		steps = append(steps, s)
	}
	if c := vf.claim; c != nil {
		add(Step{Step: trace.Claimed, Time: c.CreationTimestamp.Time, Detail: "asks for " + c.Spec.Resources.Requests.Storage().String()})
		if node := c.Annotations[storagehelpers.AnnSelectedNode]; node != "" {
			w := annotated(c, storagehelpers.AnnSelectedNode)
			add(Step{Step: trace.Scheduled, Time: w.at, Detail: w.name("node " + node + " chosen for the volume")})
		}
		handedOver(vf, add)
		if e := lastEvent(vf.events, "Provisioning"); e != nil && open(vf) {
			steps = underWay(steps, Step{Step: trace.Provisioned, Began: eventFirst(e), Detail: "by " + processOf(e)})
		}
	}
	if pv := vf.pv; pv != nil {
		if by := pv.Annotations[storagehelpers.AnnDynamicallyProvisioned]; by != "" {
			add(Step{Step: trace.Provisioned, Time: pv.CreationTimestamp.Time, Detail: "by " + by})
		}
		if c := vf.claim; c != nil && c.Status.Phase == v1.ClaimBound {
			add(Step{Step: trace.Bound, Time: wrote(c, "f:status", "f:phase").at, Detail: "to volume " + pv.Name})
		}
		if at := pv.Status.LastPhaseTransitionTime; at != nil && pv.Status.Phase == v1.VolumeReleased {
			add(Step{Step: trace.Released, Time: at.Time, Detail: "its claim is gone"})
		}
	}
	if f.pod == nil || f.pod.Spec.NodeName == "" {
		return steps
	}
	add(Step{Step: trace.Scheduled, pod: true, Time: conditionTime(f.pod, v1.PodScheduled), Detail: "pod assigned to node " + f.pod.Spec.NodeName})
	for _, a := range f.attachmentsOf(vf.pvName) {
		if a.Spec.NodeName != f.pod.Spec.NodeName {
			continue
		}
		if !a.Status.Attached {
			steps = underWay(steps, Step{Step: trace.Attached, Began: a.CreationTimestamp.Time, Detail: "(VolumeAttachment " + a.Name + ")"})
			continue
		}
		w := wrote(a, "f:status", "f:attached")
		s := Step{Step: trace.Attached, Time: w.at, Detail: w.name("to node " + a.Spec.NodeName)}
		if e := eventNaming(f.podEvents, "SuccessfulAttachVolume", vf.pvName); e != nil && s.Time.IsZero() {
			s.Time = eventTime(e)
		}
		add(s)
	}
	ready, readyAt := holder.Ready(f.pod)
	if up, at := volumesUp(f); ready || up && f.pod.DeletionTimestamp == nil { // one that is being deleted may have lost them
		s := Step{Step: trace.Published}
		if !isHolder(f.node) { // there it would be when the pod was Ready
			s.Time = at
		}
		if e := eventNaming(f.podEvents, "SuccessfulMountVolume", vf.pvName); e != nil {
			s.Time = eventTime(e)
		}
		add(s)
	}
	if ready {
		add(Step{Step: trace.Running, Time: readyAt, Detail: "the pod is Ready"})
	}
	return steps
}

// handedOver adds that the claim was handed to a provisioner.
func handedOver(vf *volumeFacts, add func(Step)) {
	by := vf.claim.Annotations[storagehelpers.AnnStorageProvisioner]
	if by == "" {
		return
	}
	if e := lastEvent(vf.events, "ExternalProvisioning"); e != nil {
		add(Step{Step: trace.Matched, Time: eventFirst(e), Detail: "handed to provisioner " + by})
	} else if open(vf) {
		add(Step{Step: trace.Matched, Time: annotated(vf.claim, storagehelpers.AnnStorageProvisioner).at, Detail: "handed to provisioner " + by})
	}
}

// underWay adds a step that has begun, unless there is one of its kind.
func underWay(steps []Step, s Step) []Step {
	if slices.ContainsFunc(steps, func(o Step) bool { return o.rank() == s.rank() }) {
		return steps
	}
	s.State, s.Coarse, s.Time = trace.Began, true, s.Began
	return append(steps, s)
}

// between fills in the times from one step to the next. Steps without a time of their own (the API keeps none) are
// passed over, and between exact times so are coarse ones; between coarse times less than a second means nothing.
func between(steps []Step) {
	var before, exact *Step
	for i := range steps {
		s := &steps[i]
		if s.State != trace.Done || s.Time.IsZero() {
			continue
		}
		switch {
		case !s.Coarse && exact != nil:
			s.After = ms(s.Time.Sub(exact.Time))
		case before != nil && s.Time.Sub(before.Time) >= time.Second:
			s.After = ms(s.Time.Sub(before.Time))
		}
		before = s
		if !s.Coarse {
			exact = s
		}
	}
}

// total is from the first step done to the last one on the way to a running pod.
func total(steps []Step) float64 {
	var first, last *Step
	for i := range steps {
		s := &steps[i]
		if s.State != trace.Done || s.Time.IsZero() || s.rank() > order[trace.Running] {
			continue
		}
		if first == nil {
			first = s
		}
		last = s
	}
	if first == nil || first == last {
		return 0
	}
	return ms(last.Time.Sub(first.Time))
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func conditionTime(p *v1.Pod, t v1.PodConditionType) time.Time {
	for i := range p.Status.Conditions {
		if c := &p.Status.Conditions[i]; c.Type == t && c.Status == v1.ConditionTrue {
			return c.LastTransitionTime.Time
		}
	}
	return time.Time{}
}

// eventNaming returns the last event of that reason whose message names the volume.
func eventNaming(events []v1.Event, reason, volume string) *v1.Event {
	for i := len(events) - 1; i >= 0; i-- {
		if e := &events[i]; e.Reason == reason && volume != "" && strings.Contains(e.Message, `"`+volume+`"`) {
			return e
		}
	}
	return nil
}
