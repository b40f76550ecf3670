package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"berth.io/berth/internal/flexvolume/install"
	"berth.io/berth/internal/plugin/flexvolume"
)

// flexvolumeCommand is what the subcommands of `berth flexvolume` share.
type flexvolumeCommand struct{ dir string }

func newFlexvolume() *cobra.Command {
	f := &flexvolumeCommand{}
	c := &cobra.Command{
		Use:   "flexvolume",
		Short: "Install, list and remove FlexVolume drivers on this node",
		Long: `Install, list and remove FlexVolume drivers on this node: block, cifs, lvm and nfs, one small program under the names that a kubelet,
or ` + "`berth up`" + `, looks for (VENDOR~DRIVER/DRIVER). A host takes up a change at once; nothing is restarted.`,
		Example: `  berth flexvolume install                   # berth/block, berth/cifs, berth/lvm, berth/nfs
  berth flexvolume install nfs --vendor k8s  # for volumes whose driver is k8s/nfs
  berth flexvolume list`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.PersistentFlags().StringVar(&f.dir, "dir", filepath.Clean(flexvolume.DefaultDir), "volume plugin directory: the kubelet's --volume-plugin-dir")
	_ = c.MarkPersistentFlagDirname("dir")
	c.AddCommand(f.install(), f.uninstall(), f.list())
	return c
}

func (f *flexvolumeCommand) vendorFlag(c *cobra.Command, value, help string) *string {
	vendor := c.Flags().String("vendor", value, help)
	_ = c.RegisterFlagCompletionFunc("vendor", f.completeVendors)
	return vendor
}

// completeVendors offers those in the directory, and the one that examples have.
func (f *flexvolumeCommand) completeVendors(c *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	vendors := []string{install.DefaultVendor, "k8s"}
	all, _ := install.List(c.Context(), f.dir, "")
	for _, i := range all {
		vendors = append(vendors, i.Vendor)
	}
	slices.Sort(vendors)
	return slices.Compact(vendors), cobra.ShellCompDirectiveNoFileComp
}

// completeDrivers offers those that the command line has not yet.
func completeDrivers(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return slices.DeleteFunc(slices.Clone(install.Drivers), func(d string) bool { return slices.Contains(args, d) }), cobra.ShellCompDirectiveNoFileComp
}

// driverArgs refuses what is no driver.
func driverArgs(c *cobra.Command, args []string) error {
	for _, a := range args {
		if !slices.Contains(install.Drivers, a) {
			return &exitError{exitUsage, fmt.Errorf("no driver is called %q: there are %s; see `%s --help`", a, strings.Join(install.Drivers, ", "), c.CommandPath())}
		}
	}
	return nil
}

func (f *flexvolumeCommand) install() *cobra.Command {
	var program string
	var vendor *string
	var force bool
	c := &cobra.Command{
		Use:   "install [DRIVER...]",
		Short: "Put drivers into the plugin directory, or newer ones",
		Long: `Put drivers into the plugin directory, or newer ones: all of them, or those named. Each appears in one step, whole; the same
version is left alone. A program of that name that is not Berth's is left alone, too, unless --force is given.`,
		Example: `  berth flexvolume install
  berth flexvolume install nfs cifs --vendor k8s
  berth flexvolume install --dir /var/lib/kubelet/volumeplugins   # where /usr is read-only`,
		Args:              driverArgs,
		ValidArgsFunction: completeDrivers,
		RunE: func(c *cobra.Command, args []string) error {
			if program == "" {
				self, err := os.Executable()
				if err != nil {
					return err
				}
				program = filepath.Join(filepath.Dir(self), install.Program)
			}
			changes, err := install.Install(c.Context(), program, install.Options{Dir: f.dir, Vendor: *vendor, Drivers: args, Force: force})
			for _, change := range changes {
				what := "installed"
				switch {
				case change.Same:
					what = "is there already"
				case change.Before != "":
					what = "replaces " + change.Before
				}
				fmt.Fprintf(c.OutOrStdout(), "%s/%s %s %s\n", change.Vendor, change.Driver, change.Version, what)
			}
			return advised(f.dir, err)
		},
	}
	vendor = f.vendorFlag(c, install.DefaultVendor, "vendor, the first part of the driver's name in volumes")
	c.Flags().StringVar(&program, "program", "", "the drivers' program (default: "+install.Program+" beside berth)")
	c.Flags().BoolVar(&force, "force", false, "replace a program that is not Berth's")
	return c
}

func (f *flexvolumeCommand) uninstall() *cobra.Command {
	var vendor *string
	var force bool
	c := &cobra.Command{
		Use:   "uninstall [DRIVER...]",
		Short: "Take drivers out of the plugin directory",
		Long: `Take drivers out of the plugin directory: all of a vendor's that are Berth's, or those named. One with volumes mounted stays, since
nothing else could unmount them.`,
		Example: `  berth flexvolume uninstall
  berth flexvolume uninstall nfs --vendor k8s`,
		Args:              driverArgs,
		ValidArgsFunction: completeDrivers,
		RunE: func(c *cobra.Command, args []string) error {
			removed, err := install.Uninstall(c.Context(), install.Options{Dir: f.dir, Vendor: *vendor, Drivers: args, Force: force})
			for _, i := range removed {
				fmt.Fprintf(c.OutOrStdout(), "%s/%s %s removed\n", i.Vendor, i.Driver, i.Version)
			}
			if err == nil && len(removed) == 0 {
				fmt.Fprintf(c.OutOrStdout(), "no driver of %s is installed in %s\n", *vendor, f.dir)
			}
			return advised(f.dir, err)
		},
	}
	vendor = f.vendorFlag(c, install.DefaultVendor, "vendor, the first part of the driver's name in volumes")
	c.Flags().BoolVar(&force, "force", false, "also one that is not Berth's, and one with volumes mounted")
	return c
}

func (f *flexvolumeCommand) list() *cobra.Command {
	var vendor *string
	var out *format
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the drivers in the plugin directory, with their versions",
		Example: `  berth flexvolume list
  berth flexvolume list --vendor k8s -o json`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			all, err := install.List(c.Context(), f.dir, *vendor)
			if err != nil {
				return advised(f.dir, err)
			}
			return out.write(c.OutOrStdout(), all, func(w io.Writer) error {
				if len(all) == 0 {
					_, err := fmt.Fprintf(w, "no FlexVolume driver is installed in %s; `berth flexvolume install` does\n", f.dir)
					return err
				}
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "DRIVER\tVERSION\tPATH")
				for _, i := range all {
					version := i.Version
					if !i.Ours {
						version = "(not Berth's)"
					} else if version == "" {
						version = "(does not run here)"
					}
					fmt.Fprintf(t, "%s/%s\t%s\t%s\n", i.Vendor, i.Driver, version, i.Path)
				}
				return t.Flush()
			})
		},
	}
	vendor = f.vendorFlag(c, "", "only this vendor's")
	out = outputFlag(c)
	return c
}

// advised says what to do about a directory that cannot be written.
func advised(dir string, err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w; run this as root, for instance with sudo", err)
	case err != nil && strings.Contains(err.Error(), "read-only file system"):
		return fmt.Errorf("%w; give another directory with --dir, the kubelet's --volume-plugin-dir (not %s)", err, dir)
	}
	return err
}
