package retention

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	api "berth.io/berth/api/v1alpha1"
)

// reconcile does what a schedule asks for now: makes what is due, deletes what is too much, says when it is due again.
func (c *Controller) reconcile(ctx context.Context, key string) error {
	o, exists, err := c.schedules.GetIndexer().GetByKey(key)
	if err != nil {
		return err
	}
	if !exists {
		c.forget(key, true)
		return c.wakeAt(key, time.Time{}, false)
	}
	s := o.(*api.SnapshotSchedule)
	if s.DeletionTimestamp != nil {
		return c.wakeAt(key, time.Time{}, false)
	}
	now := c.now().Round(0)
	p := planFor(s, now)
	claims, selectorErr := c.selected(s)
	if selectorErr != nil {
		p = plan{since: lastSince(s), reason: api.ReasonScheduleInvalid, message: selectorErr.Error()}
	}
	all := c.madeBy(s)
	var failed error
	if !p.due.IsZero() && !c.fired(s, p.due) {
		if failed = c.fire(ctx, s, p, claims, all); failed == nil {
			c.note(s, p.due)
		}
	}
	if p.reason != api.ReasonSuspended {
		failed = errors.Join(failed, c.drop(ctx, s, "retention", surplus(all, int(s.Spec.Keep), now)))
	}
	next := statusFor(s, p, all, len(claims), failed == nil, now)
	if err := c.wakeAt(key, p.next, true); err != nil {
		return err
	}
	if !equality.Semantic.DeepEqual(next, s.Status) {
		failed = errors.Join(failed, c.writeStatus(ctx, s, next))
	}
	c.say(s, p, next, now)
	return failed
}

