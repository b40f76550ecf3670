package cli

import (
	"io"
	"os"

	"github.com/spf13/cobra"

	"berth.io/berth/internal/standalone"
	"berth.io/berth/internal/why"
)

func newStatus(g *global) *cobra.Command {
	var out *format
	c := &cobra.Command{
		Use:   "status",
		Short: "Show components, node, pools, drivers and volumes at a glance",
		Long: `Show the instance at a glance: components, node, pools with their capacity, drivers, volumes, claims and pods by phase,
the operations under way, and what does not get on. A claim that waits for its first pod is counted as such: its class
makes the volume where the pod runs. Exit code 3 when nothing is running.`,
		Example: `  berth status
  berth status --data-dir /srv/berth
  berth status -o json`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var s why.Status
			if err := g.ask(c.Context(), standalone.PathStatus, &s); err != nil {
				return err
			}
			return out.write(c.OutOrStdout(), s, func(w io.Writer) error { return s.WriteText(w, why.TextOptions{Color: isTerminal(w)}) })
		},
	}
	out = outputFlag(c)
	return c
}

// isTerminal says whether a person looks at w, for colours.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}
