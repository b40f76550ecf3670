package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func scheduleYAML(name, spec string) string {
	return fmt.Sprintf(`
apiVersion: storage.berth.io/v1alpha1
kind: SnapshotSchedule
metadata: {name: %s}
spec: %s
---`, name, spec)
}

// snapshotsOf lists a schedule's snapshots by name, which is by time.
func (s *story) snapshotsOf(schedule string) []string {
	s.Helper()
	names := strings.Fields(s.kubectl("get", "vs", "-l", "storage.berth.io/schedule="+schedule, "-o", "jsonpath={.items[*].metadata.name}"))
	slices.Sort(names)
	return names
}

// A schedule takes snapshots of the claims that it selects and keeps the newest ready ones; a user's own snapshots, and
// those that only look like the schedule's, stay. Suspended it does nothing; deleted it leaves what it made.
func TestSnapshotSchedule(t *testing.T) {
	s := tell(t)
	labelled := strings.Replace(claimYAML("data", "32Mi"), "{name: data}", "{name: data, labels: {backup: often}}", 1)
	s.apply(labelled + claimYAML("other", "32Mi") + podYAML("app", "data") + podYAML("other", "other"))
	s.ready("app")
	s.ready("other")
	s.apply(snapshotYAML("mine", "data"))
	s.apply(scheduleYAML("often", `{schedule: "@every 1s", keep: 2, selector: {matchLabels: {backup: often}}}`))
	s.until("a second snapshot", func() (bool, string) { n := s.snapshotsOf("often"); return len(n) >= 2, fmt.Sprint(n) })
	first := s.snapshotsOf("often")[0]
	uid := s.kubectl("get", "snapsched", "often", "-o", "jsonpath={.metadata.uid}")
	s.kubectl("label", "vs", "mine", "storage.berth.io/schedule=often", "storage.berth.io/schedule-uid="+uid)
	s.kubectl("annotate", "vs", "mine", "storage.berth.io/scheduled-at=2020-01-01T00:00:00Z")
	s.until("the first one to have gone, and two to be ready", func() (bool, string) {
		names := s.snapshotsOf("often")
		ready := s.kubectl("get", "snapsched", "often", "-o", "jsonpath={.status.ready}")
		return !slices.Contains(names, first) && ready == "2", fmt.Sprint(names, ready)
	})
	s.kubectl("patch", "snapsched", "often", "--type=merge", "-p", `{"spec":{"suspend":true}}`)
	s.until("it to be suspended", func() (bool, string) {
		out := s.kubectl("get", "snapsched", "often", "-o", "jsonpath={.status.conditions[0].reason}")
		return out == "Suspended", out
	})
	if why := s.berth("why", "-n", s.ns, "snapsched/often"); !strings.Contains(why, "suspended") || !strings.Contains(why, "of claim data") {
		t.Errorf("berth why tells of the suspended schedule:\n%s", why)
	}
	s.until("what is being deleted to be gone", func() (bool, string) {
		out := s.kubectl("get", "vs", "-o", "jsonpath={.items[*].metadata.deletionTimestamp}")
		return out == "", out
	})
	before := s.snapshotsOf("often")
	time.Sleep(2500 * time.Millisecond) // two of its times
	if after := s.snapshotsOf("often"); !slices.Equal(before, after) {
		t.Errorf("suspended, it went from %v to %v", before, after)
	}
	for _, name := range before {
		if out := s.kubectl("get", "vs", name, "-o", "jsonpath={.spec.source.persistentVolumeClaimName}"); out != "data" {
			t.Errorf("%s is of claim %s", name, out)
		}
	}
	if !slices.Contains(before, "mine") {
		t.Errorf("the user's own snapshot is gone: %v", before)
	}
	s.kubectl("delete", "snapsched", "often")
	if left := s.snapshotsOf("often"); !slices.Equal(before, left) {
		t.Errorf("the schedule's deletion left %v of %v", left, before)
	}
}

// What does not parse is refused by the API where it can be, and else by a condition and an event.
func TestScheduleThatDoesNotParse(t *testing.T) {
	s := tell(t)
	for spec, says := range map[string]string{
		`{schedule: every hour, keep: 1, selector: {}}`:                                 "want five fields",
		`{schedule: "@hourly", keep: 0, selector: {}}`:                                  "greater than or equal to 1",
		`{schedule: "@hourly", timeZone: Local, keep: 1, selector: {}}`:                 "Europe/Berlin",
		`{schedule: "@hourly", keep: 1, selector: {}, volumeGroupSnapshotClassName: x}`: "group: true",
	} {
		_, err := s.in.BerthInput(s.ctx, scheduleYAML("bad", spec), "kubectl", "apply", "-n", s.ns, "-f", "-")
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v does not say %q", spec, err, says)
		}
	}
	s.apply(scheduleYAML("never", `{schedule: "0 0 31 2 *", keep: 1, selector: {}}`) + scheduleYAML("nowhere", `{schedule: "@hourly", timeZone: Mars/Olympus, keep: 1, selector: {}}`))
	s.event("never", "ScheduleInvalid", "never comes")
	s.event("nowhere", "ScheduleInvalid", "Mars/Olympus")
	if why := s.berth("why", "-n", s.ns, "snapshotschedule/never"); !strings.Contains(why, "never comes") || !strings.Contains(why, "Correct it") {
		t.Errorf("berth why tells of the schedule that never comes:\n%s", why)
	}
}

