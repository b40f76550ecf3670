package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"berth.io/berth/internal/boundary"
)

const (
	getInfoTimeout     = 5 * time.Second
	nodeGetInfoTimeout = 15 * time.Second
	notifyTimeout      = 5 * time.Second
)

// errRefused marks an answer that asking again will not change: only a new socket will.
var errRefused = errors.New("refused")

// registrar registers the plugin behind one socket, stays as long as the socket does, and unregisters it in the end.
type registrar struct {
	registry *registry
	path     string
	file     os.FileInfo
	ctx      context.Context // ends with the socket, or with the agent
	agent    context.Context // ends with the agent
	stop     context.CancelFunc
	done     chan struct{}
	again    chan struct{}
	entered  atomic.Bool // the driver is in the table and in the API

	mu     sync.Mutex
	plugin PluginStatus
	told   string // the last error that became an event
}

func newRegistrar(agent context.Context, r *registry, path string, file os.FileInfo) *registrar {
	ctx, stop := context.WithCancel(agent)
	return &registrar{
		registry: r, path: path, file: file, ctx: ctx, agent: agent, stop: stop,
		done: make(chan struct{}), again: make(chan struct{}, 1),
		plugin: PluginStatus{Socket: path, Since: time.Now()},
	}
}

// kick lets a registrar that gave up try again.
func (g *registrar) kick() {
	select {
	case g.again <- struct{}{}:
	default:
	}
}

// run registers, with retries, then waits for the socket to go.
func (g *registrar) run() {
	defer close(g.done)
	defer g.stop()
	// A socket file appears at bind, before listen: the first attempt often meets a closed door.
	delay := backoff{base: 2 * time.Millisecond, limit: 30 * time.Second}
	for g.ctx.Err() == nil {
		err := g.register()
		g.note(err)
		var wait <-chan time.Time
		switch {
		case err == nil, errors.Is(err, errRefused):
		default:
			wait = time.After(delay.next())
		}
		select {
		case <-g.ctx.Done():
		case <-wait:
		case <-g.again:
			if err == nil {
				<-g.ctx.Done()
			}
		}
	}
	if g.agent.Err() == nil {
		g.unregister()
	}
}

// register is one attempt, in the kubelet's order: GetInfo, validate, NodeGetInfo, CSINode, NotifyRegistrationStatus.
func (g *registrar) register() error {
	conn, err := dial(g.path)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := registerapi.NewRegistrationClient(conn)
	ctx, cancel := context.WithTimeout(g.ctx, getInfoTimeout)
	info, err := client.GetInfo(ctx, &registerapi.InfoRequest{})
	cancel()
	if err != nil {
		return fmt.Errorf("GetInfo: %w", err)
	}
	endpoint, err := g.admit(info)
	if err == nil {
		err = g.enter(info, endpoint)
	}
	if ctx := g.ctx; ctx.Err() != nil {
		return ctx.Err()
	}
	if told := g.tell(client, err); err == nil && told != nil {
		// As the kubelet: a plugin that does not hear that it is registered is not.
		g.unregister()
		return told
	}
	return err
}

// admit validates what the plugin says about itself, and resolves its endpoint.
func (g *registrar) admit(info *registerapi.PluginInfo) (string, error) {
	if err := validatePlugin(info); err != nil {
		return "", fmt.Errorf("%w: %w", errRefused, err)
	}
	endpoint, err := resolveEndpoint(info.Endpoint, g.path)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errRefused, err)
	}
	if err := g.registry.claim(info.Name, g); err != nil {
		return "", err // not for ever: the other one may go
	}
	g.mu.Lock()
	g.plugin.Name, g.plugin.Endpoint = info.Name, endpoint
	g.mu.Unlock()
	return endpoint, nil
}

