package retention

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	api "berth.io/berth/api/v1alpha1"
)

func schedule(change ...func(*api.SnapshotSchedule)) *api.SnapshotSchedule {
	s := &api.SnapshotSchedule{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "hourly", UID: "uid", Generation: 1, CreationTimestamp: metav1.NewTime(at("2026-01-01T00:10:00Z"))},
		Spec:       api.SnapshotScheduleSpec{Schedule: "@hourly", Keep: 2},
	}
	s.SetGroupVersionKind(api.SnapshotScheduleKind)
	for _, f := range change {
		f(s)
	}
	return s
}

func ranLast(t string) func(*api.SnapshotSchedule) {
	return func(s *api.SnapshotSchedule) {
		when := metav1.NewTime(at(t))
		s.Status.LastScheduleTime, s.Status.Since, s.Status.ObservedGeneration = &when, &s.CreationTimestamp, s.Generation
		s.Status.Conditions = []metav1.Condition{{Type: api.ConditionScheduled, Status: metav1.ConditionTrue, Reason: api.ReasonScheduled}}
	}
}

func TestWhenSnapshotsAreDue(t *testing.T) {
	for name, c := range map[string]struct {
		s              *api.SnapshotSchedule
		now, due, next string
		missed         bool
		setBack        bool
		reason         string
	}{
		"made, and its first time is ahead": {s: schedule(), now: "2026-01-01T00:59:59Z", next: "2026-01-01T01:00:00Z"},
		"its first time":                    {s: schedule(), now: "2026-01-01T01:00:00Z", due: "2026-01-01T01:00:00Z", next: "2026-01-01T02:00:00Z"},
		"done for this hour":                {s: schedule(ranLast("2026-01-01T01:00:00Z")), now: "2026-01-01T01:00:01Z", next: "2026-01-01T02:00:00Z"},
		"a night off: one run for all":      {s: schedule(every("@every 1h"), ranLast("2026-01-01T01:00:00Z")), now: "2026-01-01T09:30:00Z", due: "2026-01-01T09:00:00Z", missed: true, next: "2026-01-01T10:00:00Z"},
		"clock set forward by a year":       {s: schedule(ranLast("2026-01-01T01:00:00Z")), now: "2027-01-01T09:30:00Z", due: "2027-01-01T09:00:00Z", missed: true, next: "2027-01-01T10:00:00Z"},
		"clock set back by a year":          {s: schedule(ranLast("2027-01-01T01:00:00Z")), now: "2026-01-01T09:30:00Z", setBack: true, next: "2026-01-01T10:00:00Z"},
		"clock set back by a second":        {s: schedule(ranLast("2026-01-01T01:00:00Z")), now: "2026-01-01T00:59:59Z", next: "2026-01-01T02:00:00Z"},
		"made in a future that went away":   {s: schedule(), now: "2025-01-01T00:30:00Z", setBack: true, next: "2025-01-01T01:00:00Z"},
		"suspended":                         {s: schedule(suspend, ranLast("2026-01-01T01:00:00Z")), now: "2026-01-01T09:30:00Z", reason: api.ReasonSuspended},
		"resumed: the past is not owed":     {s: schedule(ranLast("2026-01-01T01:00:00Z"), wasSuspended), now: "2026-01-01T09:30:00Z", next: "2026-01-01T10:00:00Z"},
		"changed: the past is not owed":     {s: schedule(ranLast("2026-01-01T01:00:00Z"), changed), now: "2026-01-01T09:30:00Z", next: "2026-01-01T10:00:00Z"},
		"does not parse":                    {s: schedule(every("@sometimes"), ranLast("2026-01-01T01:00:00Z")), now: "2026-01-01T09:30:00Z", reason: api.ReasonScheduleInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			p := planFor(c.s, at(c.now))
			if c.reason == "" {
				c.reason = api.ReasonScheduled
			}
			if show(p.due) != c.due || show(p.next) != c.next || p.missed != c.missed || p.setBack != c.setBack || p.reason != c.reason {
				t.Errorf("due %q, next %q, missed %v, set back %v, %s: %s", show(p.due), show(p.next), p.missed, p.setBack, p.reason, p.message)
			}
			// What the status says must lead to the same again, or a write would follow each write.
			again := c.s.DeepCopy()
			again.Status = statusFor(c.s, p, nil, 1, true, at(c.now))
			if twice := planFor(again, at(c.now)); !twice.due.IsZero() || twice.setBack || !twice.since.Equal(p.since) || !twice.next.Equal(p.next) {
				t.Errorf("asked again: %+v after %+v", twice, p)
			}
		})
	}
}

func every(what string) func(*api.SnapshotSchedule) {
	return func(s *api.SnapshotSchedule) { s.Spec.Schedule = what }
}

func suspend(s *api.SnapshotSchedule) { s.Spec.Suspend = true }