// selected are the names of the claims that the schedule selects and that can be snapshotted: bound, and not being deleted.
func (c *Controller) selected(s *api.SnapshotSchedule) ([]string, error) {
	selector, err := metav1.LabelSelectorAsSelector(&s.Spec.Selector)
	if err != nil {
		return nil, fmt.Errorf("spec.selector: %w", err)
	}
	found, err := c.claims.PersistentVolumeClaims(s.Namespace).List(selector)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, claim := range found {
		if claim.Status.Phase == v1.ClaimBound && claim.DeletionTimestamp == nil {
			names = append(names, claim.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// fire makes what is due at p.due. It may be called again for the same time; the error is of what is to be tried again.
func (c *Controller) fire(ctx context.Context, s *api.SnapshotSchedule, p plan, claims []string, all []made) error {
	wanted := claims
	if s.Spec.Group && len(claims) > 0 {
		wanted = []string{""}
	}
	x := pick(wanted, all, p.due)
	var left []string
	for _, m := range x.busy {
		left = append(left, fmt.Sprintf("%s is not ready to use yet, so that no other is taken of %s", m.name, ofWhat(m.of)))
	}
	failed := c.drop(ctx, s, "failed", x.drop)
	count := 0
	for _, claim := range x.make {
		switch fresh, err := c.make(ctx, s, claim, p.due); {
		case fresh:
			count++
		case err == nil:
		case final(err):
			left = append(left, err.Error())
		default:
			failed = errors.Join(failed, err)
		}
	}
	c.metrics.made.Add(float64(count))
	if len(claims) == 0 {
		left = append(left, "spec.selector selects no claim that is bound")
	}
	c.metrics.skipped.Add(float64(len(left)))
	if len(left) > 0 {
		c.sayLeft(s, p.due, left)
	} else {
		c.forget(s.Namespace+"/"+s.Name, false)
	}
	if count > 0 && failed == nil {
		c.event(s, v1.EventTypeNormal, "SnapshotsRequested", fmt.Sprintf("for %s: asked for %s", p.due.Format(time.RFC3339), snapshotsOf(s, count)))
	}
	return failed
}

func snapshotsOf(s *api.SnapshotSchedule, claims int) string {
	switch {
	case s.Spec.Group:
		return "a group snapshot"
	case claims == 1:
		return "a snapshot of 1 claim"
	}
	return fmt.Sprintf("snapshots of %d claims", claims)
}

func ofWhat(claim string) string {
	if claim == "" {
		return "the group"
	}
	return "claim " + claim
}

// statusFor is the status to be. done: what was due is made.
func statusFor(s *api.SnapshotSchedule, p plan, all []made, claims int, done bool, now time.Time) api.SnapshotScheduleStatus {
	st := *s.Status.DeepCopy()
	st.ObservedGeneration = s.Generation
	st.Since = &metav1.Time{Time: p.since}
	st.Claims, st.Snapshots, st.Ready = int32(claims), 0, 0
	for _, m := range all {
		st.Snapshots++
		if m.ready {
			st.Ready++
		}
	}
	if p.setBack {
		st.LastScheduleTime = nil
	}
	if done && !p.due.IsZero() {
		st.LastScheduleTime = &metav1.Time{Time: p.due}
	}
	st.NextScheduleTime = nil
	if !p.next.IsZero() {
		st.NextScheduleTime = &metav1.Time{Time: p.next}
	}
	condition := metav1.Condition{Type: api.ConditionScheduled, Status: metav1.ConditionFalse, Reason: p.reason, Message: p.message,
		ObservedGeneration: s.Generation, LastTransitionTime: metav1.NewTime(now.Truncate(time.Second))}
	if p.reason == api.ReasonScheduled {
		condition.Status = metav1.ConditionTrue
		condition.Message = "snapshots are taken by the schedule"
	}
	meta.SetStatusCondition(&st.Conditions, condition)
	return st
}

// say tells what has changed with the status.
func (c *Controller) say(s *api.SnapshotSchedule, p plan, next api.SnapshotScheduleStatus, now time.Time) {
	had := meta.FindStatusCondition(s.Status.Conditions, api.ConditionScheduled)
	if p.reason == api.ReasonScheduleInvalid && (had == nil || had.Reason != p.reason || had.Message != p.message) {
		c.event(s, v1.EventTypeWarning, api.ReasonScheduleInvalid, p.message)
	}
	if p.setBack {
		c.event(s, v1.EventTypeWarning, "ClockSetBack", "the clock was set back behind the schedule's last time; it goes on from now, and what was taken in the future counts as the oldest")
	}
	if late := now.Sub(p.due) > clockSlack; !p.due.IsZero() && (p.missed || late) && next.LastScheduleTime != nil && next.LastScheduleTime.Time.Equal(p.due) {
		c.event(s, v1.EventTypeWarning, "TimesMissed", "times of the schedule passed while nothing ran; snapshots were taken for the last one, "+p.due.Format(time.RFC3339))
	}
}

// sayLeft tells of what a run left out, once until it is another thing.
func (c *Controller) sayLeft(s *api.SnapshotSchedule, due time.Time, left []string) {
	key, text := s.Namespace+"/"+s.Name, strings.Join(left, "; ")
	c.mu.Lock()
	news := c.told[key] != text
	c.told[key] = text
	c.mu.Unlock()
	if news {
		c.event(s, v1.EventTypeWarning, "SnapshotsSkipped", "at "+due.Format(time.RFC3339)+": "+text)
	}
}

// forget what was told; all: the schedule is gone.
func (c *Controller) forget(key string, all bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.told, key)
	if all {
		delete(c.done, key)
	}
}

// run is one time of one schedule.
type run struct {
	uid types.UID
	due time.Time
}

// fired says that this process has made what is due: the informer may not show the status yet that says so.
func (c *Controller) fired(s *api.SnapshotSchedule, due time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done[s.Namespace+"/"+s.Name] == run{s.UID, due}
}

func (c *Controller) note(s *api.SnapshotSchedule, due time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done[s.Namespace+"/"+s.Name] = run{s.UID, due}
}

func (c *Controller) event(s *api.SnapshotSchedule, kind, reason, message string) {
	if c.opts.Events != nil {
		c.opts.Events.Event(s, kind, reason, message)
	}
}
