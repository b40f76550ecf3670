package retention

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	api "berth.io/berth/api/v1alpha1"
)

// clockSlack is how far in the future a time of the past may be before the clock is taken to have been set back. Other
// clocks (another machine's, of which this is a copy) differ by less.
const clockSlack = time.Minute

// plan is what a schedule's times say now.
type plan struct {
	// since is from when on snapshots are due; it goes into the status.
	since time.Time
	// due is the time for which snapshots are to be made now; zero when none are.
	due time.Time
	// missed: there were times before due that nobody was there for. They are not made up for: due is.
	missed bool
	// next is the first time after now; zero for a schedule that is not running.
	next time.Time
	// setBack: the clock was, behind times that this schedule has seen. They are to be forgotten.
	setBack bool

	reason, message string // of the condition
}

// planFor decides when. It has no clock: now is without a monotonic reading, in whole seconds as times of the API are.
func planFor(s *api.SnapshotSchedule, now time.Time) plan {
	now = now.UTC().Truncate(time.Second)
	t, err := parse(s.Spec.Schedule, s.Spec.TimeZone)
	switch {
	case err != nil:
		return plan{since: lastSince(s), reason: api.ReasonScheduleInvalid, message: err.Error()}
	case s.Spec.Suspend:
		return plan{since: lastSince(s), reason: api.ReasonSuspended, message: "spec.suspend is true: no snapshots are taken or deleted"}
	}
	p := plan{since: since(s, now)}
	from := p.since
	if last := s.Status.LastScheduleTime; last != nil {
		switch {
		case last.After(now.Add(clockSlack)):
			p.setBack = true
		case last.After(from):
			from = last.UTC()
		}
	}
	if from.After(now.Add(clockSlack)) {
		p.setBack = true
	}
	if p.setBack {
		p.since, from = now, now
	}
	p.due, p.missed = t.latest(from, now)
	if !p.due.IsZero() {
		from = p.due
	}
	if p.next = t.next(from); !p.next.After(now) { // from lies a moment ahead of now, or there is no time any more
		p.next = t.next(now)
	}
	p.reason, p.message = api.ReasonScheduled, "the next snapshots are due at "+p.next.Format(time.RFC3339)
	if p.next.IsZero() {
		p.reason, p.message = api.ReasonScheduleInvalid, fmt.Sprintf("spec.schedule: %q does not come again", s.Spec.Schedule)
	}
	return p
}

// since begins anew when the spec changes: a changed or resumed schedule owes nothing of the past.
func since(s *api.SnapshotSchedule, now time.Time) time.Time {
	if s.Status.Since != nil && (s.Status.ObservedGeneration != s.Generation || !scheduled(s)) {
		return now
	}
	return lastSince(s)
}

func lastSince(s *api.SnapshotSchedule) time.Time {
	if s.Status.Since != nil {
		return s.Status.Since.UTC()
	}
	return s.CreationTimestamp.UTC()
}

// scheduled says whether the schedule was running when its status was written.
func scheduled(s *api.SnapshotSchedule) bool {
	return meta.IsStatusConditionTrue(s.Status.Conditions, api.ConditionScheduled)
}
