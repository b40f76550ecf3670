package kubectlberth

import (
	"fmt"
	"io"

	printed "berth.io/berth/internal/output"
)

// output is the value of -o.
type output string

const (
	asText output = ""
	asJSON output = printed.JSON
	asYAML output = printed.YAML
	asWide output = "wide"
)

func (o *output) String() string { return string(*o) }
func (o *output) Type() string   { return "json|yaml|wide" }

// Set implements pflag.Value.
func (o *output) Set(s string) error {
	switch output(s) {
	case asJSON, asYAML, asWide, asText:
		*o = output(s)
		return nil
	}
	return fmt.Errorf("want json, yaml or wide")
}

// write prints v in the format; text prints it for a person.
func (o output) write(w io.Writer, v any, text func(io.Writer) error) error {
	return printed.Write(w, string(o), v, text)
}
