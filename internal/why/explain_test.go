package why

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/fake"

	"berth.io/berth/internal/trace"
)

var update = flag.Bool("update", false, "write the golden files")

func (s *story) explain(t *testing.T) *Journey {
	t.Helper()
	target, err := ParseTarget("default", s.target)
	if err != nil {
		t.Fatal(err)
	}
	j, err := Explain(t.Context(), Sources{Client: fake.NewClientset(s.objects...), Entries: s.entries, Holders: s.holders, Unwell: s.unwell, Now: at(time.Minute)}, target)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// TestText compares what a person reads with testdata/NAME.txt, and the cause with the story's.
func TestText(t *testing.T) {
	for _, s := range stories() {
		t.Run(s.name, func(t *testing.T) {
			j := s.explain(t)
			var b bytes.Buffer
			if err := j.WriteText(&b, TextOptions{Location: time.UTC}); err != nil {
				t.Fatal(err)
			}
			golden(t, s.name, b.Bytes())
			cause := ""
			for i := range j.Volumes {
				if p := j.Volumes[i].Problem; p != nil {
					cause = p.Cause
				}
			}
			if j.Problem != nil {
				cause = j.Problem.Cause
			}
			if cause != s.cause {
				t.Errorf("cause %q, want %q", cause, s.cause)
			}
		})
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestUnknown: neither API nor journal knows it; a quota's event is passed on.
func TestUnknown(t *testing.T) {
	client := fake.NewClientset(event("StatefulSet", "db", v1.EventTypeWarning, "FailedCreate",
		`create Claim data-db-0 for Pod db-0 in StatefulSet db failed error: persistentvolumeclaims "data-db-0" is forbidden: exceeded quota: small, requested: requests.storage=1Gi`, time.Second, 1))
	_, err := Explain(t.Context(), Sources{Client: client}, Target{Kind: PVC, Namespace: "default", Name: "data-db-0"})
	var unknown *ErrUnknown
	if !errors.As(err, &unknown) || !strings.Contains(err.Error(), "exceeded quota: small") {
		t.Errorf("error %v", err)
	}
	_, err = Explain(t.Context(), Sources{Client: client}, Target{Kind: Pod, Namespace: "default", Name: "nobody"})
	if !errors.As(err, &unknown) || unknown.Hint != "" {
		t.Errorf("error %v", err)
	}
}

func TestParseTarget(t *testing.T) {
	for arg, want := range map[string]Target{
		"pvc/a": {PVC, "ns", "a"}, "a": {PVC, "ns", "a"}, "pods/a": {Pod, "ns", "a"}, "pv/a": {PV, "", "a"}, "PersistentVolumeClaim/a": {PVC, "ns", "a"},
		"node/a": {}, "pvc/": {}, "pvc/a/b": {},
	} {
		if got, err := ParseTarget("ns", arg); got != want || (err == nil) != (want.Kind != "") {
			t.Errorf("%s: %v %v", arg, got, err)
		}
	}
}

// TestReadOnlyWhatMatters: asking the journal by names gives the same answers as all of it.
func TestReadOnlyWhatMatters(t *testing.T) {
	for _, s := range stories() {
		dir := t.TempDir()
		journal, err := trace.Open(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range s.entries {
			journal.Record(e)
			if e.Step == trace.Lost {
				continue
			}
			journal.Record(trace.Entry{Time: e.Time, Step: e.Step, State: e.State, Volume: "pvc-unrelated", Claim: trace.ObjectRef{Namespace: "default", Name: "unrelated"}})
		}
		if err := journal.Close(); err != nil {
			t.Fatal(err)
		}
		target, _ := ParseTarget("default", s.target)
		j, err := Explain(t.Context(), Sources{
			Client: fake.NewClientset(s.objects...), Holders: s.holders, Unwell: s.unwell, Now: at(time.Minute),
			Read: func(f trace.Filter) ([]trace.Entry, error) { return trace.Read(dir, f) },
		}, target)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := j.WriteText(&b, TextOptions{Location: time.UTC}); err != nil {
			t.Fatal(err)
		}
		golden(t, s.name, b.Bytes())
	}
}

// TestWaitedForLongest: a step that waited for several things in turn tells the one that took longest.
func TestWaitedForLongest(t *testing.T) {
	e := func(d time.Duration, state trace.State, detail string) trace.Entry {
		return trace.Entry{Time: at(d), Step: trace.Scheduled, State: state, Pod: appPod, Detail: detail}
	}
	steps := fold([]trace.Entry{
		e(0, trace.Waiting, "a claim"), e(10*millis, trace.Waiting, "space"), e(5*time.Second, trace.Waiting, "the binding"), e(5100*millis, trace.Done, "assigned"),
	})
	if len(steps) != 1 || steps[0].Waited != 5100 || what(&steps[0]) != "assigned (waited 5.1 s: space)" {
		t.Errorf("%+v: %s", steps, what(&steps[0]))
	}
}

// TestTellsOf: an event is a hint about an object that was never made only when it names that object, not a longer name.
func TestTellsOf(t *testing.T) {
	const quota = `create Claim data-db-0 for Pod db-0 failed: persistentvolumeclaims "data-db-0" is forbidden`
	for name, want := range map[string]bool{"data-db-0": true, "db-0": true, "db": false, "data": false, "claims": false, "data-db-01": false} {
		if got := tellsOf(quota, name); got != want {
			t.Errorf("tells of %s: %v, want %v", name, got, want)
		}
	}
}

// TestErrorToldOnce: the steps that wait for one that failed do not repeat its error.
func TestErrorToldOnce(t *testing.T) {
	var b bytes.Buffer
	p := &printer{out: &b, TextOptions: TextOptions{Location: time.UTC}}
	p.steps([]Step{
		{Step: trace.Staged, State: trace.Failed, Error: "bad option", Failures: 1},
		{Step: trace.Running, State: trace.Waiting, Detail: `waiting for volume "data": bad option`},
	})
	if got := b.String(); strings.Count(got, "bad option") != 1 || !strings.Contains(got, `waiting for volume "data": see above`) {
		t.Error(got)
	}
}
