package try

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"berth.io/berth/internal/try/spec"
)

// teller tells a person what is being tried, while it is.
type teller struct {
	w     io.Writer
	color bool
}

func newTeller(w io.Writer, color bool) *teller {
	if w == nil {
		w = io.Discard
	}
	return &teller{w, color}
}

func (t *teller) line(text string) { fmt.Fprintln(t.w, text) }

func (t *teller) paint(code, text string) string {
	if !t.color {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (t *teller) began(b *bench) {
	how := "somebody else's process: RPCs are cut instead of killing it"
	if b.ownDrivers() {
		how = "started here"
	}
	services := "on one socket"
	if b.controller != b.node {
		services = "controller on a socket of its own"
	}
	fmt.Fprintf(t.w, "driver %s %s, %s, %s\n", b.report.Driver, b.report.Version, services, how)
}

func (t *teller) capabilities(c spec.Capabilities) {
	for _, k := range []struct {
		what string
		list []string
	}{{"plugin", c.Plugin}, {"controller", c.Controller}, {"group", c.Group}, {"node", c.Node}} {
		if len(k.list) > 0 {
			fmt.Fprintf(t.w, "  %-10s  %s\n", k.what, strings.Join(k.list, " "))
		}
	}
}

// step says what begins: on a terminal a line that its outcome replaces.
func (t *teller) step(s *Step) {
	if t.color {
		fmt.Fprintf(t.w, "  …     %-15s %s\r", s.Name, s.Title)
	}
}

func (t *teller) done(s *Step) {
	mark := map[Outcome]string{Passed: t.paint("32", "ok  "), Failed: t.paint("31", "FAIL"), Skipped: t.paint("2", "skip")}[s.Outcome]
	fmt.Fprintf(t.w, "  %s  %-15s %6.2f s  %4d RPCs  %s\n", mark, s.Name, s.Seconds, len(s.RPCs), s.Title)
	if s.Reason != "" {
		t.indented(s.Reason)
	}
	for _, n := range s.Notes {
		t.indented(n)
	}
	for _, v := range s.Violations {
		what := t.paint("31", "violation")
		if v.Advice {
			what = "advice"
		}
		t.indented(fmt.Sprintf("%s %s (CSI specification, %s): %s", what, v.Rule, v.Section, v.Text))
	}
	if s.Outcome != Failed {
		return
	}
	if shown := s.warnings(); len(shown) > 0 {
		t.indented("Kubernetes shows:")
		for _, line := range shown[:min(len(shown), linesOfFailures)] {
			t.indented("  " + short(line))
		}
	}
	if calls := s.failures(); len(calls) > 0 {
		t.indented("RPCs that failed:")
		for _, c := range calls {
			t.indented("  " + c)
		}
	}
}

func (t *teller) indented(text string) {
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		fmt.Fprintln(t.w, "        "+line)
	}
}

// warnings is what a user would have to see; the report has the rest.
func (s *Step) warnings() []string {
	return slices.DeleteFunc(slices.Clone(s.Shown), func(l string) bool { return strings.HasPrefix(l, "Normal ") })
}

// linesOfFailures bounds what a terminal gets.
const linesOfFailures = 12

// short cuts a line for a terminal; the report has it whole.
func short(line string) string {
	const most = 300
	if r := []rune(line); len(r) > most {
		return string(r[:most]) + "…"
	}
	return line
}

func (s *Step) failures() (lines []string) {
	more := 0
	for _, r := range s.RPCs {
		if r.Code == "OK" {
			continue
		}
		if len(lines) >= linesOfFailures {
			more++
			continue
		}
		what := r.Message
		if r.Injected != "" {
			what = r.Injected + ": " + what
		}
		lines = append(lines, short(fmt.Sprintf("#%d %s %.1f ms %s %s", r.Number, r.Method, r.Millis, r.Code, what)))
	}
	if more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more; -o json has all", more))
	}
	return lines
}

// summary is the last thing that is told.
func (t *teller) summary(r *Report) {
	t.rpcs(r)
	s := r.Summary
	verdict := t.paint("32", "nothing failed")
	if !r.OK() {
		verdict = t.paint("31", fmt.Sprintf("%d failed", s.Failed))
	}
	fmt.Fprintf(t.w, "%s: %d passed, %d skipped; %d violations, %d pieces of advice; %d RPCs in %s\n",
		verdict, s.Passed, s.Skipped, s.Violations, s.Advice, s.RPCs, time.Duration(r.Seconds*float64(time.Second)).Round(100*time.Millisecond))
	if r.Ended != "" {
		fmt.Fprintf(t.w, "ended early: %s\n", r.Ended)
	}
}

// rpcs is how long each method took, over all steps without faults.
func (t *teller) rpcs(r *Report) {
	times := map[string][]float64{}
	for _, s := range r.Steps {
		for _, c := range s.RPCs {
			if c.Code == "OK" && c.Injected == "" {
				times[c.Method] = append(times[c.Method], c.Millis)
			}
		}
	}
	if len(times) == 0 {
		return
	}
	var methods []string
	for m := range times {
		methods = append(methods, m)
	}
	slices.Sort(methods)
	fmt.Fprintf(t.w, "\n  %-28s %6s %10s %10s\n", "RPC (answered OK)", "calls", "median ms", "max ms")
	for _, m := range methods {
		slices.Sort(times[m])
		fmt.Fprintf(t.w, "  %-28s %6d %10.1f %10.1f\n", m, len(times[m]), times[m][len(times[m])/2], times[m][len(times[m])-1])
	}
	fmt.Fprintln(t.w)
}
