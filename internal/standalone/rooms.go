package standalone

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	cbtclient "github.com/kubernetes-csi/external-snapshot-metadata/client/clientset/versioned"
	snapclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	snapfactory "github.com/kubernetes-csi/external-snapshotter/client/v8/informers/externalversions"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"berth.io/berth/internal/apiclient"
	"berth.io/berth/internal/attach"
	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/claim"
	"berth.io/berth/internal/discovery"
	"berth.io/berth/internal/docker"
	"berth.io/berth/internal/driver"
	"berth.io/berth/internal/driver/registrar"
	"berth.io/berth/internal/mount"
	"berth.io/berth/internal/node"
	"berth.io/berth/internal/node/flexsocket"
	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/plugin/csi"
	"berth.io/berth/internal/plugin/flexvolume"
	"berth.io/berth/internal/plugin/intree"
	"berth.io/berth/internal/provision"
	"berth.io/berth/internal/retention"
	"berth.io/berth/internal/schedule"
	"berth.io/berth/internal/snapshotmetadata"
	"berth.io/berth/internal/trace"
	"berth.io/berth/internal/volume"
)

// blockDriver is the name of our CSI driver on pools.
const blockDriver = "block.csi.berth.io"

// rooms are the parts of an instance, made and not yet running.
type rooms struct {
	in        *instance
	metrics   *prometheus.Registry
	journal   *trace.Journal
	events    record.EventBroadcaster
	informers informers.SharedInformerFactory
	snapshots snapfactory.SharedInformerFactory

	claim     *claim.Controller  // nil with upstream's controllers
	attach    *attach.Controller // nil with upstream's controllers
	schedule  *schedule.Scheduler
	provision *provision.Manager
	retention *retention.Controller
	drivers   *csi.Drivers
	plugins   *plugin.Registry
	mount     *mount.Manager
	volumes   *intree.Volumes
	flexHost  *flexvolume.Plugin
	agent     *node.Agent
	discovery *discovery.Discovery // nil without --discovery-config
	named     *volume.Service
	engines   *docker.Plugin           // nil where container engines are not served
	metadata  *snapshotmetadata.Server // nil when it is off
	block     *driver.Driver           // nil in a bare instance
	registrar *registrar.Server        // nil in a bare instance
	flex      *flexsocket.Server       // nil in a bare instance

	registered sync.Once
	usable     chan struct{} // closed when the block driver has registered
	open       chan struct{} // closed when the instance is ready
	published  *published
}

// newRooms makes every room on one set of informers. Nothing runs and nothing is written here.
func (in *instance) newRooms() (r *rooms, err error) {
	r = &rooms{in: in, metrics: in.metrics, usable: make(chan struct{}), open: make(chan struct{})}
	r.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if r.journal, err = trace.Open(in.dir.Journal(), in.log); err != nil {
		return nil, err
	}
	r.events = record.NewBroadcaster()
	r.informers = informers.NewSharedInformerFactoryWithOptions(in.client, 0, informers.WithTransform(apiclient.WithoutManagedFields))
	for _, make := range []func() error{r.makeDriver, r.makePlugins, r.makeControllers, r.makeSnapshots, r.makeProvision, r.makeMetadata, r.makeNode, r.makeDiscovery, r.makeNamed, r.watchPublished} {
		if err := make(); err != nil {
			return nil, errors.Join(err, r.journal.Close())
		}
	}
	return r, nil
}

// recorder names the events' source as upstream's component does, so that users and tools recognize them.
func (r *rooms) recorder(component string) record.EventRecorder {
	return r.events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component, Host: r.in.NodeName})
}

func (r *rooms) makeDriver() (err error) {
	in := r.in
	r.drivers = csi.NewDrivers(csi.DriversOptions{Journal: in.dir.driversJournal(), Log: in.log, Metrics: r.metrics})
	if in.Bare {
		return nil
	}
	socket := in.dir.DriverSocket(blockDriver)
	if r.flex, err = flexsocket.New(flexsocket.Options{Socket: in.dir.FlexSocket(), Notes: in.dir.flexNotes(), Log: in.log,
		Backends: map[string]backend.Backend{"block": in.store.Backend}}); err != nil {
		return err
	}
	if r.block, err = driver.New(driver.Options{
		Name: blockDriver, Version: in.Version, Node: in.NodeName, SocketPath: socket,
		Backend: in.store.Shared(r.flex), Log: in.log, Trace: r.journal, Metrics: r.metrics,
	}); err != nil {
		return err
	}
	r.registrar, err = registrar.New(registrar.Options{Driver: blockDriver, Endpoint: socket, SocketPath: in.dir.RegistrySocket(blockDriver), Log: in.log,
		Notified: func(err error) {
			if err == nil {
				r.registered.Do(func() { close(r.usable) })
			}
		}})
	return err
}

