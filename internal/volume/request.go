package volume

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
)

// DefaultSize of a volume that says nothing, and comes from nothing that has a size.
const DefaultSize = "1Gi"

// Request is a volume to be made. Of Snapshot and Clone, one at most is set.
type Request struct {
	Name     string
	Size     *resource.Quantity // nil: the size of what it comes from, else DefaultSize
	Class    string             // empty: the class of the volume it comes from, else the default class
	FSType   string             // empty: the class's
	Snapshot string             // a VolumeSnapshot in the volume's namespace
	Clone    string             // a volume in the same namespace
}

// options by the name that users write after -o.
var options = map[string]func(r *Request, value string) error{
	"size":     func(r *Request, v string) (err error) { r.Size, err = ParseSize(v); return err },
	"class":    func(r *Request, v string) error { r.Class = v; return nil },
	"fsType":   func(r *Request, v string) error { r.FSType = v; return nil },
	"snapshot": func(r *Request, v string) error { r.Snapshot = v; return nil },
	"clone":    func(r *Request, v string) error { r.Clone = v; return nil },
}

// ParseOptions reads the options of a container engine's `volume create`. Capitals do not matter in their names.
func ParseOptions(name string, given map[string]string) (Request, error) {
	r := Request{Name: name}
	known := slices.Sorted(maps.Keys(options))
	seen := map[string]bool{}
	for _, key := range slices.Sorted(maps.Keys(given)) {
		i := slices.IndexFunc(known, func(k string) bool { return strings.EqualFold(k, key) })
		if i < 0 {
			return r, refuse("unknown option %q; the options are %s", key, strings.Join(known, ", "))
		}
		option, value := known[i], strings.TrimSpace(given[key])
		if seen[option] {
			return r, refuse("option %s is given twice", option)
		}
		seen[option] = true
		if value == "" {
			return r, refuse("option %s is empty", option)
		}
		if err := options[option](&r, value); err != nil {
			return r, err
		}
	}
	return r, r.Validate()
}

// ParseSize reads a size in bytes as Kubernetes writes it.
func ParseSize(text string) (*resource.Quantity, error) {
	q, err := resource.ParseQuantity(text)
	switch {
	case err != nil:
		return nil, refuse("size %q is not a size such as 10Gi or 500Mi", text)
	case q.Sign() <= 0:
		return nil, refuse("size %q: want more than nothing", text)
	case q.CmpInt64(math.MaxInt64) >= 0:
		return nil, refuse("size %q is more than any disk has", text)
	case q.Format == resource.DecimalSI && strings.HasSuffix(text, "m"):
		return nil, refuse("size %q counts thousandths of a byte; write %sM or %sMi", text, strings.TrimSuffix(text, "m"), strings.TrimSuffix(text, "m"))
	}
	return &q, nil
}

var fsTypes = regexp.MustCompile(`^[a-z][a-z0-9]{0,15}$`)

// Validate checks what can be said without asking the API.
func (r Request) Validate() error {
	if err := ValidateName(r.Name); err != nil {
		return err
	}
	if r.Snapshot != "" && r.Clone != "" {
		return refuse("snapshot and clone exclude each other: a volume comes from one source")
	}
	if r.Clone != "" {
		if err := ValidateName(r.Clone); err != nil {
			return fmt.Errorf("clone: %w", err)
		}
	}
	if r.FSType != "" && !fsTypes.MatchString(r.FSType) {
		return refuse("fsType %q is not the name of a filesystem such as ext4", r.FSType)
	}
	return nil
}

// given are the request's options as text, for comparison with those of another one.
func (r Request) given() map[string]string {
	m := map[string]string{}
	set := func(key, value string) {
		if value != "" {
			m[key] = value
		}
	}
	if r.Size != nil {
		set("size", r.Size.String())
	}
	set("class", r.Class)
	set("fsType", r.FSType)
	set("snapshot", r.Snapshot)
	set("clone", r.Clone)
	return m
}

func optionsText(m map[string]string) string {
	b, err := json.Marshal(m) // keys sorted: the same options give the same text
	if err != nil {
		return "{}"
	}
	return string(b)
}

// sizeIn is the size in an optionsText, if one was given.
func sizeIn(text string) (resource.Quantity, bool) {
	var m map[string]string
	if json.Unmarshal([]byte(text), &m) != nil {
		return resource.Quantity{}, false
	}
	q, err := resource.ParseQuantity(m["size"])
	return q, err == nil
}

// inWords is optionsText for a person.
func inWords(text string) string {
	var m map[string]string
	if json.Unmarshal([]byte(text), &m) != nil || len(m) == 0 {
		return "no options"
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, k+"="+m[k])
	}
	return strings.Join(parts, " ")
}
