package why

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	snapfake "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/fake"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/ptr"

	api "berth.io/berth/api/v1alpha1"
)

// schedules has one namespace's.
type schedules []api.SnapshotSchedule

func (s schedules) Get(_ context.Context, name string, _ metav1.GetOptions) (*api.SnapshotSchedule, error) {
	for i := range s {
		if s[i].Name == name {
			return &s[i], nil
		}
	}
	return nil, apierrors.NewNotFound(api.SnapshotScheduleResource.GroupResource(), name)
}

func (s schedules) List(context.Context, metav1.ListOptions) (*api.SnapshotScheduleList, error) {
	return &api.SnapshotScheduleList{Items: s}, nil
}

func (s schedules) Watch(context.Context, metav1.ListOptions) (watch.Interface, error) {
	return nil, errors.New("nobody watches here")
}

func nightly(reason string, edit ...func(*api.SnapshotSchedule)) api.SnapshotSchedule {
	s := api.SnapshotSchedule{ObjectMeta: meta("default", "nightly"), Spec: api.SnapshotScheduleSpec{Schedule: "0 2 * * *", TimeZone: "Europe/Berlin", Keep: 7,
		Selector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}}}}
	s.Generation = 1
	if reason != "" {
		s.Status = api.SnapshotScheduleStatus{ObservedGeneration: 1, Since: ptr.To(metav1.NewTime(at(0))), NextScheduleTime: ptr.To(metav1.NewTime(at(15 * time.Hour))),
			Conditions: []metav1.Condition{{Type: api.ConditionScheduled, Status: metav1.ConditionTrue, Reason: reason, LastTransitionTime: metav1.NewTime(at(time.Second))}}}
	}
	for _, f := range edit {
		f(&s)
	}
	return s
}

func last(d time.Duration) func(*api.SnapshotSchedule) {
	return func(s *api.SnapshotSchedule) { s.Status.LastScheduleTime = ptr.To(metav1.NewTime(at(d))) }
}

// scheduled is a snapshot that the schedule has taken.
func scheduled(name, claim string, when time.Duration, ready bool) *snapv1.VolumeSnapshot {
	return snapshot(claim, func(s *snapv1.VolumeSnapshot) {
		s.Name, s.Labels = name, map[string]string{api.LabelSchedule: "nightly", api.LabelScheduleUID: "nightly-uid"}
		s.Annotations = map[string]string{api.AnnotationScheduledAt: at(when).Format(time.RFC3339)}
		s.Status = &snapv1.VolumeSnapshotStatus{ReadyToUse: &ready}
	})
}

// TestScheduleText compares what a person reads about a schedule with testdata/schedule-NAME.txt.
func TestScheduleText(t *testing.T) {
	there := cluster(claim("data", "berth-block", bound, labelled), volume("data"), claim("other", "berth-block", bound), volume("other"))
	var many []runtime.Object
	for i := range 8 {
		many = append(many, scheduled(fmt.Sprintf("nightly-%d", i), "data", -time.Duration(i)*24*time.Hour, true))
	}
	of := groupv1.VolumeGroupSnapshot{ObjectMeta: scheduled("nightly-g", "", 30*time.Second, true).ObjectMeta, Status: &groupv1.VolumeGroupSnapshotStatus{ReadyToUse: ptr.To(true)}}
	for name, c := range map[string]struct {
		objects   []runtime.Object
		snapshots []runtime.Object
		schedule  api.SnapshotSchedule
		cause     string
		waits     bool
	}{
		"on-time":        {there, append(many, snapshot("data", takenAt(time.Second))), nightly(api.ReasonScheduled, last(0)), "", false},
		"group":          {there, []runtime.Object{&of}, nightly(api.ReasonScheduled, func(s *api.SnapshotSchedule) { s.Spec.Group = true }), "", false},
		"not-looked-at":  {there, nil, nightly(""), "", true},
		"changed-since":  {there, nil, nightly(api.ReasonScheduled, func(s *api.SnapshotSchedule) { s.Generation = 2 }), "", true},
		"suspended":      {there, nil, nightly(api.ReasonSuspended, func(s *api.SnapshotSchedule) { s.Status.NextScheduleTime = nil }), "", true},
		"late":           {there, nil, nightly(api.ReasonScheduled, func(s *api.SnapshotSchedule) { s.Status.NextScheduleTime = ptr.To(metav1.NewTime(at(-time.Hour))) }), "schedule-late", true},
		"no-claims":      {cluster(claim("data", "berth-block", bound), volume("data")), nil, nightly(api.ReasonScheduled), "no-claims-selected", true},
		"claims-pending": {cluster(claim("data", "berth-block", labelled)), nil, nightly(api.ReasonScheduled), "no-claims-selected", true},
		"not-ready":      {there, []runtime.Object{scheduled("nightly-1", "data", -2*time.Minute, false)}, nightly(api.ReasonScheduled, last(-2*time.Minute)), "snapshot-not-ready", true},
		"invalid": {append(there[:len(there):len(there)], event("SnapshotSchedule", "nightly", v1.EventTypeWarning, "ScheduleInvalid", "expected exactly 5 fields", 2*time.Second, 1)), nil,
			nightly(api.ReasonScheduleInvalid, func(s *api.SnapshotSchedule) {
				s.Spec.Schedule, s.Status.NextScheduleTime = "0 2 * *", nil
				s.Status.Conditions[0].Status, s.Status.Conditions[0].Message = metav1.ConditionFalse, "expected exactly 5 fields, found 4: [0 2 * *]"
			}), "schedule-invalid", true},
		"skipped-one": {append(there[:len(there):len(there)], event("SnapshotSchedule", "nightly", v1.EventTypeWarning, "SnapshotsSkipped", "at 2026-03-01T10:00:10Z: claim wal is being deleted", 11*time.Second, 1)),
			[]runtime.Object{scheduled("nightly-1", "data", 10*time.Second, true)}, nightly(api.ReasonScheduled, last(10*time.Second)), "", false},
		"skipped-before": {append(there[:len(there):len(there)], event("SnapshotSchedule", "nightly", v1.EventTypeWarning, "SnapshotsSkipped", "at 2026-03-01T10:00:10Z: claim wal is being deleted", 11*time.Second, 1)),
			[]runtime.Object{scheduled("nightly-2", "data", 30*time.Second, true)}, nightly(api.ReasonScheduled, last(30*time.Second)), "", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := Sources{Client: fake.NewClientset(c.objects...), Now: at(time.Minute),
				//lint:ignore SA1019 NewClientset is not generated for snapshots
				Snapshots: snapfake.NewSimpleClientset(c.snapshots...), Schedules: func(string) ScheduleReader { return schedules{c.schedule} }}
			readAs(t, s, "snapsched/nightly", "schedule-"+name, c.cause, c.waits)
		})
	}
}

// A schedule that is not there: near names are suggested, with its kind.
func TestUnknownSchedule(t *testing.T) {
	//lint:ignore SA1019 NewClientset is not generated for snapshots
	s := Sources{Client: fake.NewClientset(), Snapshots: snapfake.NewSimpleClientset(), Schedules: func(string) ScheduleReader { return schedules{nightly("")} }}
	_, err := Explain(t.Context(), s, Target{Kind: Schedule, Namespace: "default", Name: "nightl"})
	var unknown *ErrUnknown
	if !errors.As(err, &unknown) || !strings.Contains(err.Error(), "did you mean snapshotschedule/nightly?") {
		t.Errorf("got %v", err)
	}
}