// makePlugins makes the registry that attach and mount share.
func (r *rooms) makePlugins() error {
	in := r.in
	c, err := csi.New(csi.Options{Client: in.client, Informers: r.informers, Drivers: r.drivers, DataDir: string(in.dir), Node: in.NodeName, Log: in.log,
		NewAttachment: func(driver, node string) ([]string, map[string]string) {
			return r.provision.NewAttachment(driver, node)
		}})
	if err != nil {
		return err
	}
	r.volumes = intree.New(intree.Options{Client: in.client, DataDir: string(in.dir), Log: in.log,
		Allocatable: func() corev1.ResourceList { return node.Allocatable(string(in.dir)) },
		OnChange:    func(pod types.UID, volume string) { r.mount.Refresh(pod, volume) }})
	r.flexHost = flexvolume.New(flexvolume.Options{Client: in.client, Dir: in.VolumePluginDir, DataDir: string(in.dir), Node: in.NodeName, Limits: in.FlexVolume,
		Events: r.recorder("kubelet"), Trace: r.journal, Log: in.log, Metrics: r.metrics})
	r.plugins = plugin.NewRegistry(append([]plugin.Plugin{c, r.flexHost}, r.volumes.Plugins()...)...)
	return nil
}

func (r *rooms) makeControllers() (err error) {
	in := r.in
	if r.schedule, err = schedule.New(schedule.Options{Client: in.client, Informers: r.informers, Events: r.recorder("default-scheduler"),
		Trace: r.journal, Log: in.log, Metrics: r.metrics, OnNoRoom: func() { r.provision.CapacityAwaited() }}); err != nil {
		return err
	}
	if r.mount, err = mount.New(mount.Options{Client: in.client, Informers: r.informers, Plugins: r.plugins, DataDir: string(in.dir), Node: in.NodeName,
		AttachOnController: !in.AttachOnNode, Events: r.recorder("kubelet"), Trace: r.journal, Log: in.log, Metrics: r.metrics,
		OnChange: func(pod types.UID) { r.agent.PodChanged(pod); r.named.PodChanged(pod) }}); err != nil {
		return err
	}
	if in.Controllers == ControllersUpstream {
		return nil
	}
	if r.claim, err = claim.New(claim.Options{Client: in.client, Informers: r.informers, Events: r.recorder("persistentvolume-controller"),
		Trace: r.journal, Log: in.log, Metrics: r.metrics, Plugins: r.plugins}); err != nil {
		return err
	}
	r.attach, err = attach.New(attach.Options{Client: in.client, Informers: r.informers, Plugins: r.plugins, Events: r.recorder("attachdetach-controller"),
		Trace: r.journal, Log: in.log, Metrics: r.metrics})
	return err
}

// makeSnapshots makes the schedules of snapshots, and the informers that they share with those who take them.
func (r *rooms) makeSnapshots() error {
	in := r.in
	snaps, err := snapclient.NewForConfig(in.config)
	if err != nil {
		return err
	}
	schedules, err := dynamic.NewForConfig(in.config)
	if err != nil {
		return err
	}
	r.snapshots = snapfactory.NewSharedInformerFactoryWithOptions(snaps, 0, snapfactory.WithTransform(apiclient.WithoutManagedFields))
	r.retention, err = retention.New(retention.Options{Client: schedules, Informers: r.informers, Snap: snaps, SnapInformers: r.snapshots,
		Events: r.recorder("snapshot-schedule"), Log: in.log, Metrics: r.metrics})
	return err
}

// makeProvision gives the sidecars' controllers a client whose writes are boundaries, too: their code is not ours.
func (r *rooms) makeProvision() error {
	in := r.in
	cfg := rest.CopyConfig(in.config)
	cfg.Wrap(provision.WrapTransport)
	snaps, err := snapclient.NewForConfig(cfg)
	if err != nil {
		return err
	}
	definitions, err := metadata.NewForConfig(in.config)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(apiclient.Protobuf(cfg))
	if err != nil {
		return err
	}
	r.provision, err = provision.New(provision.Options{
		Client: client, Informers: r.informers, Snap: snaps, SnapInformers: r.snapshots, Definitions: definitions,
		Events: r.recorder("external-provisioner"), Trace: r.journal, Log: in.log, Metrics: r.metrics, Node: in.NodeName, Namespace: metav1.NamespaceSystem,
	})
	if err != nil {
		return err
	}
	if in.Bare {
		return nil
	}
	in.store.Backend.OnCapacityChange(func() { r.provision.CapacityChanged(blockDriver) })
	return nil
}

// makeMetadata makes the server that tells backup programs which blocks have changed.
func (r *rooms) makeMetadata() error {
	in := r.in
	if in.SnapshotMetadata == Off {
		return nil
	}
	snaps, err := snapclient.NewForConfig(in.config)
	if err != nil {
		return err
	}
	services, err := cbtclient.NewForConfig(in.config)
	if err != nil {
		return err
	}
	r.metadata, err = snapshotmetadata.New(snapshotmetadata.Options{Client: in.client, Snap: snaps, Services: services, Listen: in.SnapshotMetadata, Log: in.log})
	return err
}

