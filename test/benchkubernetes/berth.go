package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// berthController starts `berth controller` for its own driver and the no-op ones, and waits until it says that it is ready.
func (b *bench) berthController(ctx context.Context, args ...string) (*process, error) {
	addr, err := freePort()
	if err != nil {
		return nil, err
	}
	args = append([]string{"controller", "--kubeconfig=" + b.cluster.kubeconfig, "--leader-election=false", "--http-endpoint=" + addr}, args...)
	for _, name := range berthNoop {
		args = append(args, "--csi-address="+b.sockets[name])
	}
	p, err := b.cluster.spawn("berth-controller", filepath.Join(b.bin, "berth"), args...)
	if err != nil {
		return nil, err
	}
	return p, p.ready(ctx, addr)
}

// The pool keeps each volume's size for it; the claims of one measurement fit, with room to spare.
const (
	poolSize  = "14Gi"
	blockSize = "16Mi"
)

// berthNode starts `berth node --kubernetes` with a pool in an image file, and waits until it is ready. Its mounts are its own, so that
// its end unmounts the pool and lets the loop device go.
func (b *bench) berthNode(ctx context.Context) (*process, error) {
	addr, err := freePort()
	if err != nil {
		return nil, err
	}
	kubelet := b.kubeletDir()
	if err := os.MkdirAll(filepath.Join(kubelet, "plugins_registry"), 0o755); err != nil {
		return nil, err
	}
	p, err := b.cluster.spawnApart("berth-node", filepath.Join(b.bin, "berth"), "node", "--kubernetes", "--kubeconfig="+b.cluster.kubeconfig,
		"--node-name="+nodeName, "--kubelet-dir="+kubelet, "--data-dir="+filepath.Join(b.cluster.dir, "node"), "--pool-size="+poolSize, "--http-endpoint="+addr)
	if err != nil {
		return nil, err
	}
	return p, p.ready(ctx, addr)
}

func (b *bench) kubeletDir() string { return filepath.Join(b.cluster.dir, "kubelet") }

// blockSocket is where the node serves Berth's driver: the kubelet's half of it and the controller's.
func (b *bench) blockSocket() string {
	return filepath.Join(b.kubeletDir(), "plugins", blockDriver, "csi.sock")
}

// ready waits until /readyz says 200, a minute at most.
func (p *process) ready(ctx context.Context, addr string) error {
	last := "no answer"
	err := p.until(ctx, time.Minute, "readiness", func() bool {
		resp, err := http.Get("http://" + addr + "/readyz")
		if err != nil {
			last = err.Error()
			return false
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		last = string(body)
		return resp.StatusCode == http.StatusOK
	})
	if err != nil {
		return fmt.Errorf("%w\n/readyz: %s", err, last)
	}
	return nil
}

// freePort is an address of the loopback that nobody listens on.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
