package cluster

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"berth.io/berth/internal/discovery"
	"berth.io/berth/internal/driver"
	"berth.io/berth/internal/nodepool"
)

// NodeOptions are the flags of `berth node --kubernetes`.
type NodeOptions struct {
	API        API
	KubeletDir string // the kubelet's --root-dir
	DataDir    string
	NodeName   string
	PoolSize   string
	PoolDevice string
	// MaxVolumes of the pool that may be attached to this node; 0: driver.DefaultMaxVolumes.
	MaxVolumes int64
	// CSIAddress are other drivers on this node, to be registered and probed as node-driver-registrar and livenessprobe do.
	CSIAddress []Address
	// WithoutBlock: no pool and no driver of our own.
	WithoutBlock bool
	// DiscoveryConfig is the mounted ConfigMap of the local volume static provisioner; empty: no discovery.
	DiscoveryConfig string
	// FlexVolumeDir is the kubelet's volume plugin directory, into which the FlexVolume drivers are put; empty: none are.
	FlexVolumeDir string
	// DaemonSet that this process is of, by name: with it gone, so are the FlexVolume drivers. Empty: they stay.
	DaemonSet string
	HTTP      string

	Log     *slog.Logger
	Version string
}

// Defaults of a node.
const (
	DefaultKubeletDir = "/var/lib/kubelet"
	// Taint is on a node from its beginning, by the kubelet's --register-with-taints, until its drivers are registered.
	Taint = "berth.io/agent-not-ready"
)

// Validate looks at the flags alone; an error names the one that is wrong.
func (o *NodeOptions) Validate() error {
	if o.NodeName == "" {
		return errors.New("--node-name (or KUBE_NODE_NAME) is needed: the name of the Node that this process runs on")
	}
	if problems := validation.IsDNS1123Subdomain(o.NodeName); len(problems) > 0 {
		return fmt.Errorf("--node-name %q: %s", o.NodeName, strings.Join(problems, "; "))
	}
	for flag, dir := range map[string]string{"--kubelet-dir": o.KubeletDir, "--data-dir": o.DataDir, "--install-flexvolume": o.FlexVolumeDir,
		"--discovery-config": o.DiscoveryConfig, "--pool-device": o.PoolDevice} {
		if dir != "" && (!filepath.IsAbs(dir) || strings.ContainsAny(dir, "\n\r\t\x00")) {
			return fmt.Errorf("%s %q is not an absolute path", flag, dir)
		}
	}
	if o.KubeletDir == "" || o.DataDir == "" {
		return errors.New("--kubelet-dir and --data-dir must not be empty")
	}
	if n := len(o.driverSocket()); n > longestSocket {
		return fmt.Errorf("--kubelet-dir %s is too long: the driver's socket below it would have %d bytes; the kernel allows %d", o.KubeletDir, n, longestSocket)
	}
	if o.PoolSize != "" && o.PoolDevice != "" {
		return errors.New("--pool-size and --pool-device exclude each other: a device is used whole")
	}
	if _, err := nodepool.ParseSize(o.PoolSize); err != nil {
		return fmt.Errorf("--pool-size: %w", err)
	}
	if o.MaxVolumes < 0 || o.MaxVolumes > driver.DefaultMaxVolumes { // the controller attaches no more
		return fmt.Errorf("--max-volumes %d: want 1 to %d, or 0 for as many", o.MaxVolumes, driver.DefaultMaxVolumes)
	}
	if !o.servesVolumes() && o.DiscoveryConfig == "" {
		return errors.New("--block=false without --csi-address, --discovery-config and --install-flexvolume leaves nothing to do")
	}
	for _, a := range o.CSIAddress {
		if a.Name == driver.BlockName && !o.WithoutBlock {
			return fmt.Errorf("--csi-address %s=%s: this process serves that driver itself", a.Name, a.Socket)
		}
	}
	return errors.Join(o.API.validate(), validEndpoint("--http-endpoint", o.HTTP))
}

// possible looks at what the flags name, and at who asks.
func (o *NodeOptions) possible() error {
	if os.Geteuid() != 0 {
		return errors.New("berth node needs root: it makes loop devices and mounts")
	}
	if fi, err := os.Stat(o.KubeletDir); err != nil {
		return fmt.Errorf("--kubelet-dir: %w; it is the kubelet's --root-dir, and must be mounted here under the same path", err)
	} else if !fi.IsDir() {
		return fmt.Errorf("--kubelet-dir %s is not a directory", o.KubeletDir)
	}
	if o.DiscoveryConfig != "" && !o.servesVolumes() {
		if _, err := discovery.ReadConfig(o.DiscoveryConfig); err != nil {
			return fmt.Errorf("--discovery-config: %w", err)
		}
	}
	return o.propagates()
}

// servesVolumes says that the node's volumes need this process: it must not end for a slip in the configuration of local disks, which is told
// by an event of the node then.
func (o *NodeOptions) servesVolumes() bool {
	return !o.WithoutBlock || len(o.CSIAddress) > 0 || o.FlexVolumeDir != ""
}

// driverSocket is where the kubelet calls our driver.
func (o *NodeOptions) driverSocket() string {
	return filepath.Join(o.KubeletDir, "plugins", driver.BlockName, "csi.sock")
}

// registration is where the kubelet's plugin watcher finds a driver.
func (o *NodeOptions) registration(name string) string {
	return filepath.Join(o.KubeletDir, "plugins_registry", name+"-reg.sock")
}
