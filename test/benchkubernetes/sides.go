package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

// side is whose controllers a figure is of.
type side int

const (
	berthSide side = iota
	officialSide
)

// qps is what every client of either side may ask of the API in a second, and in a burst twice of it.
const qps = 500

// Berth's own driver, and its key of the topology.
const (
	blockDriver   = "block.csi.berth.io"
	blockTopology = "topology.block.csi.berth.io/node"
)

// The no-op drivers: three are Berth's beside its own, one is the official sidecars'.
const officialDriver = "noop-official.example.com"

var berthNoop = []string{"noop-a.example.com", "noop-b.example.com", "noop-c.example.com"}

// noop starts a no-op driver and returns the path of its socket.
func (c *cluster) noop(ctx context.Context, program, name string, detach time.Duration) (string, error) {
	socket := filepath.Join(c.dir, name+".sock")
	p, err := c.spawn(name, program, "--name="+name, "--endpoint="+socket, "--unpublish="+detach.String())
	if err != nil {
		return "", err
	}
	return socket, p.waitSocket(ctx, socket)
}

// sidecars are the official programs in the order in which they are named in a pod.
var sidecars = []string{"csi-provisioner", "csi-attacher", "csi-resizer", "csi-snapshotter"}

// sidecar starts one for the driver behind a socket.
func (c *cluster) sidecar(official, name, socket string, args ...string) (*process, error) {
	return c.spawn(name, filepath.Join(official, "bin", name), append([]string{"--kubeconfig=" + c.kubeconfig, "--csi-address=" + socket}, args...)...)
}

// fast lets a sidecar ask as much of the API as kube-controller-manager does.
var fast = []string{fmt.Sprintf("--kube-api-qps=%d", qps), fmt.Sprintf("--kube-api-burst=%d", 2*qps)}

// official starts all sidecars of one driver with --kube-api-qps=500.
func (c *cluster) official(dir, socket string) ([]*process, error) {
	var ps []*process
	for _, name := range sidecars {
		p, err := c.sidecar(dir, name, socket, fast...)
		if err != nil {
			return ps, err
		}
		ps = append(ps, p)
	}
	return ps, nil
}
