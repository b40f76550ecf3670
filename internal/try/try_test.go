package try

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth.io/berth/internal/try/spec"
)

func TestTarget(t *testing.T) {
	for _, c := range []struct {
		text, socket string
		argv         []string
		wrong        bool
	}{
		{text: "/run/x/csi.sock", socket: "/run/x/csi.sock"},
		{text: "unix:///run/x/endpoint", socket: "/run/x/endpoint"},
		{text: "./driver --a=1  --b 'two words'", argv: []string{"./driver", "--a=1", "--b", "two words"}},
		{text: `driver --socket=/a.sock`, argv: []string{"driver", "--socket=/a.sock"}},
		{text: `driver "a \"b\"" c\ d ''`, argv: []string{"driver", `a "b"`, "c d", ""}},
		{text: "driver 'open", wrong: true},
		{text: `driver \`, wrong: true},
		{text: "  ", wrong: true},
		{text: "''", wrong: true},
	} {
		got, err := parseTarget(c.text)
		if (err != nil) != c.wrong || got.socket != c.socket || !slices.Equal(got.argv, c.argv) {
			t.Errorf("%q: %+v, %v", c.text, got, err)
		}
	}
}

func TestPlaceholders(t *testing.T) {
	got := target{argv: []string{"d", "--endpoint={{endpoint}}", "{{socket}}", "--node", "{{node}}", "{{dir}}/x"}}.fill("/s.sock", "n", "/w")
	want := []string{"d", "--endpoint=unix:///s.sock", "/s.sock", "--node", "n", "/w/x"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// Whatever the user writes is refused or split; the words hold nothing that was not written.
func FuzzSplitCommand(f *testing.F) {
	for _, s := range []string{"a b", "a 'b c' \"d\"", `a\ b`, "'", `\`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		words, err := splitCommand(text)
		if err != nil {
			return
		}
		if len(words) == 0 || words[0] == "" {
			t.Fatalf("%q: no program in %q", text, words)
		}
		if n := len(strings.Join(words, "")); n > len(strings.ToValidUTF8(text, "\uFFFD\uFFFD\uFFFD")) {
			t.Fatalf("%q became longer: %q", text, words)
		}
	})
}

func TestParameters(t *testing.T) {
	got, err := ParseParameters("--class-parameters", []string{"a=1,b=x=y", " c= "})
	if err != nil || len(got) != 3 || got["a"] != "1" || got["b"] != "x=y" || got["c"] != "" {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"a", "=1", "a=1,a=2"} {
		if _, err := ParseParameters("--class-parameters", []string{bad}); !errors.Is(err, ErrUsage) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestSecrets(t *testing.T) {
	dir := t.TempDir()
	file, rubbish := filepath.Join(dir, "s.yaml"), filepath.Join(dir, "r")
	if err := errors.Join(os.WriteFile(file, []byte("user: admin\npassword: 'a=b'\n"), 0o600), os.WriteFile(rubbish, []byte("hunter2\n- x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	got, err := ParseSecrets([]string{file, "token=t=1"})
	if err != nil || got["user"] != "admin" || got["password"] != "a=b" || got["token"] != "t=1" {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range [][]string{{"/nowhere"}, {rubbish}, {"a b=1"}, {"a=1", "a=2"}} {
		_, err := ParseSecrets(bad)
		if !errors.Is(err, ErrUsage) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestStepsAreChosenAndAnUnknownOneListsThem(t *testing.T) {
	names := func(only, skip []string) (n []string) {
		steps, err := selectSteps(only, skip)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range steps {
			n = append(n, s.name)
		}
		return n
	}
	if all := names(nil, nil); len(all) != len(allSteps()) || all[0] != first {
		t.Errorf("all: %q", all)
	}
	if got := names([]string{"sanity", "mount"}, nil); !slices.Equal(got, []string{first, "csi-sanity", "mount"}) {
		t.Errorf("only: %q", got)
	}
	if got := names([]string{groupProtocol}, []string{"paging"}); slices.Contains(got, "paging") || !slices.Contains(got, "access") {
		t.Errorf("skip: %q", got)
	}
	if got := names(nil, []string{first}); got[0] != first {
		t.Errorf("without the first: %q", got)
	}
	_, err := selectSteps([]string{"banana"}, nil)
	if !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), "expand-online") {
		t.Errorf("unknown: %v", err)
	}
}

func TestOptionsThatCannotBe(t *testing.T) {
	good := Options{Driver: "driver", Size: DefaultSize, Scale: 1, Timeout: time.Minute}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Options){
		"no driver":     func(o *Options) { o.Driver = " " },
		"an open quote": func(o *Options) { o.Driver = "a 'b" },
		"no size":       func(o *Options) { o.Size = "banana" },
		"nothing":       func(o *Options) { o.Size = "0" },
		"no volumes":    func(o *Options) { o.Scale = 0 },
		"no time":       func(o *Options) { o.Timeout = 0 },
		"no such step":  func(o *Options) { o.Skip = []string{"x"} },
	} {
		o := good
		change(&o)
		if err := o.Validate(); !errors.Is(err, ErrUsage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestADriverThatIsNotThere(t *testing.T) {
	for _, text := range []string{"/nowhere/csi.sock", "no-such-command-anywhere --x"} {
		d, err := newDriver(text, t.TempDir(), "driver")
		if err != nil {
			t.Fatal(err)
		}
		if err := d.start(); err == nil {
			t.Errorf("%q was started", text)
		} else if !strings.Contains(err.Error(), "start") && !strings.Contains(err.Error(), "cannot be run") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestADriverThatEndsAtOnceIsToldWithItsLastWords(t *testing.T) {
	d, err := newDriver("sh -c 'echo no route to host; exit 3'", t.TempDir(), "driver")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	defer d.stop()
	_, err = d.ready(t.Context(), time.Minute)
	if err == nil || !strings.Contains(err.Error(), "no route to host") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("%v", err)
	}
}

func TestLedgerSurvivesADeath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	l := newLedger(path)
	l.begin("d.example.com")
	for _, e := range []entry{{kind: "volume", id: "a b\n"}, {kind: "volume", id: "gone"}, {kind: "snapshot", id: "s"}, {kind: "group", id: "g", members: []string{"m 1", "m\"2"}}} {
		l.add(e)
	}
	l.drop("volume", "gone")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteString(`+ volume "cut`)
	f.Close()
	driver, left := readLedger(path)
	if driver != "d.example.com" || len(left) != 3 || left[1].id != "s" || left[2].id != "a b\n" {
		t.Errorf("%q has %+v", driver, left)
	}
	if want := `group "g" (of snapshots ["m 1" "m\"2"])`; left[0].String() != want {
		t.Errorf("%s, want %s: without its snapshots a group cannot be deleted", left[0], want)
	}
	if !l.deleted("gone") || l.deleted("a b\n") || l.deleted("never") {
		t.Error("what was deleted is not known")
	}
}

func TestASecretIsTakenOutWhereverTheDriverSaysIt(t *testing.T) {
	r := newRedactor([]string{`pass"word`, "x"})
	c := r.rpc(RPC{Message: `login with pass"word x`, Response: json.RawMessage(`{"k":"pass\"word"}`)})
	if c.Message != "login with "+stripped+" x" || string(c.Response) != `{"k":"`+stripped+`"}` {
		t.Errorf("%s %s", c.Message, c.Response)
	}
}

func TestJUnit(t *testing.T) {
	r := &Report{Driver: "d.example.com", Steps: []*Step{
		{Name: "mount", Outcome: Passed},
		{Name: "block", Outcome: Skipped, Reason: "no block"},
		{Name: "access", Outcome: Failed, Violations: []spec.Violation{{Rule: "CreateVolume/no-id", Section: "CreateVolume", Text: "bell \a and <tag>"}}},
		{Name: "csi-sanity", Outcome: Failed, Specs: []SpecCase{{Name: "one", Outcome: Passed}, {Name: "two", Outcome: Failed, Message: "Expected\nx"}}},
	}}
	var b strings.Builder
	if err := r.WriteJUnit(&b); err != nil {
		t.Fatal(err)
	}
	var back junitSuites
	if err := xml.Unmarshal([]byte(b.String()), &back); err != nil {
		t.Fatalf("%v in\n%s", err, b.String())
	}
	if back.Tests != 6 || back.Failures != 3 || back.Skipped != 1 || len(back.Suites) != 2 {
		t.Errorf("counts %d %d %d in %d suites", back.Tests, back.Failures, back.Skipped, len(back.Suites))
	}
	if f := back.Suites[0].Cases[2].Failure; f == nil || !strings.Contains(f.Message, "CreateVolume/no-id") || !strings.Contains(f.Text, "<tag>") {
		t.Errorf("the failure is %+v", f)
	}
}

func TestSummary(t *testing.T) {
	r := &Report{Began: time.Now(), Steps: []*Step{{Outcome: Passed, RPCs: make([]RPC, 3), Violations: []spec.Violation{{Advice: true}}}, {Outcome: Failed, Violations: []spec.Violation{{}}}, {Outcome: Skipped}}}
	r.sum()
	if s := r.Summary; s != (Summary{Passed: 1, Failed: 1, Skipped: 1, Violations: 1, Advice: 1, RPCs: 3}) || r.OK() {
		t.Errorf("%+v, ok %v", s, r.OK())
	}
	r.Steps = r.Steps[:1]
	if r.sum(); !r.OK() {
		t.Error("advice fails a run")
	}
}

func TestTheDataIsCompared(t *testing.T) {
	dir := t.TempDir()
	sum, err := writeData(dir, "data", 1)
	if err != nil || checkData(dir, "data", sum) != nil {
		t.Fatalf("%v, %v", err, checkData(dir, "data", sum))
	}
	if _, err := writeData(dir, "data", 2); err != nil || checkData(dir, "data", sum) == nil {
		t.Error("another content was taken for the first")
	}
	if err := os.Truncate(filepath.Join(dir, "data"), 10); err != nil || checkData(dir, "data", sum) == nil {
		t.Error("a short file was taken for the first")
	}
}
