package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"berth.io/berth/internal/apiclient"
	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/agent"
	"berth.io/berth/internal/block/objects"
	"berth.io/berth/internal/driver"
	"berth.io/berth/internal/driver/registrar"
	"berth.io/berth/internal/node/flexsocket"
	"berth.io/berth/internal/nodepool"
)

// nodeWorkers stands for what a node asks of the API: little, and never much at once.
const nodeWorkers = 2

// node is the process on a node.
type node struct {
	NodeOptions
	log       *slog.Logger
	config    *rest.Config
	client    kubernetes.Interface
	namespace string
	metrics   *prometheus.Registry
	events    record.EventBroadcaster
	readiness *readiness

	store  *nodepool.Storage  // nil without block
	flex   *flexsocket.Server // nil without block
	driver *driver.Driver     // nil without block
	agent  *agent.Agent       // nil without block

	mu      sync.Mutex
	probers []*prober

	knewDaemonSet bool
}

// RunNode serves the drivers of this node until ctx ends. Volumes and the pool stay mounted: the next process goes on with them.
func RunNode(ctx context.Context, o NodeOptions) error {
	if err := o.Validate(); err != nil {
		return err
	}
	if err := o.possible(); err != nil {
		return err
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	n := &node{NodeOptions: o, log: o.Log, metrics: prometheus.NewRegistry()}
	var err error
	if n.namespace, err = podNamespace(); err != nil {
		return err
	}
	if n.config, err = n.API.config(nodeWorkers, "berth-node/"+o.Version, n.log); err != nil {
		return err
	}
	if n.client, err = kubernetes.NewForConfig(apiclient.Protobuf(n.config)); err != nil {
		return err
	}
	n.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if n.readiness, err = newReadiness(n.client, n.NodeName, n.log); err != nil {
		return err
	}
	release, err := n.open(ctx)
	if err != nil {
		return err
	}
	defer release()
	defer settle(n.log)()
	return n.run(ctx)
}

// open holds the data directory and opens what is in it.
func (n *node) open(ctx context.Context) (release func(), err error) {
	if n.WithoutBlock {
		return func() {}, nil
	}
	unlock, err := hold(n.DataDir)
	if err != nil {
		return nil, err
	}
	release = func() { n.store.Close(); unlock() }
	if n.store, err = nodepool.Open(ctx, nodepool.Options{DataDir: n.DataDir, Size: n.PoolSize, Device: n.PoolDevice, Node: n.NodeName,
		Log: n.log.With("room", "pool"), Metrics: n.metrics}); err != nil {
		release()
		return nil, err
	}
	c := n.store.Pool.Capacity()
	n.log.Info("pool open", "pool", n.store.Pool.Name(), "availableBytes", c.Available, "totalBytes", c.Total, "volumes", len(n.store.Pool.List()))
	if n.flex, err = flexsocket.New(flexsocket.Options{Socket: n.flexSocket(), Notes: filepath.Join(n.DataDir, "flexvolume"), Log: n.log,
		Backends: map[string]backend.Backend{"block": n.store.Backend}}); err != nil {
		release()
		return nil, err
	}
	if err := n.makeAgent(ctx); err != nil {
		release()
		return nil, err
	}
	if n.driver, err = driver.New(driver.Options{Name: driver.BlockName, Version: n.Version, Node: n.NodeName, MaxVolumes: n.MaxVolumes, SocketPath: n.driverSocket(),
		Backend: n.store.Shared(n.flex), Log: n.log, Metrics: n.metrics}); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// makeAgent makes what carries out the controller's wishes in this node's pool.
func (n *node) makeAgent(ctx context.Context) error {
	client, err := objects.NewClient(n.config)
	if err != nil {
		return err
	}
	o := agent.Options{Node: n.NodeName, Backend: n.store.Shared(n.flex), Objects: client, Foreign: isInline, Log: n.log, Metrics: n.metrics}
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	// The BlockPool goes with the Node. One that is made while that cannot be read stays when the Node goes.
	if own, err := n.client.CoreV1().Nodes().Get(ctx, n.NodeName, metav1.GetOptions{}); err == nil {
		o.Owner = &metav1.OwnerReference{APIVersion: "v1", Kind: "Node", Name: own.Name, UID: own.UID}
	} else {
		n.log.Warn("a BlockPool that is made now has no owner and stays when its Node goes", "node", n.NodeName, "err", err)
	}
	n.agent, err = agent.New(o)
	return err
}

// isInline says whether the driver keeps a volume for a pod's inline volume: it has no object in the API.
func isInline(v backend.Volume) bool { return strings.HasPrefix(v.Name, driver.InlineName("")) }

// ready says whether the node takes pods with volumes: the kubelet shows every driver, and the agent has read what is asked of this node.
func (n *node) ready() error {
	err := n.readiness.missing()
	if n.agent != nil {
		err = errors.Join(err, n.agent.Ready())
	}
	return err
}

// hold makes the data directory and holds it against a second process, `berth up` too. The lock goes with the process.
func hold(dir string) (release func(), err error) {
	run := filepath.Join(dir, "run")
	for path, mode := range map[string]fs.FileMode{dir: 0o711, run: 0o700} {
		if err := os.MkdirAll(path, mode); err != nil {
			return nil, fmt.Errorf("--data-dir: %w", err)
		}
	}
	f, err := os.OpenFile(filepath.Join(run, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--data-dir: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("--data-dir %s is in use by another `berth node` or `berth up`: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

// run starts everything and ends it in the other order: the registrations first, so that the kubelet calls no driver that is
// going, then what the drivers stand on.
func (n *node) run(ctx context.Context) error {
	if err := n.startEvents(); err != nil {
		return err
	}
	defer n.events.Shutdown()
	lower, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	work, upper := errgroup.WithContext(ctx)
	var callers sync.WaitGroup
	room := func(on context.Context, name string, f func(context.Context) error) {
		work.Go(func() error {
			if err := f(on); err != nil && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	// caller is a room that others below serve.
	caller := func(name string, f func(context.Context) error) {
		callers.Add(1)
		room(upper, name, func(ctx context.Context) error { defer callers.Done(); return f(ctx) })
	}
	e := newEndpoint(n.metrics, n.healthy, func(context.Context) error { return n.ready() })
	var serving sync.WaitGroup
	defer serving.Wait()
	failed := make(chan error, 1)
	if err := e.serve(lower, n.HTTP, &serving, func(err error) { failed <- err }); err != nil {
		return err
	}
	caller("http endpoint", func(ctx context.Context) error {
		select {
		case err := <-failed:
			return err
		case <-ctx.Done():
			return nil
		}
	})
	if n.driver != nil {
		n.readiness.want(driver.BlockName)
		room(lower, "flexvolume socket", n.flex.Run)
		room(lower, "driver", n.driver.Run)
		caller("block agent", n.agent.Run)
		caller("registration", func(ctx context.Context) error {
			select { // the kubelet calls the driver at once
			case <-n.driver.Serving():
				return n.register(ctx, driver.BlockName, n.driverSocket())
			case <-ctx.Done():
				return nil
			}
		})
	}
	for _, a := range n.CSIAddress {
		n.readiness.expect()
		caller("driver at "+a.Socket, func(ctx context.Context) error { return n.registerOther(ctx, a) })
	}
	caller("readiness", n.readiness.run)
	if err := n.installFlexVolume(ctx); err != nil {
		n.log.Error("the FlexVolume drivers are not installed; everything else goes on", "err", err)
	}
	n.findDaemonSet(ctx)
	caller("discovery", n.runDiscovery)
	work.Go(func() error {
		callers.Wait()
		if ctx.Err() != nil {
			n.uninstallFlexVolume(lower)
		}
		stop()
		return nil
	})
	err := work.Wait()
	for _, p := range n.probers {
		p.close()
	}
	return err
}

func (n *node) startEvents() error {
	client, err := kubernetes.NewForConfig(aside(n.config, 5, callWithin))
	if err != nil {
		return err
	}
	n.events = record.NewBroadcaster()
	n.events.StartRecordingToSink(&typedcore.EventSinkImpl{Interface: client.CoreV1().Events("")})
	return nil
}

func (n *node) recorder(component string) record.EventRecorder {
	return n.events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component, Host: n.NodeName})
}

// register shows a driver to the kubelet until ctx ends, and adds it to those that healthy asks.
func (n *node) register(ctx context.Context, name, socket string) error {
	p, err := newProber(socket)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.probers = append(n.probers, p)
	n.mu.Unlock()
	r, err := registrar.New(registrar.Options{Driver: name, Endpoint: socket, SocketPath: n.registration(name), Log: n.log,
		Notified: func(err error) {
			if err == nil {
				n.log.Info("the kubelet has registered the driver", "driver", name)
			}
			n.readiness.look()
		}})
	if err != nil {
		return err
	}
	return r.Run(ctx)
}

// registerOther registers a driver that another container of this pod serves, as soon as it answers.
func (n *node) registerOther(ctx context.Context, a Address) (err error) {
	if a.Name == "" {
		if a.Name, err = awaitName(ctx, a.Socket, n.log); err != nil {
			return err
		}
	}
	n.readiness.named(a.Name)
	return n.register(ctx, a.Name, a.Socket)
}

// healthy asks every driver over its socket. At the start, while none is served yet, nothing is wrong.
func (n *node) healthy(ctx context.Context) error {
	n.mu.Lock()
	probers := n.probers
	n.mu.Unlock()
	var problems []error
	for _, p := range probers {
		problems = append(problems, p.probe(ctx))
	}
	return errors.Join(problems...)
}
