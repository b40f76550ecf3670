// Package snapshotmetadata tells backup programs which blocks of a snapshot hold data, or have changed since an earlier
// one: Kubernetes' SnapshotMetadata service (KEP-3314), the role of the sidecar external-snapshot-metadata.
//
// One server serves all drivers that have CSI's SNAPSHOT_METADATA_SERVICE. For each it keeps a SnapshotMetadataService
// object with the address, the certificate and the audience that a client's token must be made for, which is the
// driver's name. A request names a VolumeSnapshot; who asks must be allowed to get it.
package snapshotmetadata

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	cbt "github.com/kubernetes-csi/external-snapshot-metadata/client/clientset/versioned"
	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	snapclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/client-go/kubernetes"
)

const (
	// DefaultListen is an address that the kernel completes with a free port.
	DefaultListen = "127.0.0.1:0"
	// defaultMaxStream bounds one answer, as upstream's sidecar does.
	defaultMaxStream = 10 * time.Minute
	// callTimeout bounds one call to the API server, or a short one to a driver.
	callTimeout = 30 * time.Second
)

// Options of a Server. Client, Snap and Services are required.
type Options struct {
	Client   kubernetes.Interface
	Snap     snapclient.Interface
	Services cbt.Interface
	// Listen is HOST:PORT; port 0 is one that the kernel chooses. Clients must reach it by that host.
	Listen string
	// MaxStream bounds one answer; 10 minutes when 0.
	MaxStream time.Duration
	Log       *slog.Logger
}

// Server of the SnapshotMetadata service.
type Server struct {
	api.UnimplementedSnapshotMetadataServer
	opts Options

	mu      sync.Mutex
	ctx     context.Context // Run's; nil before
	address string
	pair    *pair
	drivers map[string]*served
	work    sync.WaitGroup
}

// served is a driver that is there.
type served struct {
	name string
	conn *grpc.ClientConn
	stop context.CancelFunc
	// ready: it has the service, and its object is written.
	ready bool
}

// New makes a server. Nothing runs and nothing is written before Run.
func New(o Options) (*Server, error) {
	if o.Client == nil || o.Snap == nil || o.Services == nil {
		return nil, errors.New("snapshotmetadata: Client, Snap and Services are required")
	}
	if o.Listen == "" {
		o.Listen = DefaultListen
	}
	if o.MaxStream == 0 {
		o.MaxStream = defaultMaxStream
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{opts: o, drivers: map[string]*served{}}, nil
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	listener, err := net.Listen("tcp", s.opts.Listen)
	if err != nil {
		return fmt.Errorf("snapshot metadata: %w", err)
	}
	host, _, err := net.SplitHostPort(s.opts.Listen)
	if err != nil {
		return errors.Join(fmt.Errorf("snapshot metadata: address %q: %w", s.opts.Listen, err), listener.Close())
	}
	p, err := newPair(host)
	if err != nil {
		return errors.Join(fmt.Errorf("snapshot metadata: %w", err), listener.Close())
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{p.certificate}, MinVersion: tls.VersionTLS12})))
	api.RegisterSnapshotMetadataServer(server, s)

	s.mu.Lock()
	s.ctx, s.address, s.pair = ctx, listener.Addr().String(), p
	for _, d := range s.drivers {
		s.watch(d)
	}
	s.mu.Unlock()

	stopped := context.AfterFunc(ctx, server.Stop)
	defer stopped()
	err = server.Serve(listener)
	s.work.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("snapshot metadata: %w", err)
}

// AddDriver serves a driver's snapshots from now on, if it can tell about their blocks. endpoint is its socket's path.
func (s *Server) AddDriver(name, endpoint string) {
	conn, err := grpc.NewClient("unix://"+endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.opts.Log.Error("no snapshot metadata", "driver", name, "error", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(name)
	d := &served{name: name, conn: conn}
	s.drivers[name] = d
	if s.ctx != nil {
		s.watch(d)
	}
}

// RemoveDriver ends the service for a driver that has gone. Its object stays: the driver may be restarting, and who
// asks meanwhile is told so.
func (s *Server) RemoveDriver(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(name)
}

func (s *Server) remove(name string) {
	d := s.drivers[name]
	if d == nil {
		return
	}
	delete(s.drivers, name)
	if d.stop != nil {
		d.stop()
	}
	if err := d.conn.Close(); err != nil {
		s.opts.Log.Debug("close connection", "driver", name, "error", err)
	}
}

// watch asks the driver what it can, and tells the cluster. s.mu is held.
func (s *Server) watch(d *served) {
	ctx, cancel := context.WithCancel(s.ctx)
	d.stop = cancel
	s.work.Go(func() {
		defer cancel()
		for delay := time.Second; ; delay = min(2*delay, time.Minute) {
			err := s.introduce(ctx, d)
			if err == nil || ctx.Err() != nil {
				return
			}
			s.opts.Log.Warn("no snapshot metadata yet", "driver", d.name, "retry", delay, "error", err)
			retry := time.NewTimer(delay)
			select {
			case <-ctx.Done():
				retry.Stop()
				return
			case <-retry.C:
			}
		}
	})
}

// introduce publishes the driver when it has the service.
func (s *Server) introduce(ctx context.Context, d *served) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := csispec.NewIdentityClient(d.conn).GetPluginCapabilities(ctx, &csispec.GetPluginCapabilitiesRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("ask driver %s for its capabilities: %w", d.name, err)
	}
	for _, c := range r.GetCapabilities() {
		if c.GetService().GetType() != csispec.PluginCapability_Service_SNAPSHOT_METADATA_SERVICE {
			continue
		}
		if err := s.publish(ctx, d.name); err != nil {
			return err
		}
		s.mu.Lock()
		d.ready = true
		s.mu.Unlock()
		s.opts.Log.Info("snapshot metadata is served", "driver", d.name, "address", s.address)
		return nil
	}
	return nil
}

// audiences are the names of the drivers that are served: what a token may be made for.
func (s *Server) audiences() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for name, d := range s.drivers {
		if d.ready {
			names = append(names, name)
		}
	}
	return names
}

// connection to a served driver.
func (s *Server) connection(driver string) (*grpc.ClientConn, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.drivers[driver]
	if d == nil || !d.ready {
		return nil, false
	}
	return d.conn, true
}
