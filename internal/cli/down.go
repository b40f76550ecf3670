package cli

import (
	"github.com/spf13/cobra"

	"berth.io/berth/internal/standalone"
)

func newDown(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Unmount and detach all volumes, and stop the instance",
		Long: `Unmount and detach all volumes, and stop the instance. It works also when nothing runs any more, for instance after a
kill -9. Claims, pods and the data of persistent volumes stay: the next ` + "`berth up`" + ` mounts again what pods want.

Nothing is torn away from a process that uses it: the command says which volume, and which process; end that and run
` + "`berth down`" + ` again. Until then the instance runs on. What runs by ` + "`berth exec`" + ` is ended, as at the end of its pod.`,
		Example: `  berth down
  berth down --data-dir /srv/berth`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			d, err := g.dir()
			if err != nil {
				return err
			}
			return standalone.Down(c.Context(), string(d), c.OutOrStdout())
		},
	}
}