// A schedule whose snapshots fail keeps the good ones, and does not pile the failed ones up.
func TestFailingScheduleKeepsWhatIsGood(t *testing.T) {
	s := tell(t)
	f := dataForeign(s, "--secret", "sesame")
	labelled := strings.Replace(claimYAML("data", "1Gi", "storageClassName: "+f.name), "{name: data}", "{name: data, labels: {backup: often}}", 1)
	class := s.ns + "-secret"
	s.apply(fmt.Sprintf(`
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: %s}
driver: %s
deletionPolicy: Delete
parameters: {csi.storage.k8s.io/snapshotter-secret-name: door, csi.storage.k8s.io/snapshotter-secret-namespace: %s}
---`, class, f.name, s.ns) + labelled + podYAML("app", "data"))
	s.kubectl("create", "secret", "generic", "door", "--from-literal=key=sesame")
	s.ready("app")
	s.apply(scheduleYAML("often", fmt.Sprintf(`{schedule: "@every 1s", keep: 2, selector: {matchLabels: {backup: often}}, volumeSnapshotClassName: %s}`, class)))
	ready := func() []string {
		out := s.kubectl("get", "vs", "-o", `jsonpath={range .items[?(@.status.readyToUse==true)]}{.metadata.name} {end}`)
		names := strings.Fields(out)
		slices.Sort(names)
		return names
	}
	s.until("two good ones", func() (bool, string) { return len(ready()) >= 2, fmt.Sprint(ready()) })
	f.stop()
	f.start("--data", "--secret", "changed")
	s.until("a failed one", func() (bool, string) {
		out := s.kubectl("get", "vs", "-o", "jsonpath={.items[*].status.error.message}")
		return strings.Contains(out, "secret"), out
	})
	good := ready()
	time.Sleep(4 * time.Second) // some failures
	if now := ready(); !slices.Equal(good, now) {
		t.Errorf("the good ones went from %v to %v", good, now)
	}
	if n := len(s.snapshotsOf("often")); n > len(good)+2 { // one failed, one perhaps on its way out
		t.Errorf("%d snapshots, %d of them good", n, len(good))
	}
	s.kubectl("delete", "snapsched", "often")
	f.stop()
	f.start("--data", "--secret", "sesame")
	s.kubectl("delete", "vs", "--all", "--timeout=90s")
	s.kubectl("delete", "vsclass", class)
}

// Killed in the middle of its runs, a schedule makes no snapshot twice, and makes up for what it missed once.
func TestScheduleSurvivesAKill(t *testing.T) {
	in := own(t)
	s := tellOn(t, in)
	s.apply(claimYAML("a", "32Mi") + claimYAML("b", "32Mi") + podYAML("a", "a") + podYAML("b", "b"))
	s.ready("a")
	s.ready("b")
	s.apply(scheduleYAML("often", `{schedule: "@every 1s", keep: 50, selector: {}}`))
	s.until("snapshots", func() (bool, string) { n := s.snapshotsOf("often"); return len(n) >= 2, fmt.Sprint(n) })
	for range 2 {
		if err := in.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := in.Start(s.ctx); err != nil {
			t.Fatal(err)
		}
		had := len(s.snapshotsOf("often"))
		s.until("more snapshots", func() (bool, string) { n := s.snapshotsOf("often"); return len(n) > had, fmt.Sprint(n) })
	}
	s.kubectl("patch", "snapsched", "often", "--type=merge", "-p", `{"spec":{"suspend":true}}`)
	seen := map[string]string{}
	out := s.kubectl("get", "vs", "-o", `jsonpath={range .items[*]}{.spec.source.persistentVolumeClaimName}@{.metadata.annotations.storage\.berth\.io/scheduled-at} {.metadata.name}{"\n"}{end}`)
	for line := range strings.Lines(out) {
		at, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		if other := seen[at]; other != "" {
			t.Errorf("%s twice: %s and %s", at, other, name)
		}
		seen[at] = name
	}
	s.kubectl("delete", "snapsched", "often")
	s.kubectl("delete", "vs", "--all")
	s.kubectlGone("vs")
}

func init() {
	examples["snapshot-schedule.yaml"] = example{pods: []string{"example-scheduled"}, claims: []string{"example-scheduled"}, then: func(s *story) {
		s.until("the schedule to know its next time", func() (bool, string) {
			out := s.kubectl("get", "snapsched", "example-hourly", "-o", "jsonpath={.status}")
			return strings.Contains(out, "nextScheduleTime") && strings.Contains(out, `"claims":1`), out
		})
		s.kubectl("patch", "snapsched", "example-hourly", "--type=merge", "-p", `{"spec":{"schedule":"@every 1s"}}`)
		s.until("a snapshot by schedule", func() (bool, string) {
			n := s.snapshotsOf("example-hourly")
			return len(n) > 0, fmt.Sprint(n)
		})
		s.kubectl("delete", "snapsched", "example-hourly")
	}}
	examples["volume-attributes.yaml"] = example{pods: []string{"example-attributes"}, claims: []string{"example-attributes"}, then: func(s *story) {
		s.kubectl("patch", "pvc", "example-attributes", "-p", `{"spec":{"volumeAttributesClassName":"example-streaming"}}`)
		s.until("the other attributes", func() (bool, string) {
			c := s.claim("example-attributes").Status
			return c.CurrentVolumeAttributesClassName != nil && *c.CurrentVolumeAttributesClassName == "example-streaming", fmt.Sprint(c)
		})
	}, delete: "vac/example-random vac/example-streaming"}
}
