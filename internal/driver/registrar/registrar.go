// Package registrar announces a CSI driver to the node's plugin watcher, as the official node-driver-registrar does: a
// socket in plugins_registry that answers who the driver is and where it is served (kubelet's pluginregistration/v1).
package registrar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"berth.io/berth/internal/driver"
)

// Options of a registration.
type Options struct {
	// Driver is the CSI driver's name, Endpoint the path of its socket.
	Driver, Endpoint string
	// SocketPath is where the registration is served: <data directory>/plugins_registry/<driver>-reg.sock.
	SocketPath string
	Log        *slog.Logger
	// Notified is called, when it is set, with each answer of the plugin watcher: nil when the driver is registered.
	Notified func(error)
}

// Server answers the plugin watcher.
type Server struct {
	registration.UnimplementedRegistrationServer
	o Options
}

// New makes a server. Run it once the driver accepts connections: the watcher calls back at once.
func New(o Options) (*Server, error) {
	if o.Driver == "" || o.Endpoint == "" || o.SocketPath == "" {
		return nil, errors.New("registrar: Driver, Endpoint and SocketPath are needed")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{o: o}, nil
}

// Run serves the registration until ctx ends; the driver is unregistered by the socket's going.
func (s *Server) Run(ctx context.Context) error {
	listener, err := driver.Listen(s.o.SocketPath)
	if err != nil {
		return fmt.Errorf("register driver %s: %w", s.o.Driver, err)
	}
	server := grpc.NewServer(grpc.ConnectionTimeout(10 * time.Second))
	registration.RegisterRegistrationServer(server, s)
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	if err := server.Serve(listener); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve the registration of driver %s: %w", s.o.Driver, err)
	}
	return nil
}

// GetInfo implements registration.RegistrationServer.
func (s *Server) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: s.o.Driver, Endpoint: s.o.Endpoint, SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus implements registration.RegistrationServer.
func (s *Server) NotifyRegistrationStatus(_ context.Context, r *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	var err error
	if !r.GetPluginRegistered() {
		err = fmt.Errorf("driver %s was not registered: %s", s.o.Driver, r.GetError())
		s.o.Log.Error("registration refused", slog.Any("error", err))
	}
	if s.o.Notified != nil {
		s.o.Notified(err)
	}
	return &registration.RegistrationStatusResponse{}, nil
}
