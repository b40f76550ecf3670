package flexvolume

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
)

// hidden stands for a secret in what a driver said.
const hidden = "<secret>"

// shortest is the length in bytes from which a secret can be found in a text. Of a shorter one every text would have some, so a
// text that has it is hidden whole.
const shortest = 4

// redactor takes a volume's secrets out of what its driver says. Its zero value changes nothing.
type redactor struct {
	words []string // the longest first
	short []string
}

// newRedactor knows each value as it is, each of its lines, and how shells, URLs, JSON and encoders spell it.
func newRedactor(secrets map[string][]byte) redactor {
	seen := map[string]bool{}
	var r redactor
	add := func(s string) {
		if s = strings.TrimSpace(s); s == "" || seen[s] {
			return
		}
		seen[s] = true
		if len(s) < shortest {
			r.short = append(r.short, s)
		} else {
			r.words = append(r.words, s)
		}
	}
	for _, value := range secrets {
		lines := strings.Split(string(value), "\n")
		for i, s := range append(lines, string(value)) {
			if len(strings.TrimSpace(s)) < shortest && (i < len(lines) && len(lines) > 1 || strings.TrimSpace(s) == "") {
				continue // "}" gives nothing away
			}
			add(s)
			add(oneLine(s, len(s)))
			add(strings.ReplaceAll(s, "'", `'\''`))
			add(strings.ReplaceAll(s, "'", `'"'"'`))
			add(url.QueryEscape(s))
			add(url.PathEscape(s))
			if quoted, err := json.Marshal(s); err == nil {
				add(strings.Trim(string(quoted), `"`))
			}
			for _, e := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
				add(e.EncodeToString([]byte(s)))
			}
			add(hex.EncodeToString([]byte(s)))
		}
	}
	slices.SortFunc(r.words, func(a, b string) int { return len(b) - len(a) })
	return r
}

func (r redactor) clean(s string) string {
	for _, w := range r.words {
		s = strings.ReplaceAll(s, w, hidden)
	}
	for _, w := range r.short {
		if strings.Contains(s, w) {
			return "(not shown: there may be a secret in it)"
		}
	}
	return s
}
