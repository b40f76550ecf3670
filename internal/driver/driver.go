// Package driver is Berth's CSI driver: it translates between the Container Storage Interface and a backend.
//
// In a volume's journey each RPC here is one step: CreateVolume provisions, ControllerPublishVolume attaches,
// NodeStageVolume and NodePublishVolume mount, and the others undo. What flows in are requests from the provision, attach and
// mount rooms, or from official sidecars and a kubelet; what flows out are calls of a backend.Backend. Requests are
// validated here, and gRPC codes are chosen here from the backend's typed errors (codes.go) and nowhere below. The
// package never touches a device or makes a mount.
//
// Only what works is advertised: snapshots, groups of them, changed blocks and modification are served when the backend
// has the methods for them (backend.Snapshotter, Changes, Modifier).
package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/backend/hold"
	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/trace"
)

// BlockName is the name of the driver of the block store.
const BlockName = "block.csi.berth.io"

// Options of a driver.
type Options struct {
	// Name of the CSI driver, as CSIDriver and StorageClasses have it.
	Name    string
	Version string
	// Node is this node's name: the node id, and the value of TopologyKey.
	Node string
	// SocketPath is where the driver is served: <data directory>/plugins/<name>/csi.sock.
	SocketPath string
	// Backend of a driver that serves the volumes of its own node.
	Backend backend.Backend
	// Controller in place of Backend makes a driver of the Identity, Controller and GroupController services alone, as a cluster's
	// controller runs it: its volumes are on many nodes, so that it has to be a backend.Placer. Node is not needed then.
	Controller backend.Controller
	// MaxVolumes per node; 0 is DefaultMaxVolumes.
	MaxVolumes int64

	Log     *slog.Logger
	Trace   *trace.Journal
	Metrics prometheus.Registerer
}

// DefaultMaxVolumes on one node. A loop device and two mounts each: the kernel has no limit near it.
const DefaultMaxVolumes = 1000

// Driver serves one backend.
type Driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
	csi.UnimplementedGroupControllerServer
	csi.UnimplementedSnapshotMetadataServer

	o Options
	// controller is the half of the backend that every driver has.
	controller backend.Controller
	// What a backend need not have; nil where it has not.
	snapshots backend.Snapshotter
	changes   backend.Changes
	modifier  backend.Modifier
	placer    backend.Placer

	attached attachLimit
	inline   *inlineNotes
	holds    hold.Table // of inline volumes, by handle
	metrics  *metrics
	serving  chan struct{}
	// patience with the reader of a stream.
	patience time.Duration
}

// New makes a driver. It serves nothing before Run.
func New(o Options) (*Driver, error) {
	if o.Controller == nil && (o.Name == "" || o.Node == "" || o.Backend == nil) {
		return nil, errors.New("driver: Name, Node and Backend are needed")
	}
	if o.Controller != nil && (o.Name == "" || o.Backend != nil) {
		return nil, errors.New("driver: with Controller, Name is needed, and Backend cannot be given")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Version == "" {
		o.Version = "dev"
	}
	if o.MaxVolumes == 0 {
		o.MaxVolumes = DefaultMaxVolumes
	}
	o.Log = o.Log.With(slog.String("driver", o.Name))
	m, err := newMetrics(o.Name, o.Metrics)
	if err != nil {
		return nil, fmt.Errorf("driver %s: %w", o.Name, err)
	}
	d := &Driver{o: o, controller: o.Controller, attached: attachLimit{most: o.MaxVolumes}, metrics: m, serving: make(chan struct{}), patience: slowestReader}
	if o.Backend != nil {
		d.controller = o.Backend
		if d.inline, err = openInlineNotes(filepath.Join(filepath.Dir(o.SocketPath), "inline"), o.Log); err != nil {
			return nil, fmt.Errorf("driver %s: %w", o.Name, err)
		}
	}
	d.modifier, _ = d.controller.(backend.Modifier)
	d.placer, _ = d.controller.(backend.Placer)
	if o.Controller != nil && d.placer == nil {
		return nil, fmt.Errorf("driver %s: its Controller must be a backend.Placer", o.Name)
	}
	if d.snapshots, _ = d.controller.(backend.Snapshotter); d.snapshots != nil {
		d.changes, _ = d.controller.(backend.Changes) // between snapshots
	}
	return d, nil
}

// Register offers the driver's services on a gRPC server: Run's own, or an in-process one.
func (d *Driver) Register(s grpc.ServiceRegistrar) {
	csi.RegisterIdentityServer(s, d)
	csi.RegisterControllerServer(s, d)
	if d.o.Backend != nil {
		csi.RegisterNodeServer(s, d)
	}
	if d.snapshots != nil {
		csi.RegisterGroupControllerServer(s, d)
	}
	if d.changes != nil {
		csi.RegisterSnapshotMetadataServer(s, d)
	}
}

// Serving is closed as soon as Run accepts connections.
func (d *Driver) Serving() <-chan struct{} { return d.serving }

// drain is how long calls under way may take when Run ends.
const drain = 10 * time.Second

// Run serves the driver on its socket until ctx ends and the calls under way have ended.
func (d *Driver) Run(ctx context.Context) error {
	listener, err := Listen(d.o.SocketPath)
	if err != nil {
		return fmt.Errorf("driver %s: %w", d.o.Name, err)
	}
	if d.o.Backend != nil {
		d.clearInline(ctx)
	}
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(d.intercept), grpc.ChainStreamInterceptor(d.interceptStream))
	d.Register(server)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		force := time.AfterFunc(drain, server.Stop)
		server.GracefulStop()
		force.Stop()
	})
	watching, unwatch := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() { defer close(watched); d.keepSocket(watching, server) }()
	defer func() { unwatch(); <-watched }()
	close(d.serving)
	err = server.Serve(listener) // removes the socket when it stops
	if !stop() {
		<-stopped
		return nil
	}
	return fmt.Errorf("serve driver %s at %s: %w", d.o.Name, d.o.SocketPath, err)
}

// Listen makes a unix socket that only this user can connect to. A socket that a killed process left is replaced; one that
// somebody answers on is not. A path too long for a socket is an error that says so.
func Listen(path string) (net.Listener, error) {
	const longest = 107 // sun_path, unix(7)
	if len(path) > longest {
		return nil, fmt.Errorf("the socket's path is too long, %d of %d bytes: %s: choose a shorter data directory", len(path), longest, path)
	}
	const probe = time.Second
	if conn, err := net.DialTimeout("unix", path, probe); err == nil {
		conn.Close()
		return nil, fmt.Errorf("%s is served by another process", path)
	}
	err := boundary.Do("driver/make-socket-directory", func() error {
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var listener net.Listener
	err = boundary.Do("driver/listen", func() (err error) {
		if listener, err = net.Listen("unix", path); err != nil {
			return err
		}
		return os.Chmod(path, 0o600)
	})
	return listener, err
}
