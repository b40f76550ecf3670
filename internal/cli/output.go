package cli

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"berth.io/berth/internal/output"
)

// format is the value of -o.
type format string

const (
	asText format = ""
	asJSON format = output.JSON
	asYAML format = output.YAML
)

func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "json|yaml" }

// Set implements pflag.Value.
func (f *format) Set(s string) error {
	switch format(s) {
	case asJSON, asYAML:
		*f = format(s)
		return nil
	}
	return fmt.Errorf("want json or yaml")
}

// outputFlag adds -o to a command.
func outputFlag(c *cobra.Command) *format {
	f := new(format)
	c.Flags().VarP(f, "output", "o", "output format: json or yaml (default: text for a person)")
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	return f
}

// write prints v in the format; text prints it for a person.
func (f *format) write(w io.Writer, v any, text func(io.Writer) error) error {
	return output.Write(w, string(*f), v, text)
}
