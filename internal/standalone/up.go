package standalone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"berth.io/berth/internal/apiclient"
	"berth.io/berth/internal/apiserver"
	"berth.io/berth/internal/flexvolume/block"
	"berth.io/berth/internal/node"
	"berth.io/berth/internal/nodepool"
	"berth.io/berth/internal/plugin/flexvolume"
)

// Who runs the volume controllers.
const (
	ControllersBerth    = "berth"
	ControllersUpstream = "upstream"
)

// Off in place of an address: the service does not run.
const Off = "off"

// Options are the flags of `berth up`.
type Options struct {
	DataDir     string
	Listen      string   // ADDR:PORT of the API; empty: the last one, or the first free port from 6443 on
	Apply       []string // manifests, applied once in the instance's life
	PoolSize    string   // most that the default pool may take of the host's disk, as a quantity; empty: a share of it
	PoolDevice  string   // a raw device instead of the image
	Controllers string
	NodeName    string
	HTTP        string            // ADDR:PORT for /healthz, /readyz, /metrics; empty: the control socket only
	CSIAddress  map[string]string // driver → socket of its controller service, where that is not the node's socket
	// SnapshotMetadata is ADDR:PORT for the service that tells which blocks of a snapshot have changed; empty: a free port of
	// 127.0.0.1, Off: no such service.
	SnapshotMetadata string
	LogLevel         slog.Level
	Version          string
	Out              io.Writer // progress, for a person
	// Plugin is the name under which container engines find this instance, NoPlugin for none, empty for the default
	// (volumes.go); PluginDir is where its socket is, empty: where Docker looks.
	Plugin, PluginDir string
	pluginOptional    bool // the default, which nobody asked for by name
	// VolumePluginDir is where FlexVolume drivers are; empty: where a kubelet looks. FlexVolume bounds their call-outs.
	VolumePluginDir string
	FlexVolume      flexvolume.Limits
	// DiscoveryConfig is the ConfigMap of the local volume static provisioner, a manifest or a directory; empty: no discovery.
	DiscoveryConfig string
	// AttachOnNode: the node attaches and detaches by itself, not the attach/detach controller.
	AttachOnNode bool
	// Bare leaves out the pool, our own driver and its classes: an instance for a driver that comes from outside. It
	// needs no more rights than that driver's mounts do.
	Bare bool
}

// Validate looks at the flags alone; an error is in what was typed.
func (o *Options) Validate() error {
	if o.Controllers == "" {
		o.Controllers = ControllersBerth
	}
	if o.Controllers != ControllersBerth && o.Controllers != ControllersUpstream {
		return fmt.Errorf("--controllers %q: want %s or %s", o.Controllers, ControllersBerth, ControllersUpstream)
	}
	if o.PoolSize != "" && o.PoolDevice != "" {
		return errors.New("--pool-size and --pool-device exclude each other: a device is used whole")
	}
	if _, err := nodepool.ParseSize(o.PoolSize); err != nil {
		return fmt.Errorf("--pool-size: %w", err)
	}
	if err := validListen(o.Listen); err != nil {
		return err
	}
	if o.HTTP != "" {
		if _, _, err := net.SplitHostPort(o.HTTP); err != nil {
			return fmt.Errorf("--http-endpoint %q is not ADDR:PORT", o.HTTP)
		}
	}
	if o.SnapshotMetadata != "" && o.SnapshotMetadata != Off {
		if _, _, err := net.SplitHostPort(o.SnapshotMetadata); err != nil {
			return fmt.Errorf("--snapshot-metadata %q is neither ADDR:PORT nor %s", o.SnapshotMetadata, Off)
		}
	}
	for name, socket := range o.CSIAddress {
		if name == "" || !filepath.IsAbs(socket) {
			return fmt.Errorf("--csi-address %s=%s: want DRIVER=SOCKET with an absolute path", name, socket)
		}
	}
	if o.VolumePluginDir != "" && !filepath.IsAbs(o.VolumePluginDir) {
		return fmt.Errorf("--volume-plugin-dir %q is not an absolute path", o.VolumePluginDir)
	}
	for flag, d := range map[string]time.Duration{"--flexvolume-timeout": o.FlexVolume.Call, "--flexvolume-attach-timeout": o.FlexVolume.Attach, "--flexvolume-init-timeout": o.FlexVolume.Init} {
		if d < 0 {
			return fmt.Errorf("%s %s: want a time above zero", flag, d)
		}
	}
	if o.NodeName != "" && !validNodeName(o.NodeName) {
		return fmt.Errorf("--node-name %q is not a DNS name in lower case", o.NodeName)
	}
	return o.validatePlugin()
}

