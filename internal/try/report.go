package try

import (
	"encoding/json"
	"time"

	"berth.io/berth/internal/try/proxy"
	"berth.io/berth/internal/try/spec"
)

// Outcome of a step.
type Outcome string

const (
	Passed  Outcome = "passed"
	Failed  Outcome = "failed"
	Skipped Outcome = "skipped"
)

// Report is everything that a run found.
type Report struct {
	Driver       string            `json:"driver"`
	Version      string            `json:"version,omitempty"`
	Manifest     map[string]string `json:"manifest,omitempty"`
	Berth        string            `json:"berth"`
	Capabilities spec.Capabilities `json:"capabilities"`
	Began        time.Time         `json:"began"`
	Seconds      float64           `json:"seconds"`
	Steps        []*Step           `json:"steps"`
	Summary      Summary           `json:"summary"`
	// Ended is why the run ended before its last step; empty: it did not.
	Ended string `json:"ended,omitempty"`
}

// Summary counts.
type Summary struct {
	Passed, Failed, Skipped int
	Violations, Advice      int
	RPCs                    int
}

// MarshalJSON writes the names in lower case.
func (s Summary) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]int{"passed": s.Passed, "failed": s.Failed, "skipped": s.Skipped,
		"violations": s.Violations, "advice": s.Advice, "rpcs": s.RPCs})
}

// Step is one thing that was tried.
type Step struct {
	Name    string    `json:"name"`
	Title   string    `json:"title"`
	Outcome Outcome   `json:"outcome"`
	Reason  string    `json:"reason,omitempty"` // of a failure or a skip
	Began   time.Time `json:"began"`
	Seconds float64   `json:"seconds"`
	// Figures and other things worth a line, such as "100 volumes in 4.1 s".
	Notes      []string         `json:"notes,omitempty"`
	Violations []spec.Violation `json:"violations,omitempty"`
	// Shown is what Kubernetes would have shown a user: events, and conditions of what did not come up.
	Shown []string   `json:"shown,omitempty"`
	RPCs  []RPC      `json:"rpcs,omitempty"`
	Specs []SpecCase `json:"specs,omitempty"` // of csi-sanity
}

// RPC is one recorded call, without secrets.
type RPC struct {
	Number   int             `json:"number"`
	From     string          `json:"from"`
	Method   string          `json:"method"`
	AtMillis float64         `json:"atMillis"` // after the step's begin
	Millis   float64         `json:"millis"`
	Code     string          `json:"code"`
	Message  string          `json:"message,omitempty"`
	Injected string          `json:"injected,omitempty"`
	Request  json.RawMessage `json:"request,omitempty"`
	Response json.RawMessage `json:"response,omitempty"`
}

// SpecCase is one spec of csi-sanity.
type SpecCase struct {
	Name    string  `json:"name"`
	Outcome Outcome `json:"outcome"`
	Seconds float64 `json:"seconds"`
	Message string  `json:"message,omitempty"`
}

func newRPC(c *proxy.Call, began time.Time) RPC {
	return RPC{Number: c.Number, From: c.From, Method: c.Method, AtMillis: millis(c.Began.Sub(began)), Millis: millis(c.Took),
		Code: c.Code.String(), Message: c.Message, Injected: c.Injected, Request: proxy.JSON(c.Request), Response: proxy.JSON(c.Response)}
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// broken says whether the step has a violation that counts.
func (s *Step) broken() bool {
	for _, v := range s.Violations {
		if !v.Advice {
			return true
		}
	}
	return false
}

// sum counts the steps.
func (r *Report) sum() {
	r.Seconds = time.Since(r.Began).Seconds()
	r.Summary = Summary{}
	for _, s := range r.Steps {
		switch s.Outcome {
		case Passed:
			r.Summary.Passed++
		case Failed:
			r.Summary.Failed++
		default:
			r.Summary.Skipped++
		}
		for _, v := range s.Violations {
			if v.Advice {
				r.Summary.Advice++
			} else {
				r.Summary.Violations++
			}
		}
		r.Summary.RPCs += len(s.RPCs)
	}
}

// OK: nothing failed.
func (r *Report) OK() bool { return r.Summary.Failed == 0 && r.Ended == "" }
