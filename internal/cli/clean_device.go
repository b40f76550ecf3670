package cli

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"berth.io/berth/internal/discovery"
)

// newCleanDevice is what a Job runs that cleans a local disk (docs/discovery.md, useJobForCleaning); nobody types it.
func newCleanDevice() *cobra.Command {
	var disk string
	var raw bool
	c := &cobra.Command{
		Use:   "clean-device [--disk IDENTITY] [--raw] -- SCRIPT [ARGUMENT]...",
		Short: "Wipe the device that " + discovery.EnvDevice + " names, as the local volume provisioner's SCRIPT does",
		Long: `Wipe the device that ` + discovery.EnvDevice + ` names, as the local volume provisioner's SCRIPT does: ` + "`/scripts/quick_reset.sh`" + `, blkdiscard.sh,
dd_zero.sh, shred.sh. It is what a Job runs that cleans a local disk (useJobForCleaning). A device in use is refused.`,
		Example: `  ` + discovery.EnvDevice + `=/mnt/raw/disk1 berth clean-device -- /scripts/dd_zero.sh`,
		Hidden:  true,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, command []string) error {
			device := os.Getenv(discovery.EnvDevice)
			if device == "" {
				return &exitError{exitUsage, errors.New(discovery.EnvDevice + " names no device")}
			}
			last := ""
			return discovery.CleanDevice(c.Context(), device, disk, raw, command, func(progress string) {
				if progress != last {
					fmt.Fprintln(c.OutOrStdout(), progress)
				}
				last = progress
			})
		},
	}
	c.Flags().StringVar(&disk, "disk", "", "the identity that the device must have")
	c.Flags().BoolVar(&raw, "raw", false, "pods get the device itself: no byte of the last one's may be left")
	return c
}