func (r *rooms) makeNode() (err error) {
	in := r.in
	r.agent, err = node.New(node.Options{
		Client: in.client, Informers: r.informers, Mount: r.mount, Drivers: r.drivers, Volumes: r.volumes, OnDriver: r.onDriver,
		DataDir: string(in.dir), Node: in.NodeName, Events: r.recorder("kubelet"), Trace: r.journal, Log: in.log, Metrics: r.metrics, Version: in.Version,
		AttachOnNode: in.AttachOnNode,
	})
	return err
}

// onDriver gives a driver that registered on the node its provision roles.
func (r *rooms) onDriver(name, endpoint string, up bool) {
	if _, apart := r.in.CSIAddress[name]; apart {
		return // its controller service is a process of its own, served from the start
	}
	if !up {
		r.provision.RemoveDriver(name)
		if r.metadata != nil {
			r.metadata.RemoveDriver(name)
		}
		return
	}
	r.addController(context.Background(), name, endpoint)
}

// addController gives a driver's controller service its roles.
func (r *rooms) addController(ctx context.Context, name, endpoint string) {
	if err := r.provision.AddDriver(ctx, provision.Driver{Name: name, Endpoint: endpoint}); err != nil {
		r.in.log.Error("driver without provision roles", "driver", name, "error", err)
	}
	if r.metadata != nil {
		r.metadata.AddDriver(name, endpoint)
	}
}

// start runs everything in work until ctx ends. What the others call ends after them: the drivers (a registration whose
// socket goes would be taken for a driver's end), then events, informers and the journal.
func (r *rooms) start(ctx context.Context, work *errgroup.Group) {
	events := newEventBatches(&typedcore.EventSinkImpl{Interface: r.in.client.CoreV1().Events("")}, r.in.log)
	r.events.StartRecordingToSink(events)
	lower, stop := context.WithCancel(context.WithoutCancel(ctx))
	r.informers.Start(lower.Done())
	var callers, drivers sync.WaitGroup
	run := func(ctx context.Context, wg *sync.WaitGroup, name string, f func(context.Context) error) {
		wg.Add(1)
		work.Go(func() error {
			defer wg.Done()
			if err := f(ctx); err != nil && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	for name, socket := range r.in.CSIAddress {
		r.addController(ctx, name, socket)
	}
	if r.block != nil {
		run(lower, &drivers, "flexvolume socket", r.flex.Run)
		run(lower, &drivers, "driver", r.block.Run)
		run(lower, &drivers, "registrar", func(ctx context.Context) error {
			select { // the plugin watcher calls the driver at once
			case <-r.block.Serving():
				return r.registrar.Run(ctx)
			case <-ctx.Done():
				return nil
			}
		})
	}
	if r.claim != nil {
		run(ctx, &callers, "claim", r.claim.Run)
		run(ctx, &callers, "attach", r.attach.Run)
	}
	run(ctx, &callers, "schedule", r.schedule.Run)
	run(ctx, &callers, "provision", r.provision.Run)
	run(ctx, &callers, "retention", r.retention.Run)
	if r.metadata != nil {
		run(ctx, &callers, "snapshot metadata", r.metadata.Run)
	}
	if !r.in.Bare { // an instance for one CSI driver, which may not write outside of its data directory
		run(ctx, &callers, "flexvolume", r.runFlexVolumes)
	}
	run(ctx, &callers, "mount", r.mount.Run)
	run(ctx, &callers, "pod volumes", r.volumes.Run)
	run(ctx, &callers, "node", r.agent.Run)
	run(ctx, &callers, "discovery", r.runDiscovery)
	run(ctx, &callers, "volume", r.runNamed)
	run(ctx, &callers, "docker", r.runPlugin)
	work.Go(func() error {
		callers.Wait()
		stop()
		drivers.Wait()
		r.events.Shutdown()
		events.close(time.Second)
		r.informers.Shutdown()
		return r.journal.Close()
	})
}

// readyWithin bounds the wait for the rooms; they take some 100 ms.
const readyWithin = time.Minute

// waitReady returns when the driver has registered (by then the informers are synced and the node is there) and its
// capacity is published.
func (r *rooms) waitReady(ctx context.Context) error {
	if r.in.Bare {
		return nil // whoever brings the driver sees it in CSINode
	}
	t := time.NewTimer(readyWithin)
	defer t.Stop()
	select {
	case <-r.usable:
		r.published.wait(ctx, blockDriver)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return fmt.Errorf("driver %s did not register within %s; see %s", blockDriver, readyWithin, r.in.dir.Log("berth.log"))
	}
}
