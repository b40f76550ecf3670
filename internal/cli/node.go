package cli

import (
	"cmp"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"berth.io/berth/internal/cluster"
	"berth.io/berth/internal/driver"
	"berth.io/berth/internal/plugin/flexvolume"
)

// EnvNodeName and EnvNodeNameOther name the node when --node-name does not; the sidecars use both.
const (
	EnvNodeName      = "KUBE_NODE_NAME"
	EnvNodeNameOther = "NODE_NAME"
)

func newNode(g *global) *cobra.Command {
	o := cluster.NodeOptions{Version: Version}
	var kubernetes, serve bool
	var addresses []string
	c := &cobra.Command{
		Use:   "node --kubernetes",
		Short: "In a cluster: serve the drivers of this node to its kubelet",
		Long: `Serve Berth's drivers on a node of a Kubernetes cluster: open the node's pool, answer the kubelet at its plugin directory, register,
answer liveness and readiness, and take the start-up taint ` + cluster.Taint + ` away when the kubelet shows the drivers. It does
the work of node-driver-registrar and livenessprobe for other drivers, too (--csi-address).

It runs as a privileged container of a DaemonSet, with the kubelet's directory and the data directory mounted under the same paths and
mountPropagation: Bidirectional. SIGTERM leaves the pool and every volume mounted, so an update disturbs no I/O.`,
		Example: `  berth node --kubernetes --http-endpoint :9809
  berth node --kubernetes --pool-device /dev/nvme1n1
  berth node --kubernetes --discovery-config /etc/berth/discovery --install-flexvolume ` + flexvolume.DefaultDir + `
  berth node --kubernetes --block=false --csi-address /csi/csi.sock   # the sidecars of another driver`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if !kubernetes {
				return &exitError{exitUsage, errors.New("berth node works with a kubelet: give --kubernetes; a machine without a cluster has its node in `berth up`")}
			}
			if g.dataDir == "" {
				return &exitError{exitUsage, errors.New("--data-dir is empty; name the directory of the pool")}
			}
			o.DataDir, o.WithoutBlock = g.dataDir, !serve
			if o.CSIAddress, err = cluster.ParseAddresses(addresses); err == nil {
				err = o.Validate()
			}
			if err == nil {
				o.Log, err = clusterLog(c)
			}
			if err != nil {
				return &exitError{exitUsage, err}
			}
			return cluster.RunNode(c.Context(), o)
		},
	}
	f := c.Flags()
	clusterFlags(c, &o.API, &o.HTTP)
	f.BoolVar(&kubernetes, "kubernetes", false, "work with the kubelet of this node")
	f.StringVar(&o.KubeletDir, "kubelet-dir", cluster.DefaultKubeletDir, "the kubelet's --root-dir")
	f.StringVar(&o.NodeName, "node-name", cmp.Or(os.Getenv(EnvNodeName), os.Getenv(EnvNodeNameOther)), fmt.Sprintf("name of this node's Node (environment: %s, %s)", EnvNodeName, EnvNodeNameOther))
	f.StringVar(&o.PoolSize, "pool-size", "", "most that the pool may take of the disk under the data directory, such as 50Gi (default: what an earlier start was given, else three quarters of what the disk has free at the first start)")
	f.StringVar(&o.PoolDevice, "pool-device", "", "a raw disk or partition for the pool instead of an image file; formatted only when it is blank")
	f.Int64Var(&o.MaxVolumes, "max-volumes", driver.DefaultMaxVolumes, "most volumes of the pool that the scheduler may attach to this node at once")
	f.BoolVar(&serve, "block", true, "keep a pool and serve block.csi.berth.io")
	f.StringArrayVar(&addresses, "csi-address", nil, "SOCKET or NAME=SOCKET of another CSI driver on this node, to register and to probe; repeatable")
	f.StringVar(&o.DiscoveryConfig, "discovery-config", "", "offer local disks as volumes: the mounted ConfigMap of the local volume static provisioner; read again when it changes")
	f.StringVar(&o.FlexVolumeDir, "install-flexvolume", "", "put the FlexVolume drivers into this directory, the kubelet's --volume-plugin-dir; newer ones replace older ones")
	f.StringVar(&o.DaemonSet, "daemonset", "berth-node", "DaemonSet of this process, in POD_NAMESPACE: when it is gone, so are the FlexVolume drivers; empty: they stay")
	for _, dir := range []string{"kubelet-dir", "discovery-config", "install-flexvolume"} {
		_ = c.MarkFlagDirname(dir)
	}
	return c
}