// possible looks at what the flags name, and at who asks.
func (o *Options) possible() error {
	for _, f := range o.Apply {
		if f == "-" {
			continue
		}
		if _, _, err := readManifests(f); err != nil {
			return fmt.Errorf("--apply: %w", err)
		}
	}
	if err := o.possibleDiscovery(); err != nil {
		return fmt.Errorf("--discovery-config: %w", err)
	}
	if os.Geteuid() != 0 && !o.Bare {
		return errors.New("berth up needs root: it makes loop devices and mounts")
	}
	return nil
}

// The years in which the instance's certificates are valid (cmd/berth-apiserver).
const firstYear, lastYear = 2020, 2119

// checkClock refuses a clock that cannot be right, such as that of a machine whose battery died: TLS would fail with
// words about certificates. Smaller jumps do no harm: nothing here compares times of two starts.
func checkClock(now time.Time) error {
	if y := now.Year(); y < firstYear || y > lastYear {
		return fmt.Errorf("the clock says %s, which cannot be: set it, then start again; nothing was changed", now.Format(time.DateOnly))
	}
	return nil
}

// Up runs an instance until ctx ends or `berth down` asks for its end.
func Up(ctx context.Context, o Options) error {
	began := time.Now()
	if err := o.Validate(); err != nil {
		return err
	}
	// Who read the progress may be gone, a closed terminal for one: its next line must not end the instance.
	signal.Ignore(syscall.SIGPIPE)
	if err := errors.Join(o.possible(), checkClock(began)); err != nil {
		return err
	}
	dir, release, err := Open(o.DataDir)
	if err != nil {
		return err
	}
	defer release()
	if o.NodeName, err = dir.node(o.NodeName); err != nil {
		return err
	}
	logs, err := openLogs(dir, o.LogLevel)
	if err != nil {
		return err
	}
	defer logs.Close()
	if err := apiserver.AwaitFormer(ctx, dir.APIServer()); err != nil {
		return err
	}
	listen, letGoOfPort, err := chooseListen(o.Listen, dir.Kubeconfig())
	if err != nil {
		return err
	}
	defer letGoOfPort()
	// FlexVolume executables that this instance or its upstream controllers call are its own, wherever they are installed.
	if err := os.Setenv(block.EnvSocket, dir.FlexSocket()); err != nil {
		return err
	}
	in := &instance{Options: o, dir: dir, log: logs.berth, say: newProgress(o.Out, began), metrics: prometheus.NewRegistry(), down: make(chan downRequest)}
	in.say.line("data directory %s, node %s", dir, o.NodeName)

	start, startCtx := errgroup.WithContext(ctx)
	start.Go(func() (err error) {
		drivers := ""
		if o.Controllers == ControllersUpstream {
			drivers = o.VolumePluginDir
		}
		in.api, err = apiserver.Start(startCtx, apiserver.Options{
			Dir: dir.APIServer(), Listen: listen, Kubeconfig: dir.Kubeconfig(), Controllers: o.Controllers, VolumePluginDir: drivers, Log: logs.apiserver,
		})
		if err == nil {
			in.say.line("API ready at https://%s", listen)
		}
		return err
	})
	if !o.Bare {
		start.Go(func() error { return in.openStorage(startCtx) })
	}
	err = start.Wait()
	defer in.stopAPI()
	defer in.closeStorage()
	if err != nil {
		return err
	}
	return in.run(ctx)
}

// instance is one running `berth up`.
type instance struct {
	Options
	dir     DataDir
	log     *slog.Logger
	say     progress
	metrics *prometheus.Registry
	api     *apiserver.Process
	config  *rest.Config
	client  kubernetes.Interface
	rooms   *rooms
	store   *nodepool.Storage // nil in a bare instance
	ready   readiness
	down    chan downRequest
}

// downRequest asks the instance to take everything down; the answer goes to done.
type downRequest struct{ done chan error }