func wasSuspended(s *api.SnapshotSchedule) {
	s.Status.Conditions[0].Status, s.Status.Conditions[0].Reason = metav1.ConditionFalse, api.ReasonSuspended
}

func changed(s *api.SnapshotSchedule) { s.Generation++ }

func show(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// names reads "claim@hour[!failed|~under way|x deleting]".
func mades(texts ...string) (all []made) {
	for _, text := range texts {
		m := made{ready: true, name: text}
		switch {
		case strings.HasSuffix(text, "!"):
			m.ready, m.failed = false, true
		case strings.HasSuffix(text, "~"):
			m.ready = false
		case strings.HasSuffix(text, "x"):
			m.deleting = true
		}
		var hour int
		m.of, _, _ = strings.Cut(text, "@")
		fmt.Sscanf(strings.TrimRight(text[len(m.of)+1:], "!~x"), "%d", &hour)
		m.at = at("2026-01-01T00:00:00Z").Add(time.Duration(hour) * time.Hour)
		all = append(all, m)
	}
	return all
}

func namesOf(all []made) string {
	var names []string
	for _, m := range all {
		names = append(names, m.name)
	}
	return strings.Join(names, " ")
}

func TestWhatMayGo(t *testing.T) {
	for name, c := range map[string]struct {
		all, gone string
		keep      int
		now       string
	}{
		"fewer than keep":                   {all: "a@1 a@2", keep: 2},
		"one too many: the oldest":          {all: "a@2 a@1 a@3", keep: 2, gone: "a@1"},
		"each claim for itself":             {all: "a@1 a@2 a@3 b@1 b@2", keep: 2, gone: "a@1"},
		"failed ones push nothing out":      {all: "a@1 a@2 a@3! a@4! a@5!", keep: 2},
		"one under way pushes nothing out":  {all: "a@1 a@2 a@3~", keep: 2},
		"what goes already does not count":  {all: "a@1x a@2 a@3", keep: 2},
		"keep was lowered":                  {all: "a@1 a@2 a@3 a@4", keep: 1, gone: "a@1 a@2 a@3"},
		"dated in the future: older":        {all: "a@90 a@91 a@1", keep: 2, gone: "a@90", now: "2026-01-01T02:00:00Z"},
		"and all of them go before the new": {all: "a@90 a@91 a@1 a@2", keep: 2, gone: "a@90 a@91", now: "2026-01-01T02:00:00Z"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.now == "" {
				c.now = "2027-01-01T00:00:00Z"
			}
			if got := namesOf(surplus(mades(strings.Fields(c.all)...), c.keep, at(c.now))); got != c.gone {
				t.Errorf("%q may go", got)
			}
		})
	}
}

func TestWhatARunMakes(t *testing.T) {
	for name, c := range map[string]struct{ claims, all, make, drop, busy string }{
		"the first":                        {claims: "a b", make: "a b"},
		"beside what there is":             {claims: "a", all: "a@1 a@2", make: "a"},
		"what a killed run had made":       {claims: "a b", all: "a@5~", make: "b"},
		"in place of a failed one":         {claims: "a", all: "a@1 a@4!", make: "a", drop: "a@4!"},
		"not beside one under way":         {claims: "a b", all: "a@4~ b@4", make: "b", busy: "a@4~"},
		"one that is being deleted is not": {claims: "a", all: "a@4x", make: "a"},
		"nothing of other claims":          {claims: "a", all: "gone@3! gone@4", make: "a"},
	} {
		t.Run(name, func(t *testing.T) {
			p := pick(strings.Fields(c.claims), mades(strings.Fields(c.all)...), at("2026-01-01T05:00:00Z"))
			if strings.Join(p.make, " ") != c.make || namesOf(p.drop) != c.drop || namesOf(p.busy) != c.busy {
				t.Errorf("make %q, drop %q, busy %q", p.make, namesOf(p.drop), namesOf(p.busy))
			}
		})
	}
}

func TestNamesAreTheSameForTheSameAndNoOthers(t *testing.T) {
	when := at("2026-01-01T05:00:00Z")
	long := strings.Repeat("x", 252) + "y"
	seen := map[string]string{}
	for _, c := range []struct{ schedule, uid, claim string }{{"a", "1", "b-c"}, {"a-b", "2", "c"}, {"a", "3", "b-c"}, {"a", "1", ""}, {"a", "1", long}, {"a", "1", strings.Repeat("x", 252) + "z"}} {
		name := nameOf(c.schedule, types.UID(c.uid), c.claim, when)
		if name != nameOf(c.schedule, types.UID(c.uid), c.claim, when.In(time.FixedZone("", 3600))) {
			t.Errorf("%v: two names for one time", c)
		}
		if len(name) > maxName {
			t.Errorf("%d characters: %s", len(name), name)
		}
		if other := seen[name]; other != "" {
			t.Errorf("%v and %s are both %s", c, other, name)
		}
		seen[name] = fmt.Sprint(c)
	}
}
