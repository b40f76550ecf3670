package spec

import (
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"berth.io/berth/internal/try/proxy"
)

// Checker remembers what one driver has said. It is not safe for two calls at once.
type Checker struct {
	caps      Capabilities
	known     bool              // the capabilities have been asked
	secrets   []string          // values that must not come back
	volumes   map[string]string // name → id, of volumes that are there
	snapshots map[string]string
	gone      map[string]bool // ids that were deleted
	told      map[string]bool // rule and text: each is said once
}

// New makes a checker; secrets are values that no answer may show.
func New(secrets ...string) *Checker {
	c := &Checker{volumes: map[string]string{}, snapshots: map[string]string{}, gone: map[string]bool{}, told: map[string]bool{}}
	for _, s := range secrets {
		c.addSecret(s)
	}
	return c
}

// LeastSecret is how long a secret must be to be looked for, in bytes: a shorter value stands in answers by chance.
const LeastSecret = 6

func (c *Checker) addSecret(s string) {
	if len(s) >= LeastSecret && !slices.Contains(c.secrets, s) {
		c.secrets = append(c.secrets, s)
	}
}

// SetCapabilities says what the driver has promised. Promises are checked from then on.
func (c *Checker) SetCapabilities(caps Capabilities) { c.caps, c.known = caps, true }

// Check looks at one call.
func (c *Checker) Check(call *proxy.Call) []Violation {
	for _, s := range proxy.Secrets(call.Request) {
		c.addSecret(s)
	}
	var found []Violation
	switch {
	case call.Broken != nil:
		found = append(found, violation(call, "not-protobuf", "RPC Interface", "%s: %v", call.Method, call.Broken))
	case call.Injected != "" && !call.Answered():
		c.note(call)
		return nil
	case call.Code == codes.OK:
		found = append(found, c.answer(call)...)
	default:
		found = append(found, c.failure(call)...)
	}
	return c.once(found)
}

// once drops what was said before: a rule that is broken a hundred times is one finding.
func (c *Checker) once(found []Violation) []Violation {
	return slices.DeleteFunc(found, func(v Violation) bool {
		if c.told[v.Rule] {
			return true
		}
		c.told[v.Rule] = true
		return false
	})
}

// Add takes in what somebody else has found, unless it was said before.
func (c *Checker) Add(v Violation) []Violation { return c.once([]Violation{v}) }

// note remembers what a lost answer said: the driver has done it all the same.
func (c *Checker) note(call *proxy.Call) {
	if call.Code != codes.OK {
		return
	}
	switch q := call.Request.(type) {
	case *csi.CreateVolumeRequest:
		r, _ := call.Response.(*csi.CreateVolumeResponse)
		if id := r.GetVolume().GetVolumeId(); id != "" && c.volumes[q.GetName()] == "" {
			c.volumes[q.GetName()] = id
		}
	case *csi.DeleteVolumeRequest:
		c.deleted(c.volumes, q.GetVolumeId())
	case *csi.DeleteSnapshotRequest:
		c.deleted(c.snapshots, q.GetSnapshotId())
	}
}

func (c *Checker) deleted(of map[string]string, id string) {
	for name, have := range of {
		if have == id {
			delete(of, name)
		}
	}
	c.gone[id] = true
}

// failure checks an answer that is an error.
func (c *Checker) failure(call *proxy.Call) []Violation {
	var found []Violation
	if strings.TrimSpace(call.Message) == "" {
		found = append(found, violation(call, "error-without-message", SectionErrors,
			"%s failed with %s and no message; the status message must describe the error for a person", call.Method, call.Code))
	}
	if call.Details > 0 {
		found = append(found, violation(call, "error-with-details", SectionErrors, "%s failed with %d status details; they must be empty", call.Method, call.Details))
	}
	if call.Code == codes.Unknown {
		found = append(found, advice(call, "unknown-code", SectionErrors,
			"%s failed with UNKNOWN (%s): an error without a gRPC code, most likely; callers choose by the code what to do", call.Method, call.Message))
	}
	if s := c.shown(call.Message); s {
		found = append(found, violation(call, "secret-in-error", SectionSecrets, "the error of %s shows the value of a secret", call.Method))
	}
	if call.Code == codes.Unimplemented && c.known {
		if promise := c.caps.promises(call.Method); promise != "" {
			found = append(found, violation(call, "advertised-but-unimplemented", call.Method,
				"the driver advertises %s, and answers %s with UNIMPLEMENTED", promise, call.Method))
		}
	}
	if call.Again && call.Code != codes.Aborted {
		found = append(found, NotIdempotent(call.Method, call.Number, call.Code.String(), call.Message))
	}
	if id := c.forgotten(call); id != "" {
		found = append(found, violation(call, "forgotten", "Volume Lifecycle",
			"%s answered NOT_FOUND (%s) for volume %q, which was made and never deleted", call.Method, call.Message, id))
	}
	switch q := call.Request.(type) {
	case *csi.DeleteVolumeRequest:
		if c.gone[q.GetVolumeId()] {
			found = append(found, missing(call, q.GetVolumeId()))
		}
	case *csi.DeleteSnapshotRequest:
		if c.gone[q.GetSnapshotId()] {
			found = append(found, missing(call, q.GetSnapshotId()))
		}
	}
	return found
}

// forgotten returns the volume that is there and that the driver says it does not know. Only what Kubernetes asks counts: others ask
// for nodes and paths that do not exist, which is NOT_FOUND as well.
func (c *Checker) forgotten(call *proxy.Call) string {
	if call.Code != codes.NotFound || call.From != proxy.Kubernetes {
		return ""
	}
	id := ""
	switch q := call.Request.(type) {
	case *csi.CreateSnapshotRequest:
		id = q.GetSourceVolumeId()
	case *csi.NodeGetVolumeStatsRequest:
		return ""
	case interface{ GetVolumeId() string }:
		id = q.GetVolumeId()
	}
	for _, have := range c.volumes {
		if have == id {
			return id
		}
	}
	return ""
}

func missing(call *proxy.Call, id string) Violation {
	return violation(call, "missing-not-ok", call.Method, "%s of %q, which does not exist, answered %s (%s); it must answer OK", call.Method, id, call.Code, call.Message)
}

// Missing judges the deletion of an id that never was.
func Missing(call *proxy.Call) []Violation {
	if call.Code == codes.OK || !call.Answered() {
		return nil
	}
	return []Violation{missing(call, "an id that never was")}
}

func (c *Checker) shown(text string) bool {
	return slices.ContainsFunc(c.secrets, func(s string) bool { return strings.Contains(text, s) })
}

// NotIdempotent is a request that was answered OK and then, sent again, with an error.
func NotIdempotent(method string, call int, code, message string) Violation {
	return Violation{Rule: method + "/not-idempotent", Section: method, Call: call,
		Text: method + " answered OK, and to the same request again " + code + " (" + message + "); it must be idempotent"}
}
