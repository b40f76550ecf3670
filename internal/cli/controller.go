package cli

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"berth.io/berth/internal/apiclient"
	"berth.io/berth/internal/cluster"
	"berth.io/berth/internal/discovery/vanished"
)

func newController() *cobra.Command {
	o := cluster.ControllerOptions{Election: cluster.DefaultElection, Vanished: vanished.DefaultDelays(), Version: Version}
	var addresses, controllers, gates []string
	var election, immediate bool
	c := &cobra.Command{
		Use:   "controller",
		Short: "In a cluster: do the work of every CSI sidecar, for all drivers",
		Long: `Do in a Kubernetes cluster what external-provisioner, external-attacher, external-resizer, external-snapshotter and the snapshot controller
do, for Berth's own driver and for every driver whose controller service is named with --csi-address. Flags are named as the
sidecars name them. Several replicas elect one that works.

In a pod the service account is used, elsewhere --kubeconfig.`,
		Example: `  berth controller --http-endpoint :8080
  berth controller --csi-address /csi/csi.sock --csi-address nfs.csi.k8s.io=/nfs/csi.sock
  berth controller --kubeconfig ~/.kube/config --csi-address /run/csi/socket --controllers=-block --leader-election=false
  berth controller --controllers=*,-snapshot-controller   # the cluster has one already`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			o.Election.Off, o.NoImmediateTopology = !election, !immediate
			if o.CSIAddress, err = cluster.ParseAddresses(addresses); err == nil {
				o.Controllers, err = cluster.ChooseRoles(controllers)
			}
			if err == nil {
				o.Gates, err = cluster.ParseGates(gates)
			}
			if err == nil {
				err = o.Validate()
			}
			if err == nil {
				o.Log, err = clusterLog(c)
			}
			if err != nil {
				return &exitError{exitUsage, err}
			}
			return cluster.RunController(c.Context(), o)
		},
	}
	f := c.Flags()
	clusterFlags(c, &o.API, &o.HTTP)
	f.StringArrayVar(&addresses, "csi-address", nil, "SOCKET or NAME=SOCKET of a CSI driver's controller service; without NAME the driver is asked for it; repeatable")
	f.StringSliceVar(&controllers, "controllers", []string{"*"}, "which work to do: "+strings.Join(cluster.Roles, ", ")+"; * is all, -NAME all but that one")
	f.IntVar(&o.Workers, "worker-threads", cluster.DefaultWorkers, "workers for each driver and kind of work, that is calls of a driver at the same time; rare work has a quarter of them")
	f.DurationVar(&o.RPCTimeout, "timeout", cluster.DefaultRPCTimeout, "how long a call of a driver may take")
	f.StringSliceVar(&gates, "feature-gates", nil, "NAME=true|false: "+strings.Join(cluster.Gates(), ", "))
	f.BoolVar(&o.ExtraCreateMetadata, "extra-create-metadata", false, "tell drivers the names of claim, volume and snapshot with what they are to make")
	f.BoolVar(&o.ExtraModifyMetadata, "extra-modify-metadata", false, "tell drivers the names of claim and volume with a change of attributes")
	f.StringVar(&o.DefaultFSType, "default-fstype", "", "filesystem of volumes whose StorageClass names none (default: the driver's choice)")
	f.BoolVar(&o.StrictTopology, "strict-topology", false, "for a claim that waits for its pod: name the selected node's topology alone to the driver")
	f.BoolVar(&immediate, "immediate-topology", true, "for a claim that is bound at once: name the topologies of all nodes that have the driver")
	f.BoolVar(&o.ControllerPublishReadOnly, "controller-publish-readonly", false, "attach volumes for reading alone whose claim has the access mode ReadOnlyMany only")
	f.DurationVar(&o.CapacityPoll, "capacity-poll-interval", 0, "how often drivers are asked for their capacity that do not say when it changes (default 10m)")
	f.BoolVar(&election, "leader-election", true, "work only while this process holds the Lease")
	f.StringVar(&o.Election.Name, "leader-election-lease-name", o.Election.Name, "name of the Lease")
	f.StringVar(&o.Election.Namespace, "leader-election-namespace", "", "namespace of the Lease (default: the pod's)")
	f.DurationVar(&o.Election.LeaseDuration, "leader-election-lease-duration", o.Election.LeaseDuration, "how long others wait before they take over a Lease that is not renewed")
	f.DurationVar(&o.Election.RenewDeadline, "leader-election-renew-deadline", o.Election.RenewDeadline, "how long the holder tries to renew the Lease before it stops")
	f.DurationVar(&o.Election.RetryPeriod, "leader-election-retry-period", o.Election.RetryPeriod, "how often it is tried")
	o.Vanished.AddFlags(f)
	_ = c.RegisterFlagCompletionFunc("controllers", cobra.FixedCompletions(append([]string{"*"}, cluster.Roles...), cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("feature-gates", cobra.FixedCompletions(cluster.Gates(), cobra.ShellCompDirectiveNoFileComp))
	return c
}

// clusterFlags are those of both programs of a cluster.
func clusterFlags(c *cobra.Command, a *cluster.API, http *string) {
	f := c.Flags()
	f.StringVar(&a.Kubeconfig, "kubeconfig", os.Getenv("KUBECONFIG"), "kubeconfig file (environment: KUBECONFIG; default: the pod's service account)")
	f.Float32Var(&a.QPS, "kube-api-qps", 0, "requests to the API in a second, of all clients together (default: 20 for each of the workers)")
	f.IntVar(&a.Burst, "kube-api-burst", 0, "requests to the API at once (default: twice --kube-api-qps)")
	f.StringVar(http, "http-endpoint", "", "ADDR:PORT that serves /healthz, /readyz and /metrics, such as :8080 (default: nothing is served)")
	f.IntP("v", "v", 0, "how much is logged: 0 is what an operator wants, 4 what a developer does")
	f.String("logging-format", "text", "text or json")
}

// clusterLog writes to standard error, as pods do. klog, which the libraries speak, goes the same way.
func clusterLog(c *cobra.Command) (*slog.Logger, error) {
	v, err := c.Flags().GetInt("v")
	if err != nil || v < 0 || v > 10 {
		return nil, fmt.Errorf("-v %d: want 0 to 10", v)
	}
	format, _ := c.Flags().GetString("logging-format")
	h, err := logHandler(c.ErrOrStderr(), format, v)
	if err != nil {
		return nil, err
	}
	log := slog.New(h)
	var level klog.Level
	if err := level.Set(fmt.Sprint(v)); err != nil {
		return nil, err
	}
	apiclient.LogTo(log)
	return log, nil
}

func logHandler(to io.Writer, format string, v int) (slog.Handler, error) {
	// klog's V(n) arrives at level -n.
	o := &slog.HandlerOptions{Level: slog.Level(-v)}
	switch format {
	case "text":
		return slog.NewTextHandler(to, o), nil
	case "json":
		return slog.NewJSONHandler(to, o), nil
	}
	return nil, fmt.Errorf("--logging-format %q: want text or json", format)
}
