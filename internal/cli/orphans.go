package cli

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"berth.io/berth/internal/standalone"
)

func newOrphans(g *global) *cobra.Command {
	var out *format
	c := &cobra.Command{
		Use:   "orphans",
		Short: "List volumes, snapshots, loop devices, mounts and attachments that belong to nobody",
		Long: `List what belongs to nobody: volumes that no PersistentVolume names, snapshots that no VolumeSnapshotContent names and
contents whose snapshot is gone, loop devices without a volume, mounts and directories of pods that are gone, attachments of
volumes that are gone. On a healthy instance there are none. Nothing is removed.`,
		Example: `  berth orphans
  berth orphans -o json`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			found := []standalone.Orphan{}
			if err := g.ask(c.Context(), standalone.PathOrphans, &found); err != nil {
				return err
			}
			return out.write(c.OutOrStdout(), found, func(w io.Writer) error {
				if len(found) == 0 {
					_, err := fmt.Fprintln(w, "none")
					return err
				}
				t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
				fmt.Fprintln(t, "KIND\tNAME\tDETAIL")
				for _, o := range found {
					fmt.Fprintf(t, "%s\t%s\t%s\n", o.Kind, o.Name, o.Detail)
				}
				return t.Flush()
			})
		},
	}
	out = outputFlag(c)
	return c
}
