package schedule

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/trace"
)

// eventLimit is the API's limit for an event's message; upstream cuts at the same length.
const eventLimit = 1024

// reportedMessage is what the pod's condition says already, so that a restart does not tell it again.
func reportedMessage(pod *v1.Pod) string {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == v1.PodScheduled && c.Status == v1.ConditionFalse {
			return c.Message
		}
	}
	return ""
}

// reportSoon tells the pod's refusal unless it passes within the delay. The delay runs from the first refusal: a pod
// that is decided again and again is told about all the same.
func (s *Scheduler) reportSoon(p *pendingPod) {
	if p.reportTimer != nil {
		return
	}
	p.reportTimer = time.AfterFunc(s.ReportDelay, func() {
		s.inbox.put(func() {
			p.reportTimer = nil
			if s.pods[p.pod.UID] == p && (p.phase == refused || p.phase == backoff) {
				s.report(p)
			}
		})
	})
}

// report tells a refusal, once: as an event, as the pod's condition and in its claims' traces.
func (s *Scheduler) report(p *pendingPod) {
	message, reason := p.refusal.message, v1.PodReasonUnschedulable
	if p.refusal.failed {
		reason = v1.PodReasonSchedulerError
	}
	if message == p.reported {
		return
	}
	p.reported = message
	state := trace.Waiting
	if p.refusal.failed {
		state = trace.Failed
	}
	s.trace(p, state, message)
	s.Events.Event(p.pod, v1.EventTypeWarning, "FailedScheduling", shortened(message))

	pod := p.pod
	condition := v1.PodCondition{
		Type: v1.PodScheduled, Status: v1.ConditionFalse, Reason: reason, Message: message,
		ObservedGeneration: pod.Generation, LastTransitionTime: metav1.Now(),
	}
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == v1.PodScheduled && c.Status == v1.ConditionFalse {
			condition.LastTransitionTime = c.LastTransitionTime
		}
	}
	// A strategic merge patch merges conditions by type: the node's own conditions stay.
	body := patch{Metadata: patchMetadata{UID: pod.UID}, Status: map[string]any{"conditions": []v1.PodCondition{condition}}}
	s.write(func(ctx context.Context) error {
		return boundary.Do("schedule/report-unschedulable", func() error {
			_, err := s.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, body.bytes(), metav1.PatchOptions{}, "status")
			return err
		})
	}, func(err error) {
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			s.Log.Warn("tell why the pod has no node", "pod", pod.Namespace+"/"+pod.Name, "err", err)
			if p.reported == message {
				p.reported = reportedMessage(pod) // tell it with the next refusal
			}
		}
	})
}

func shortened(message string) string {
	const suffix = " ..."
	if len(message) <= eventLimit {
		return message
	}
	return message[:eventLimit-len(suffix)] + suffix
}

// trace records the same for the pod and each of its claims, so that either shows it.
func (s *Scheduler) trace(p *pendingPod, state trace.State, detail string) {
	e := trace.Entry{Time: p.since, Step: trace.Scheduled, State: state, Detail: detail, Pod: trace.Pod(p.pod)}
	if p.decision != nil {
		e.Node = p.decision.node
	}
	s.Trace.Record(e)
	for _, key := range claimKeys(p.pod) {
		if claim := s.cluster.claim(key); claim != nil && !fullyBound(claim) {
			e.Claim = trace.Claim(claim)
			s.Trace.Record(e)
		}
	}
}

// traceAwaiting records what the pod waits for now, when that has changed.
func (s *Scheduler) traceAwaiting(p *pendingPod, claims []string) {
	if detail := "waiting for claims to be bound on node " + p.decision.node + ": " + quoted(claims); detail != p.told {
		p.told = detail
		s.Trace.Record(trace.Entry{Time: p.since, Step: trace.Scheduled, State: trace.Waiting, Detail: detail, Pod: trace.Pod(p.pod), Node: p.decision.node})
	}
}