// enter makes the driver known here and in the API. The table comes first: whoever sees the driver in CSINode must be able to call it.
func (g *registrar) enter(info *registerapi.PluginInfo, endpoint string) error {
	opts := g.registry.opts
	self, err := nodeGetInfo(g.ctx, endpoint)
	if err != nil {
		g.registry.yield(info.Name, g)
		return fmt.Errorf("NodeGetInfo of %s at %s: %w", info.Name, endpoint, err)
	}
	entry, err := driverEntry(info.Name, self)
	if err != nil {
		g.registry.yield(info.Name, g)
		return fmt.Errorf("%w: NodeGetInfo of %s: %w", errRefused, info.Name, err)
	}
	if err := opts.Drivers.Register(info.Name, endpoint, info.SupportedVersions...); err != nil {
		g.registry.yield(info.Name, g)
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	if err := g.registry.drivers.add(g.ctx, entry); err != nil {
		opts.Drivers.Unregister(info.Name)
		g.registry.drivers.remove(info.Name)
		g.registry.yield(info.Name, g)
		return err
	}
	// Only now: provision roles that came and went with each attempt would be worse than ones that come 5 ms later.
	g.entered.Store(true)
	opts.OnDriver(info.Name, endpoint, true)
	return nil
}

// tell notifies the plugin of the outcome. A plugin that has to be told of a refusal may not listen.
func (g *registrar) tell(client registerapi.RegistrationClient, failure error) error {
	ctx, cancel := context.WithTimeout(g.ctx, notifyTimeout)
	defer cancel()
	status := &registerapi.RegistrationStatus{PluginRegistered: failure == nil}
	if failure != nil {
		status.Error = failure.Error()
	}
	err := boundary.Do("node/notify-plugin", func() error {
		_, err := client.NotifyRegistrationStatus(ctx, status)
		return err
	})
	if err != nil {
		return fmt.Errorf("NotifyRegistrationStatus: %w", err)
	}
	return nil
}

// unregister undoes enter.
func (g *registrar) unregister() {
	g.mu.Lock()
	name, endpoint := g.plugin.Name, g.plugin.Endpoint
	g.plugin.Registered = false
	g.mu.Unlock()
	if !g.entered.Swap(false) {
		return
	}
	r := g.registry
	r.opts.Drivers.Unregister(name)
	r.opts.OnDriver(name, endpoint, false)
	r.drivers.remove(name)
	r.metrics.registrations.WithLabelValues("gone").Inc()
	r.opts.Log.Info("plugin unregistered", "plugin", name, "socket", g.path)
	r.yield(name, g)
	r.kick(g)
}

// note keeps the outcome for Status, and reports a failure once: in the log, and as an event on the node.
func (g *registrar) note(err error) {
	if g.ctx.Err() != nil {
		return
	}
	opts := g.registry.opts
	text := ""
	if err != nil {
		text = strings.TrimPrefix(err.Error(), errRefused.Error()+": ")
	}
	g.mu.Lock()
	if g.plugin.Registered != (err == nil) {
		g.plugin.Since = time.Now()
	}
	g.plugin.Registered, g.plugin.Error = err == nil, text
	repeated := g.told == text
	g.told = text
	name := g.plugin.Name
	g.mu.Unlock()
	switch {
	case err == nil:
		g.registry.metrics.registrations.WithLabelValues("registered").Inc()
		opts.Log.Info("plugin registered", "plugin", name, "socket", g.path)
	case !repeated && !notYetListening(err):
		g.registry.metrics.registrations.WithLabelValues("failed").Inc()
		opts.Log.Warn("plugin not registered", "socket", g.path, "err", text)
		opts.Events.Eventf(nodeReference(opts.Node), v1.EventTypeWarning, "FailedPluginRegistration",
			"plugin at %s: %s", g.path, text)
	case notYetListening(err):
		g.mu.Lock()
		g.told = ""
		g.mu.Unlock()
	}
}

// notYetListening: the moment between bind and listen is no failure worth an event.
func notYetListening(err error) bool {
	return err != nil && strings.Contains(err.Error(), "connection refused")
}

func (g *registrar) report() PluginStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.plugin
}

// nodeReference is the node as events name it: the kubelet puts the name into the UID, and kubectl describe looks for that.
func nodeReference(node string) *v1.ObjectReference {
	return &v1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: node, UID: types.UID(node)}
}

// resolveEndpoint: an endpoint is absolute, or relative to the directory of the registration socket and inside it;
// none means the registration socket itself.
func resolveEndpoint(endpoint, socket string) (string, error) {
	endpoint = strings.TrimPrefix(endpoint, "unix://")
	switch {
	case endpoint == "":
		return socket, nil
	case filepath.IsAbs(endpoint):
		return filepath.Clean(endpoint), nil
	case filepath.IsLocal(endpoint):
		return filepath.Join(filepath.Dir(socket), endpoint), nil
	}
	return "", fmt.Errorf("endpoint %q leaves the directory of its registration socket", endpoint)
}

func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           grpcbackoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.6, Jitter: .2, MaxDelay: time.Second},
			MinConnectTimeout: getInfoTimeout,
		}))
}

func nodeGetInfo(ctx context.Context, endpoint string) (*csi.NodeGetInfoResponse, error) {
	conn, err := dial(endpoint)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, nodeGetInfoTimeout)
	defer cancel()
	// The registrar is often up before its driver: wait for the driver's socket within the deadline.
	return csi.NewNodeClient(conn).NodeGetInfo(ctx, &csi.NodeGetInfoRequest{}, grpc.WaitForReady(true))
}
