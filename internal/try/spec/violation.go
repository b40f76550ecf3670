package spec

import (
	"fmt"

	"berth.io/berth/internal/try/proxy"
)

// Violation is one broken rule.
type Violation struct {
	// Rule is a name that stays: "CreateVolume/capacity-below-required".
	Rule string `json:"rule"`
	// Section of the specification, as its headings have it; for rules of Kubernetes, who has them.
	Section string `json:"section"`
	// Text says what was seen, for the driver's author.
	Text string `json:"text"`
	// Call is the number of the RPC; 0 when it is no single one.
	Call int `json:"call,omitempty"`
	// Advice: the specification only recommends it, so that it fails nothing.
	Advice bool `json:"advice,omitempty"`
}

// Sections that more than one rule needs.
const (
	SectionErrors     = "Error Scheme"
	SectionSizes      = "Size Limits"
	SectionSecrets    = "Secrets Requirements"
	SectionTopology   = "CreateVolume (Topology)"
	SectionPluginCaps = "GetPluginCapabilities"
)

func violation(c *proxy.Call, rule, section, format string, args ...any) Violation {
	return Violation{Rule: c.Method + "/" + rule, Section: section, Text: fmt.Sprintf(format, args...), Call: c.Number}
}

func advice(c *proxy.Call, rule, section, format string, args ...any) Violation {
	v := violation(c, rule, section, format, args...)
	v.Advice = true
	return v
}
