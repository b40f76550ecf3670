package try

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"
)

// Options are the flags of `berth try`.
type Options struct {
	Driver     string // a socket, or the command that starts the driver
	Controller string // the same for its controller service, where that is apart

	ClassParameters map[string]string
	Secrets         map[string]string
	// MutableParameters are those of a VolumeAttributesClass, for csi-sanity.
	MutableParameters map[string]string
	CSIDriver         string // manifest of the driver's CSIDriver object; empty: one is made from its capabilities

	Only, Skip []string
	Size       string        // of a volume, as a quantity
	Scale      int           // volumes at once
	Timeout    time.Duration // of the whole run
	Keep       bool          // leave the directory with logs
	JUnit      string        // file

	Out     io.Writer `json:"-"` // progress and findings, for a person; nil: none
	Color   bool
	Version string
}

// ErrUsage says that the bench could not begin: a wrong flag, or a driver that is not there.
var ErrUsage = errors.New("nothing was tried")

func usagef(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrUsage, fmt.Errorf(format, args...))
}

// Defaults of the flags.
const (
	DefaultSize    = "64Mi"
	DefaultScale   = 100
	DefaultTimeout = 10 * time.Minute
)

// Validate checks what can be checked before anything is started.
func (o *Options) Validate() error {
	if strings.TrimSpace(o.Driver) == "" {
		return usagef("--driver is needed: the driver's socket, or the command that starts it")
	}
	for _, at := range []struct{ flag, value string }{{"--driver", o.Driver}, {"--controller", o.Controller}} {
		if at.value == "" {
			continue
		}
		if _, err := parseTarget(at.value); err != nil {
			return usagef("%s: %w", at.flag, err)
		}
	}
	q, err := resource.ParseQuantity(o.Size)
	if err != nil || q.Value() <= 0 {
		return usagef("--size %q is not a size such as 64Mi", o.Size)
	}
	if o.Scale < 1 || o.Scale > 10000 {
		return usagef("--scale %d: want 1 to 10000 volumes", o.Scale)
	}
	if o.Timeout <= 0 {
		return usagef("--timeout %s: want more than nothing", o.Timeout)
	}
	_, err = selectSteps(o.Only, o.Skip)
	return err
}

func (o *Options) size() int64 {
	q := resource.MustParse(o.Size)
	return q.Value()
}

// ParseParameters reads "k=v,k2=v2"; values may have '=' in them, and several flags are joined.
func ParseParameters(flag string, lists []string) (map[string]string, error) {
	out := map[string]string{}
	for _, list := range lists {
		for pair := range strings.SplitSeq(list, ",") {
			if pair = strings.TrimSpace(pair); pair == "" {
				continue
			}
			k, v, ok := strings.Cut(pair, "=")
			if !ok || k == "" {
				return nil, usagef("%s %q: want KEY=VALUE", flag, pair)
			}
			if _, twice := out[k]; twice {
				return nil, usagef("%s: %q is given twice", flag, k)
			}
			out[k] = v
		}
	}
	return out, nil
}

// ParseSecrets reads KEY=VALUE, or a file: a YAML or JSON map of strings. No error shows a value.
func ParseSecrets(args []string) (map[string]string, error) {
	out := map[string]string{}
	add := func(k, v string) error {
		if k == "" || strings.Trim(k, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" {
			return usagef("--secret: a key may have letters, digits, '-', '_' and '.' (CSI specification, Secrets Requirements)")
		}
		if _, twice := out[k]; twice {
			return usagef("--secret: %q is given twice", k)
		}
		out[k] = v
		return nil
	}
	for _, a := range args {
		if k, v, ok := strings.Cut(a, "="); ok {
			if err := add(k, v); err != nil {
				return nil, err
			}
			continue
		}
		b, err := os.ReadFile(a)
		if err != nil {
			return nil, usagef("--secret: neither KEY=VALUE nor a file that can be read: %w", err)
		}
		var m map[string]string
		if err := yaml.UnmarshalStrict(b, &m); err != nil {
			return nil, usagef("--secret %s: the file is not a map of strings in YAML or JSON", a)
		}
		for k, v := range m {
			if err := add(k, v); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// secretValues in a stable order.
func (o *Options) secretValues() []string {
	var v []string
	for _, s := range o.Secrets {
		v = append(v, s)
	}
	slices.Sort(v)
	return v
}
