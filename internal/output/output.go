// Package output prints what a command found, for a person or for a program.
package output

import (
	"encoding/json"
	"io"

	"sigs.k8s.io/yaml"
)

// The formats for programs, as the value of -o.
const (
	JSON = "json"
	YAML = "yaml"
)

// Write prints v in the format; with any other than JSON and YAML text prints it for a person.
func Write(w io.Writer, format string, v any, text func(io.Writer) error) error {
	switch format {
	case JSON:
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case YAML:
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	}
	return text(w)
}
