package try

import (
	"encoding/json"
	"slices"
	"strings"

	"berth.io/berth/internal/try/spec"
)

// stripped stands where a secret was, as protosanitizer has it.
const stripped = "***stripped***"

// redactor takes secrets out of what a driver says: protosanitizer knows only the fields in which they belong.
type redactor struct{ replace *strings.Replacer }

func newRedactor(secrets []string) *redactor {
	var pairs []string
	// The longest first: of two that begin alike, the shorter would leave the other's end.
	secrets = slices.SortedFunc(slices.Values(secrets), func(a, b string) int { return len(b) - len(a) })
	for _, s := range secrets {
		if len(s) < spec.LeastSecret {
			continue // it would take letters out of every word
		}
		pairs = append(pairs, s, stripped)
		if b, err := json.Marshal(s); err == nil && string(b[1:len(b)-1]) != s {
			pairs = append(pairs, string(b[1:len(b)-1]), stripped)
		}
	}
	return &redactor{strings.NewReplacer(pairs...)}
}

func (r *redactor) text(s string) string { return r.replace.Replace(s) }

func (r *redactor) texts(all []string) []string {
	for i := range all {
		all[i] = r.text(all[i])
	}
	return all
}

func (r *redactor) rpc(c RPC) RPC {
	c.Message = r.text(c.Message)
	if c.Request != nil {
		c.Request = json.RawMessage(r.text(string(c.Request)))
	}
	if c.Response != nil {
		c.Response = json.RawMessage(r.text(string(c.Response)))
	}
	return c
}

func (r *redactor) violations(all []spec.Violation) []spec.Violation {
	for i := range all {
		all[i].Text = r.text(all[i].Text)
	}
	return all
}
