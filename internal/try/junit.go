package try

import (
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"berth.io/berth/internal/boundary"
)

// The part of JUnit's format that CI systems read.
type junitSuites struct {
	XMLName  xml.Name     `xml:"testsuites"`
	Tests    int          `xml:"tests,attr"`
	Failures int          `xml:"failures,attr"`
	Skipped  int          `xml:"skipped,attr"`
	Time     float64      `xml:"time,attr"`
	Suites   []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Skipped  int         `xml:"skipped,attr"`
	Time     float64     `xml:"time,attr"`
	Time0    string      `xml:"timestamp,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Class   string        `xml:"classname,attr"`
	Name    string        `xml:"name,attr"`
	Time    float64       `xml:"time,attr"`
	Failure *junitFailure `xml:"failure,omitempty"`
	Skipped *junitSkipped `xml:"skipped,omitempty"`
	Out     string        `xml:"system-out,omitempty"`
}

type junitFailure struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

type junitSkipped struct {
	Message string `xml:"message,attr"`
}

// WriteJUnit writes the report as JUnit XML: a test case for each step, and one for each spec of csi-sanity.
func (r *Report) WriteJUnit(w io.Writer) error {
	flow := junitSuite{Name: "berth try " + r.Driver, Time: r.Seconds, Time0: r.Began.UTC().Format("2006-01-02T15:04:05")}
	sanity := junitSuite{Name: "csi-sanity " + r.Driver, Time0: flow.Time0}
	for _, s := range r.Steps {
		c := junitCase{Class: "berth.try", Name: s.Name, Time: s.Seconds, Out: printable(strings.Join(s.Notes, "\n"))}
		switch s.Outcome {
		case Failed:
			c.Failure = s.junit()
		case Skipped:
			c.Skipped = &junitSkipped{printable(s.Reason)}
		}
		flow.add(c)
		for _, p := range s.Specs {
			c := junitCase{Class: "csi-sanity", Name: printable(p.Name), Time: p.Seconds}
			switch p.Outcome {
			case Failed:
				c.Failure = &junitFailure{Message: printable(firstLine(p.Message)), Text: printable(p.Message)}
			case Skipped:
				c.Skipped = &junitSkipped{printable(p.Message)}
			}
			sanity.Time += p.Seconds
			sanity.add(c)
		}
	}
	if r.Ended != "" {
		flow.add(junitCase{Class: "berth.try", Name: "run", Failure: &junitFailure{Message: "ended early: " + printable(r.Ended)}})
	}
	all := junitSuites{Time: r.Seconds, Suites: []junitSuite{flow}}
	if sanity.Tests > 0 {
		all.Suites = append(all.Suites, sanity)
	}
	for _, s := range all.Suites {
		all.Tests, all.Failures, all.Skipped = all.Tests+s.Tests, all.Failures+s.Failures, all.Skipped+s.Skipped
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	return e.Encode(all)
}

func (s *junitSuite) add(c junitCase) {
	s.Tests++
	if c.Failure != nil {
		s.Failures++
	}
	if c.Skipped != nil {
		s.Skipped++
	}
	s.Cases = append(s.Cases, c)
}

func (s *Step) junit() *junitFailure {
	var text strings.Builder
	message := s.Reason
	for _, v := range s.Violations {
		if v.Advice {
			continue
		}
		if message == "" {
			message = v.Rule + ": " + v.Text
		}
		fmt.Fprintf(&text, "violation %s (CSI specification, %s): %s\n", v.Rule, v.Section, v.Text)
	}
	for _, l := range s.warnings() {
		text.WriteString(l + "\n")
	}
	for _, l := range s.failures() {
		text.WriteString(l + "\n")
	}
	return &junitFailure{Message: printable(firstLine(message)), Text: printable(text.String())}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// printable drops what XML 1.0 has no way to write: a driver's words may hold anything.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || r < 0x20 && r != '\n' && r != '\t' || r == 0xfffe || r == 0xffff {
			return -1
		}
		return r
	}, s)
}

// SaveJUnit writes the file whole or not at all.
func (r *Report) SaveJUnit(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("--junit: %w", err)
	}
	defer os.Remove(f.Name())
	if err := r.WriteJUnit(f); err != nil {
		f.Close()
		return fmt.Errorf("--junit: %w", err)
	}
	if err := f.Chmod(0o644); err != nil {
		f.Close()
		return fmt.Errorf("--junit: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("--junit: %w", err)
	}
	return boundary.Do("try/save-junit", func() error { return os.Rename(f.Name(), path) })
}
