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
kill -9. Claims, pods and the data of persistent volumes stay: the next ` + "`berth up`" + ` mounts again what pods want. What
pods have in emptyDir volumes goes. A volume with files open in it
is not torn away: the command says which, and which process has them; end it and run ` + "`berth down`" + ` again. Until then the
instance runs on, with the other volumes unmounted. What runs by ` + "`berth exec`" + ` is ended, as at the end of its pod.`,
		Example: `  berth down
  berth down --data-dir /srv/berth`,
		Args: usage(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return standalone.Down(c.Context(), g.dataDir, c.OutOrStdout())
		},
	}
}
