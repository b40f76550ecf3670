package schedule

import (
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// phase is where a pod without a node is on its way to one.
type phase string

const (
	queued   phase = "queued"   // to be decided
	writing  phase = "writing"  // decided; the decision is being written to its claims and volumes
	awaiting phase = "awaiting" // for its claims to be bound
	binding  phase = "binding"  // the pod is being bound to the node
	refused  phase = "refused"  // no node will do; an event wakes it
	backoff  phase = "backoff"  // an error; a timer wakes it
)

// Delays before a pod is decided again after an error. They double with each error, up to the longest.
const (
	conflictDelay  = 5 * time.Millisecond // somebody else wrote first: the watch brings the news any moment
	provisionDelay = time.Second          // the driver refused
	longestDelay   = time.Minute
)

// pendingPod is a pod without a node. Waiting is this state, not a goroutine.
type pendingPod struct {
	pod      *v1.Pod
	phase    phase
	since    time.Time // of the phase
	arrived  time.Time
	decision *decision // from writing to binding
	refusal  *refusal  // the last one

	// attempt grows with each decision; what comes back from an earlier one is ignored.
	attempt  int
	writes   int   // under way
	writeErr error // the first of this attempt
	failures int   // in a row

	timer       *time.Timer // ends awaiting or backoff
	reportTimer *time.Timer // set while a refusal waits to be told
	reported    string      // the message that the pod's condition carries
	told        string      // the last Waiting in the trace
}

func (p *pendingPod) enter(ph phase) { p.phase, p.since = ph, time.Now() }

func (p *pendingPod) stopTimer() {
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
}

func (p *pendingPod) describe() Wait {
	w := Wait{Pod: types.NamespacedName{Namespace: p.pod.Namespace, Name: p.pod.Name}, Phase: string(p.phase), Since: p.since}
	if p.decision != nil {
		w.Node = p.decision.node
	}
	if p.refusal != nil && (p.phase == refused || p.phase == backoff) {
		w.Reason = p.refusal.message
	}
	if p.phase == awaiting {
		w.Reason = p.told
	}
	return w
}

// admit takes in a pod that wants a node.
func (s *Scheduler) admit(pod *v1.Pod) {
	p := &pendingPod{pod: pod, arrived: time.Now(), phase: queued, since: time.Now(), reported: reportedMessage(pod)}
	s.pods[pod.UID] = p
	for _, key := range claimKeys(pod) {
		if s.byClaim[key] == nil {
			s.byClaim[key] = map[types.UID]*pendingPod{}
		}
		s.byClaim[key][pod.UID] = p
	}
	s.queue = append(s.queue, p)
}

// leave forgets a pod that has a node now, or wants none any more.
func (s *Scheduler) leave(p *pendingPod) {
	p.stopTimer()
	if p.reportTimer != nil {
		p.reportTimer.Stop()
	}
	delete(s.pods, p.pod.UID)
	delete(s.refused, p.pod.UID)
	for _, key := range claimKeys(p.pod) {
		delete(s.byClaim[key], p.pod.UID)
		if len(s.byClaim[key]) == 0 {
			delete(s.byClaim, key)
		}
	}
}

// requeue has the pod decided (again) in this round.
func (s *Scheduler) requeue(p *pendingPod) {
	if p.phase == queued {
		return
	}
	p.stopTimer()
	delete(s.refused, p.pod.UID)
	p.enter(queued)
	s.queue = append(s.queue, p)
}

// wake has those refused pods decided again that the event may help.
func (s *Scheduler) wake(w wake) {
	for _, p := range s.refused {
		if p.refusal.wake&w != 0 {
			s.requeue(p)
		}
	}
}

// wakeUsers looks again at the pods that use the claim: its claim, or the volume bound to it, has changed.
func (s *Scheduler) wakeUsers(claim string) {
	for _, p := range s.byClaim[claim] {
		switch p.phase {
		case refused:
			s.requeue(p)
		case awaiting:
			s.check(p)
		}
	}
}

// decide chooses a node for the pod and sets the writes going, or notes why there is none.
func (s *Scheduler) decide(p *pendingPod) {
	p.attempt++
	d, no := decide(s.cluster, p.pod)
	if no != nil {
		s.metrics.attempt("unschedulable")
		s.refuse(p, no)
		return
	}
	volumes, claims, err := s.cluster.assume(p.pod, d)
	if err != nil {
		s.retry(p, err, conflictDelay)
		return
	}
	p.decision, p.writeErr = d, nil
	if p.writes = len(volumes) + len(claims); p.writes > 0 {
		p.enter(writing)
		for _, pv := range volumes {
			s.writeVolume(p, pv)
		}
		for _, claim := range claims {
			s.writeClaim(p, claim)
		}
		return
	}
	s.await(p)
}

// refuse leaves the pod until an event wakes it, and has the reason told.
func (s *Scheduler) refuse(p *pendingPod, r *refusal) {
	p.enter(refused)
	p.refusal = r
	s.refused[p.pod.UID] = p
	s.reportSoon(p)
	if s.OnNoRoom != nil && r.wake&wakeCapacity != 0 {
		s.OnNoRoom()
	}
}

// wrote takes the result of one write of a decision.
func (s *Scheduler) wrote(p *pendingPod, attempt int, err error) {
	if s.pods[p.pod.UID] != p || p.attempt != attempt {
		return
	}
	p.writes--
	if p.writeErr == nil {
		p.writeErr = err
	}
	switch {
	case p.writes > 0:
	case p.writeErr != nil:
		s.retry(p, p.writeErr, conflictDelay)
	default:
		s.await(p)
	}
}

// await waits for the pod's claims, if there is anything to wait for.
func (s *Scheduler) await(p *pendingPod) {
	p.enter(awaiting)
	s.check(p)
	if p.phase != awaiting {
		return
	}
	attempt := p.attempt
	p.timer = time.AfterFunc(s.BindTimeout, func() {
		s.inbox.put(func() {
			if s.pods[p.pod.UID] == p && p.attempt == attempt && p.phase == awaiting {
				s.retry(p, s.gaveUp(p), conflictDelay)
			}
		})
	})
}

// gaveUp is upstream's error, with the claims that it was about.
func (s *Scheduler) gaveUp(p *pendingPod) error {
	claims, _ := settled(s.cluster, p.decision)
	return fmt.Errorf("context deadline exceeded: after %v still not bound: %s", s.BindTimeout, quoted(claims))
}

// check binds the pod when its claims are bound, and starts anew when the decision no longer holds.
func (s *Scheduler) check(p *pendingPod) {
	claims, err := settled(s.cluster, p.decision)
	switch {
	case err != nil:
		s.retry(p, err, provisionDelay)
	case len(claims) > 0:
		s.traceAwaiting(p, claims)
	default:
		p.stopTimer()
		p.enter(binding)
		s.bind(p)
	}
}

// bound takes the result of the pod's Binding. On success the pod stays counted on its node; its event from the watch
// ends the story.
func (s *Scheduler) bound(p *pendingPod, attempt int, err error) {
	if s.pods[p.pod.UID] != p || p.attempt != attempt {
		return
	}
	if err != nil {
		s.retry(p, err, conflictDelay)
		return
	}
	s.metrics.scheduled(time.Since(p.arrived))
	s.leave(p)
}

// retry takes the decision back and has the pod decided again after a while.
func (s *Scheduler) retry(p *pendingPod, err error, delay time.Duration) {
	s.metrics.attempt("error")
	s.undo(p)
	p.enter(backoff)
	p.refusal = &refusal{message: "binding volumes: " + err.Error(), failed: true}
	delay = min(delay<<min(p.failures, 16), longestDelay)
	p.failures++
	s.Log.Debug("pod will be decided again", "pod", p.pod.Namespace+"/"+p.pod.Name, "in", delay, "err", err)
	s.reportSoon(p)
	attempt := p.attempt
	p.stopTimer()
	p.timer = time.AfterFunc(delay, func() {
		s.inbox.put(func() {
			if s.pods[p.pod.UID] == p && p.attempt == attempt && p.phase == backoff {
				s.requeue(p)
			}
		})
	})
}

// undo takes back what was assumed for the pod.
func (s *Scheduler) undo(p *pendingPod) {
	if p.decision == nil {
		return
	}
	for i := range p.decision.prebinds {
		b := &p.decision.prebinds[i]
		s.undoVolume(p, b.volume.Name, claimKey(b.claim))
	}
	for _, claim := range p.decision.provisions {
		s.undoClaim(p, claimKey(claim))
	}
	s.cluster.unplace(p.pod.UID)
	p.decision = nil
	s.wake(wakePodGone | wakeVolume)
}

func (s *Scheduler) undoVolume(p *pendingPod, name, claim string) {
	if s.cluster.unassumeVolume(name, p.pod.UID) {
		s.restart(claim, p)
	}
}

func (s *Scheduler) undoClaim(p *pendingPod, claim string) {
	if s.cluster.unassumeClaim(claim, p.pod.UID) {
		s.restart(claim, p)
	}
}

// restart has the other pods decided again that relied on what p had decided for the claim.
func (s *Scheduler) restart(claim string, p *pendingPod) {
	for _, other := range s.byClaim[claim] {
		if other != p && other.phase == awaiting {
			s.undo(other)
			s.requeue(other)
		}
	}
}

// wanted says that the pod is ours to place.
func wanted(pod *v1.Pod) bool {
	return pod.Spec.NodeName == "" && pod.DeletionTimestamp == nil && !finished(pod) && len(pod.Spec.SchedulingGates) == 0 &&
		slices.Contains([]string{v1.DefaultSchedulerName, SchedulerName, ""}, pod.Spec.SchedulerName)
}