func (in *instance) stopAPI() {
	if in.api != nil {
		in.api.Stop()
	}
}

// clients makes the REST configuration: no client-side rate limit (the API server is ours alone), protobuf.
func (in *instance) clients() error {
	cfg, err := clientcmd.BuildConfigFromFlags("", in.dir.Kubeconfig())
	if err != nil {
		return err
	}
	cfg.QPS = -1
	cfg.UserAgent = "berth/" + in.Version
	in.config = cfg
	in.client, err = kubernetes.NewForConfig(apiclient.Protobuf(cfg))
	return err
}

// run is everything between a ready API and the end.
func (in *instance) run(ctx context.Context) error {
	if err := in.clients(); err != nil {
		return err
	}
	applier, err := newApplier(in.config)
	if err != nil {
		return err
	}
	stale := make(chan error, 1)
	go func() { stale <- node.UnreadyStale(ctx, in.client, in.NodeName, string(in.dir)) }()
	installed, err := bootstrap(ctx, in.client, applier, in.Bare)
	if err := <-stale; err != nil { // the node agent finds out a little later
		in.log.Warn("the status of pods whose volumes are not mounted", "error", err)
	}
	if err != nil {
		return fmt.Errorf("set up the API: %w", err)
	}
	if in.rooms, err = in.newRooms(); err != nil {
		return err
	}
	// The rooms outlive ctx by the time that `berth down` needs; they end before the storage and the API do.
	roomsCtx, stopRooms := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRooms()
	work, workCtx := errgroup.WithContext(roomsCtx)
	in.rooms.start(workCtx, work)
	if err := in.serveControl(workCtx, work); err != nil {
		stopRooms()
		return errors.Join(err, ignoreCancelled(work.Wait()))
	}
	work.Go(func() error {
		select {
		case <-in.api.Done():
			return in.api.Err()
		case <-workCtx.Done():
			return nil
		}
	})
	work.Go(func() error { return in.becomeReady(workCtx, applier, installed) })

	err = in.untilEnd(ctx, workCtx)
	stopRooms()
	return errors.Join(err, ignoreCancelled(work.Wait()))
}

// untilEnd returns when the user ends the instance or a part of it fails.
func (in *instance) untilEnd(ctx, workCtx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			in.say.line("stopping; volumes stay mounted (`berth down` takes them away)")
			return nil
		case <-workCtx.Done():
			return nil // work.Wait has the error
		case r := <-in.down:
			in.say.line("going down: unmounting and detaching")
			err := in.tearDownWithin(ctx, workCtx)
			r.done <- err
			if err == nil {
				return nil
			}
			in.say.line("down failed, still running: %v", err)
		}
	}
}

// downWithin is how long volumes may take to be unmounted before `berth down` tells what holds them.
const downWithin = 10 * time.Second

// tearDownWithin takes everything down, and gives up when something stays in use or the user ends the instance meanwhile.
// What was unmounted until then is mounted again: the instance goes on running, and so do its pods.
func (in *instance) tearDownWithin(ctx, workCtx context.Context) error {
	limited, cancel := context.WithTimeout(workCtx, downWithin)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	err := in.teardown(limited)
	if errors.Is(err, context.DeadlineExceeded) && workCtx.Err() == nil {
		return fmt.Errorf("volumes are still in use after %s; end what uses them and run `berth down` again:\n%w", downWithin, err)
	}
	return err
}

// becomeReady waits for the rooms, then applies the user's manifests.
func (in *instance) becomeReady(ctx context.Context, a *applier, installed *corev1.ConfigMap) error {
	if err := in.rooms.waitReady(ctx); err != nil {
		return err
	}
	in.ready.set()
	close(in.rooms.open)
	in.say.line("ready; kubectl with --kubeconfig %s, or `berth kubectl`", in.dir.Kubeconfig())
	gate := &classGate{published: in.rooms.published, driver: blockDriver}
	applied, err := applyOnce(ctx, in.client, a, installed, in.Apply, gate.before)
	if len(applied) > 0 {
		in.say.line("applied %s", describe(applied))
	}
	if err != nil {
		// A refused manifest is the user's to mend; the instance and everything in it goes on.
		in.say.line("error: %v", err)
		return nil
	}
	return in.follow(ctx, applied)
}

func ignoreCancelled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
