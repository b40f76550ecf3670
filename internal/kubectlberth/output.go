package kubectlberth

import (
	"encoding/json"
	"fmt"
	"io"

	"sigs.k8s.io/yaml"
)

// output is the value of -o.
type output string

const (
	asText output = ""
	asJSON output = "json"
	asYAML output = "yaml"
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
	switch o {
	case asJSON:
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case asYAML:
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	}
	return text(w)
}
