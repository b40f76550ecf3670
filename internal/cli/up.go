package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"berth.io/berth/internal/plugin/flexvolume"
	"berth.io/berth/internal/standalone"
)

func newUp(g *global) *cobra.Command {
	var o standalone.Options
	var level string
	var attaches bool
	c := &cobra.Command{
		Use:   "up",
		Short: "Start an instance on this machine and stay in the foreground",
		Long: `Start an instance on this machine: the API (etcd and kube-apiserver), the controllers, the node agent and the
drivers. It stays in the foreground. Ctrl-C or SIGTERM stops it and leaves volumes mounted, as a kubelet does; the
next start finds what is there and goes on. ` + "`berth down`" + ` unmounts and detaches as well.

Several instances run side by side, each with its own --data-dir.`,
		Example: `  berth up
  berth up --data-dir /srv/berth --pool-size 50Gi --apply examples/quickstart.yaml
  berth up --pool-device /dev/nvme1n1 --http-endpoint 127.0.0.1:9808
  berth up --data-dir /srv/other             # a second instance beside the first
  berth up --controllers upstream            # upstream's volume controllers, to compare with`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.LogLevel.UnmarshalText([]byte(level)); err != nil {
				return &exitError{exitUsage, fmt.Errorf("--log-level %q: want debug, info, warn or error", level)}
			}
			d, err := g.dir()
			if err != nil {
				return err
			}
			o.AttachOnNode = !attaches
			o.DataDir, o.Version, o.Out = string(d), Version, c.OutOrStdout()
			if err := o.Validate(); err != nil {
				return &exitError{exitUsage, err}
			}
			return standalone.Up(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Listen, "listen", "", "address and port of the API, ADDR:PORT (default: that of the last start, else the first free port of 127.0.0.1 from 6443 on)")
	f.StringArrayVar(&o.Apply, "apply", nil, "manifest to apply once in the instance's life, - for standard input; repeatable")
	f.StringVar(&o.PoolSize, "pool-size", "", "most that the default pool may take of the disk under the data directory, such as 50Gi (default: what an earlier start was given, else three quarters of what the disk has free at the first start)")
	f.StringVar(&o.PoolDevice, "pool-device", "", "a raw disk or partition for the default pool instead of an image file; formatted only when it is blank")
	f.StringVar(&o.Controllers, "controllers", standalone.ControllersBerth, "who runs the volume controllers: berth or upstream")
	f.StringVar(&o.NodeName, "node-name", "", "name of this node (default: the host's name)")
	f.StringVar(&o.HTTP, "http-endpoint", "", "ADDR:PORT that serves /healthz, /readyz and /metrics (default: the control socket only)")
	f.StringToStringVar(&o.CSIAddress, "csi-address", nil, "DRIVER=SOCKET: where the controller service of a driver is, when it is not on its node socket; repeatable")
	f.StringVar(&o.SnapshotMetadata, "snapshot-metadata", "", "ADDR:PORT of the service that tells backup programs which blocks of a snapshot have changed, or off (default: a free port of 127.0.0.1)")
	f.StringVar(&o.VolumePluginDir, "volume-plugin-dir", flexvolume.DefaultDir, "directory of the FlexVolume drivers, as a kubelet's; watched, so that drivers come and go at run time")
	f.DurationVar(&o.FlexVolume.Call, "flexvolume-timeout", flexvolume.DefaultLimits.Call, "how long a call of a FlexVolume driver may take before it is killed")
	f.DurationVar(&o.FlexVolume.Attach, "flexvolume-attach-timeout", flexvolume.DefaultLimits.Attach, "the same for attach, waitforattach and mountdevice")
	f.DurationVar(&o.FlexVolume.Init, "flexvolume-init-timeout", flexvolume.DefaultLimits.Init, "the same for init")
	f.StringVar(&o.DiscoveryConfig, "discovery-config", "", "offer local disks as volumes: the ConfigMap of the local volume static provisioner, as a manifest or as a directory with a file for each key; read again when it changes")
	f.BoolVar(&attaches, "enable-controller-attach-detach", true, "the attach/detach controller attaches volumes; with false this node does it by itself")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error; logs are in log/ of the data directory")
	f.BoolVar(&o.Bare, "bare", false, "no pool and no driver of our own: for `berth try`, which brings a driver")
	_ = f.MarkHidden("bare")
	pluginFlags(c, &o)
	_ = c.MarkFlagDirname("volume-plugin-dir")
	_ = c.MarkFlagFilename("apply", "yaml", "yml", "json")
	_ = c.RegisterFlagCompletionFunc("controllers", cobra.FixedCompletions([]string{standalone.ControllersBerth, standalone.ControllersUpstream}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}
