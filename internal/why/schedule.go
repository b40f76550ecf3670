package why

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	api "berth.io/berth/api/v1alpha1"
)

// ScheduleReader reads the schedules of a namespace.
type ScheduleReader interface {
	Get(ctx context.Context, name string, o metav1.GetOptions) (*api.SnapshotSchedule, error)
	List(ctx context.Context, o metav1.ListOptions) (*api.SnapshotScheduleList, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

// ScheduleState is a SnapshotSchedule as the API shows it.
type ScheduleState struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// State is "on time", "late", "suspended", "invalid" or "not looked at".
	State    string `json:"state"`
	Schedule string `json:"schedule"`
	TimeZone string `json:"timeZone,omitempty"`
	Keep     int32  `json:"keep"`
	Group    bool   `json:"group,omitempty"`
	Selector string `json:"selector"`
	// Claims are those with a volume that the selector chooses now.
	Claims []string  `json:"claims,omitempty"`
	Last   time.Time `json:"last,omitzero"`
	Next   time.Time `json:"next,omitzero"`
	// Snapshots, or group snapshots, that it has taken and that are there, newest first.
	Snapshots []ScheduledSnapshot `json:"snapshots,omitempty"`
}

// ScheduledSnapshot is one that a schedule has taken.
type ScheduledSnapshot struct {
	Kind  Kind   `json:"kind"`
	Name  string `json:"name"`
	Claim string `json:"claim,omitempty"`
	// At is the time of the schedule for which it was taken.
	At    time.Time `json:"at,omitzero"`
	Ready bool      `json:"ready"`
}

// lateAfter is how long a time of the schedule may have passed before nobody is taken to work on it.
const lateAfter = time.Minute

// shownSnapshots is how many of the newest are printed.
const shownSnapshots = 5

// scheduleFacts are the objects around a schedule.
type scheduleFacts struct {
	schedule  *api.SnapshotSchedule
	now       time.Time
	claims    []string // with a volume
	unbound   []string
	snapshots []ScheduledSnapshot
	unread    []string
	events    []v1.Event
}

// explainSchedule answers for a SnapshotSchedule.
func explainSchedule(ctx context.Context, s Sources, t Target) (*Journey, error) {
	if s.Schedules == nil || s.Snapshots == nil {
		return nil, fmt.Errorf("%s: schedules cannot be asked for here", t)
	}
	if s.Now.IsZero() {
		s.Now = time.Now()
	}
	schedule, err := s.Schedules(t.Namespace).Get(ctx, t.Name, metav1.GetOptions{})
	if err != nil {
		return nil, s.notRead(ctx, t, err, "SnapshotSchedules (their CRD, group storage.berth.io, is not installed)", func() []types.NamespacedName {
			list, err := s.Schedules("").List(ctx, metav1.ListOptions{})
			if err != nil {
				return nil
			}
			return namesOf(list.Items)
		})
	}
	c := collector{reader: newReader(ctx, s.Client, false), facts: &facts{}}
	f, err := c.schedule(s, schedule)
	if err != nil {
		return nil, err
	}
	j := &Journey{Target: t, Asked: s.Now, Schedule: f.state()}
	j.leftOut(c.unreadable)
	for _, why := range scheduleCauses {
		if waiting, problem := why(f); waiting != nil {
			j.Waiting, j.Problem = waiting, problem
			break
		}
	}
	if f.reason() != api.ReasonSuspended && (j.Problem == nil || j.Problem.Cause != "schedule-invalid") {
		known := j.Problem != nil
		if j.Problem = lastTold(j.Problem, f.skipped()); !known && j.Problem != nil && j.Problem.Cause == "" {
			j.Problem.Advice = "It is tried again at its next time."
		}
	}
	j.retell(&s)
	return j, nil
}

func (c *collector) schedule(s Sources, schedule *api.SnapshotSchedule) (*scheduleFacts, error) {
	f := &scheduleFacts{schedule: schedule, now: s.Now}
	claims, err := c.claims(schedule.Namespace)
	if err != nil {
		return nil, err
	}
	if selector, err := metav1.LabelSelectorAsSelector(&schedule.Spec.Selector); err == nil { // otherwise its condition tells it
		for i := range claims {
			switch {
			case !selector.Matches(labels.Set(claims[i].Labels)):
			case claims[i].Status.Phase == v1.ClaimBound:
				f.claims = append(f.claims, claims[i].Name)
			default:
				f.unbound = append(f.unbound, claims[i].Name)
			}
		}
	}
	if err := c.taken(s, f); err != nil {
		return nil, err
	}
	f.unread = c.unreadable
	f.events, err = c.events(schedule.Namespace, "SnapshotSchedule", schedule.Name, schedule.CreationTimestamp.Time)
	return f, err
}

// taken finds what the schedule has taken, newest first.
func (c *collector) taken(s Sources, f *scheduleFacts) error {
	of := metav1.ListOptions{LabelSelector: api.LabelScheduleUID + "=" + string(f.schedule.UID)}
	snapshots, err := s.Snapshots.SnapshotV1().VolumeSnapshots(f.schedule.Namespace).List(c.ctx, of)
	if err == nil {
		for i := range snapshots.Items {
			o := &snapshots.Items[i]
			one := ScheduledSnapshot{Kind: Snapshot, Name: o.Name, At: scheduledAt(o), Ready: o.Status != nil && o.Status.ReadyToUse != nil && *o.Status.ReadyToUse}
			if name := o.Spec.Source.PersistentVolumeClaimName; name != nil {
				one.Claim = *name
			}
			f.snapshots = append(f.snapshots, one)
		}
	} else if err := c.absent("volumesnapshots", err); err != nil {
		return err
	}
	if f.schedule.Spec.Group {
		groups, err := s.Snapshots.GroupsnapshotV1().VolumeGroupSnapshots(f.schedule.Namespace).List(c.ctx, of)
		if err == nil {
			for i := range groups.Items {
				o := &groups.Items[i]
				f.snapshots = append(f.snapshots, ScheduledSnapshot{Kind: Group, Name: o.Name, At: scheduledAt(o),
					Ready: o.Status != nil && o.Status.ReadyToUse != nil && *o.Status.ReadyToUse})
			}
		} else if err := c.absent("volumegroupsnapshots", err); err != nil {
			return err
		}
	}
	slices.SortFunc(f.snapshots, func(a, b ScheduledSnapshot) int {
		if order := b.At.Compare(a.At); order != 0 {
			return order
		}
		return strings.Compare(a.Name, b.Name)
	})
	return nil
}

// scheduledAt is the time of the schedule for which a snapshot was taken.
func scheduledAt(o metav1.Object) time.Time {
	at, err := time.Parse(time.RFC3339, o.GetAnnotations()[api.AnnotationScheduledAt])
	if err != nil {
		return o.GetCreationTimestamp().Time
	}
	return at
}

// reason of its condition; empty while nobody has looked at the schedule as it is now.
func (f *scheduleFacts) reason() string {
	c := apimeta.FindStatusCondition(f.schedule.Status.Conditions, api.ConditionScheduled)
	if c == nil || f.schedule.Status.ObservedGeneration < f.schedule.Generation {
		return ""
	}
	return c.Reason
}

func (f *scheduleFacts) late() bool {
	next := f.schedule.Status.NextScheduleTime
	return next != nil && f.now.Sub(next.Time) > lateAfter
}

func (f *scheduleFacts) state() *ScheduleState {
	spec := &f.schedule.Spec
	s := &ScheduleState{Namespace: f.schedule.Namespace, Name: f.schedule.Name, State: "on time", Schedule: spec.Schedule, TimeZone: spec.TimeZone, Keep: spec.Keep, Group: spec.Group,
		Selector: selectorText(&spec.Selector), Claims: f.claims, Snapshots: f.snapshots}
	if at := f.schedule.Status.LastScheduleTime; at != nil {
		s.Last = at.Time
	}
	if at := f.schedule.Status.NextScheduleTime; at != nil {
		s.Next = at.Time
	}
	switch reason := f.reason(); {
	case reason == "":
		s.State = "not looked at"
	case reason == api.ReasonSuspended:
		s.State = "suspended"
	case reason == api.ReasonScheduleInvalid:
		s.State = "invalid"
	case f.late():
		s.State = "late"
	}
	return s
}

// skipped are the events that warn of the last time of the schedule, or of something since.
func (f *scheduleFacts) skipped() []complaint {
	since := f.schedule.Status.LastScheduleTime
	if since == nil {
		since = f.schedule.Status.Since
	}
	return warnings(nil, f.events, since)
}

// scheduleCauses are asked in order: what the schedule waits for, and what is wrong, where something is. The first that has an answer is
// told. A schedule that is on time waits for nothing.
var scheduleCauses = []func(f *scheduleFacts) (*Waiting, *Problem){
	func(f *scheduleFacts) (*Waiting, *Problem) {
		switch f.reason() {
		case "":
			return &Waiting{For: "the controller of schedules to look at it", Since: f.schedule.CreationTimestamp.Time}, nil
		case api.ReasonScheduleInvalid:
			c := apimeta.FindStatusCondition(f.schedule.Status.Conditions, api.ConditionScheduled)
			return &Waiting{For: "the schedule to be corrected", Since: c.LastTransitionTime.Time}, &Problem{Cause: "schedule-invalid", What: "The schedule cannot be read: " + c.Message + ".",
				Advice: "Correct it (kubectl edit snapshotschedule " + f.schedule.Name + "); no snapshots are taken, and none deleted, until then."}
		case api.ReasonSuspended:
			c := apimeta.FindStatusCondition(f.schedule.Status.Conditions, api.ConditionScheduled)
			return &Waiting{For: "spec.suspend to be false again", Since: c.LastTransitionTime.Time}, nil
		}
		return nil, nil
	},
	func(f *scheduleFacts) (*Waiting, *Problem) {
		if !f.late() {
			return nil, nil
		}
		next := f.schedule.Status.NextScheduleTime.Time
		return &Waiting{For: "the controller of schedules", Since: next}, &Problem{Cause: "schedule-late",
			What: "Its time has passed, and no snapshots were asked for: nobody works on schedules.", Advice: "See berth status. When it works again, snapshots are taken for the last time that passed."}
	},
	func(f *scheduleFacts) (*Waiting, *Problem) {
		if len(f.claims) > 0 || slices.Contains(f.unread, "persistentvolumeclaims") {
			return nil, nil
		}
		selector := selectorText(&f.schedule.Spec.Selector)
		p := &Problem{Cause: "no-claims-selected", What: fmt.Sprintf("No claim in namespace %s that has a volume has the labels %s.", f.schedule.Namespace, selector),
			Advice: "Label the claims that are meant (kubectl label pvc NAME …), or change spec.selector."}
		if len(f.unbound) > 0 {
			p.What, p.Advice = "None of its claims has a volume yet: "+strings.Join(f.unbound, ", ")+".", "See berth why pvc/"+f.unbound[0]+"."
		}
		return &Waiting{For: "a claim with a volume"}, p
	},
	func(f *scheduleFacts) (*Waiting, *Problem) {
		for _, s := range f.snapshots {
			if !s.Ready && f.now.Sub(s.At) > lateAfter {
				return &Waiting{For: string(s.Kind) + " " + s.Name + " to be ready", Since: s.At}, &Problem{Cause: "snapshot-not-ready",
					What: "A snapshot that it has asked for is not ready.", Advice: "See berth why " + string(s.Kind) + "/" + s.Name + "."}
			}
		}
		return nil, nil
	},
}

// schedule prints a schedule's part.
func (p *printer) schedule(j *Journey) {
	s := j.Schedule
	when := func(at time.Time) string { return at.In(p.Location).Format("2006-01-02 15:04:05") }
	line := []string{s.State, fmt.Sprintf("%q", s.Schedule)}
	add(&line, s.TimeZone, "%s")
	line = append(line, fmt.Sprintf("keeps %d", s.Keep))
	p.printf("%s  %s\n", p.paint(bold, "snapshot schedule "+s.Namespace+"/"+s.Name), strings.Join(line, "  "))
	what := "of each of"
	if s.Group {
		what = "of all at one instant of"
	}
	if len(s.Claims) > 0 {
		p.printf("%s the claims with %s: %s\n", what, s.Selector, strings.Join(s.Claims, ", "))
	}
	var times []string
	if !s.Last.IsZero() {
		times = append(times, "last "+when(s.Last))
	}
	if !s.Next.IsZero() {
		times = append(times, "next "+when(s.Next))
	}
	if len(times) > 0 {
		p.printf("%s\n", strings.Join(times, ", "))
	}
	for _, one := range s.Snapshots[:min(shownSnapshots, len(s.Snapshots))] {
		state := "not ready"
		if one.Ready {
			state = "ready"
		}
		line := []string{fmt.Sprintf("%s/%s", one.Kind, one.Name)}
		add(&line, one.Claim, "of claim %s")
		p.printf("  %s  %s  %s\n", when(one.At), strings.Join(line, "  "), state)
	}
	if more := len(s.Snapshots) - shownSnapshots; more > 0 {
		p.printf("  and %s before\n", count(more, "other"))
	}
	p.trouble(j.Waiting, j.Problem)
	p.printf("\n")
}
