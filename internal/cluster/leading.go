package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	snapclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	snapfactory "github.com/kubernetes-csi/external-snapshotter/client/v8/informers/externalversions"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"berth.io/berth/internal/apiclient"
	"berth.io/berth/internal/discovery/vanished"
	"berth.io/berth/internal/provision"
	"berth.io/berth/internal/retention"
)

// leading is what runs while the lease is held. It is made anew with each term, of which a process has one.
type leading struct {
	c         *controller
	informers informers.SharedInformerFactory
	capacity  informers.SharedInformerFactory
	snapshots snapfactory.SharedInformerFactory
	events    record.EventBroadcaster

	block     *blockHalf // nil without the role
	provision *provision.Manager
	retention *retention.Controller // nil without the role
	vanished  *vanished.Controller  // nil without the role
}

// work runs until ctx ends, and returns when everything has stopped.
func (c *controller) work(ctx context.Context) error {
	l, err := c.newLeading()
	if err != nil {
		return err
	}
	defer l.events.Shutdown()
	c.leads.Store(l)
	defer c.leads.Store(nil)
	c.log.Info("this process leads", "controllers", c.chosen(), "workers", c.Workers)
	defer settle(c.log)()
	return l.run(ctx)
}

func (c *controller) chosen() (names []string) {
	for _, r := range Roles {
		if c.Controllers[r] {
			names = append(names, r)
		}
	}
	return names
}

func (c *controller) newLeading() (l *leading, err error) {
	l = &leading{c: c}
	l.informers = informers.NewSharedInformerFactoryWithOptions(c.client, 0, informers.WithTransform(lean))
	l.capacity = informers.NewSharedInformerFactoryWithOptions(c.client, 0, informers.WithTransform(lean), informers.WithNamespace(c.namespace))
	// Events have a limit of their own: a burst of volumes must not wait for what is told about it.
	events, err := kubernetes.NewForConfig(aside(c.config, 50, 10*time.Second))
	if err != nil {
		return nil, err
	}
	l.events = record.NewBroadcaster()
	l.events.StartRecordingToSink(&typedcore.EventSinkImpl{Interface: events.CoreV1().Events("")})
	// The libraries' writes are boundaries, too.
	theirs := wrapped(c.config, provision.WrapTransport)
	snaps, err := snapclient.NewForConfig(theirs)
	if err != nil {
		return nil, err
	}
	l.snapshots = snapfactory.NewSharedInformerFactoryWithOptions(snaps, 0, snapfactory.WithTransform(lean))
	return l, errors.Join(l.makeProvision(theirs, snaps), l.makeRetention(), l.makeVanished(), l.makeBlock())
}

func (l *leading) recorder(component string) record.EventRecorder {
	return l.events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: component})
}

func (l *leading) makeProvision(theirs *rest.Config, snaps snapclient.Interface) error {
	c := l.c
	client, err := kubernetes.NewForConfig(apiclient.Protobuf(theirs))
	if err != nil {
		return err
	}
	definitions, err := metadata.NewForConfig(c.config)
	if err != nil {
		return err
	}
	skip := without(c.Controllers)
	if c.Controllers[string(provision.Modify)] {
		switch served, err := c.servesAttributes(); {
		case err != nil:
			return err
		case !served:
			c.log.Warn("the cluster has no VolumeAttributesClass of storage.k8s.io/v1 (Kubernetes 1.34 has): volumes keep the attributes that they were made with")
			skip = append(skip, provision.Modify)
		}
	}
	l.provision, err = provision.New(provision.Options{
		Client: client, Informers: l.informers, CapacityInformers: l.capacity, Snap: snaps, SnapInformers: l.snapshots, Definitions: definitions,
		Events: l.recorder("external-provisioner"), Log: c.log, Metrics: c.metrics, Namespace: c.namespace,
		Without: skip, WithoutGroups: c.refused(gateGroups), Workers: c.Workers, RPCTimeout: c.RPCTimeout, CapacityPoll: c.CapacityPoll, MayAct: c.fence.Check,
		ExtraCreateMetadata: c.ExtraCreateMetadata, ExtraModifyMetadata: c.ExtraModifyMetadata, DefaultFSType: c.DefaultFSType,
		StrictTopology: c.StrictTopology, NoImmediateTopology: c.NoImmediateTopology, ControllerPublishReadOnly: c.ControllerPublishReadOnly,
	})
	return err
}

// refused says whether a gate was switched off.
func (c *controller) refused(gate string) bool {
	on, set := c.Gates[gate]
	return set && !on
}

// servesAttributes asks the API whether it has VolumeAttributesClasses: an informer of a kind that is not served never syncs.
func (c *controller) servesAttributes() (bool, error) {
	if c.refused(gateAttributes) {
		return false, nil
	}
	list, err := c.client.Discovery().ServerResourcesForGroupVersion("storage.k8s.io/v1")
	if err != nil {
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return false, fmt.Errorf("ask the API for storage.k8s.io/v1: %w", err)
	}
	for _, r := range list.APIResources {
		if r.Name == "volumeattributesclasses" {
			return true, nil
		}
	}
	return false, nil
}

func (l *leading) makeRetention() error {
	c := l.c
	if !c.Controllers[RoleRetention] {
		return nil
	}
	schedules, err := dynamic.NewForConfig(c.config)
	if err != nil {
		return err
	}
	snaps, err := snapclient.NewForConfig(c.config)
	if err != nil {
		return err
	}
	l.retention, err = retention.New(retention.Options{Client: schedules, Informers: l.informers, Snap: snaps, SnapInformers: l.snapshots,
		Events: l.recorder("snapshot-schedule"), Log: c.log, Metrics: c.metrics})
	return err
}

// makeVanished makes what looks after the local volumes of nodes that are gone.
func (l *leading) makeVanished() (err error) {
	c := l.c
	if !c.Controllers[RoleDiscovery] {
		return nil
	}
	l.vanished, err = vanished.New(vanished.Options{Delays: c.Vanished, Client: c.client, Informers: l.informers, Events: l.recorder("local-volume-node-cleanup"),
		Log: c.log, Metrics: c.metrics})
	return err
}

// run starts the informers and the rooms, and ends in the other order: what others are called by stops last.
func (l *leading) run(ctx context.Context) error {
	lower, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer l.informers.Shutdown()
	defer l.capacity.Shutdown()
	defer stop()
	l.informers.Start(lower.Done())
	work, ctx := errgroup.WithContext(ctx)
	room := func(name string, f func(context.Context) error) {
		work.Go(func() error {
			if err := f(ctx); err != nil && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	room("provision", l.provision.Run)
	if l.retention != nil {
		room("retention", l.retention.Run)
	}
	if l.vanished != nil {
		room("discovery", l.vanished.Run)
	}
	if l.block != nil {
		defer l.block.start(lower, ctx, work)()
		room("block", l.serveBlock)
	}
	for _, a := range l.c.CSIAddress {
		room("driver at "+a.Socket, func(ctx context.Context) error { return l.serveDriver(ctx, a) })
	}
	return work.Wait()
}

// serveDriver gives a driver its roles as soon as it says its name. That one does not answer is no error: the others go on.
func (l *leading) serveDriver(ctx context.Context, a Address) (err error) {
	if a.Name == "" {
		if a.Name, err = awaitName(ctx, a.Socket, l.c.log); err != nil {
			return err
		}
	}
	for _, s := range l.provision.Status() {
		if s.Name == a.Name && s.Endpoint != a.Socket {
			return fmt.Errorf("--csi-address: %s and %s are both driver %s", s.Endpoint, a.Socket, a.Name)
		}
	}
	return l.provision.AddDriver(ctx, provision.Driver{Name: a.Name, Endpoint: a.Socket})
}

// ready says whether the informers have synced and every driver is served.
func (l *leading) ready() error {
	if !l.provision.Synced() {
		return errors.New("the informers have not read the API yet")
	}
	served := map[string]provision.DriverStatus{}
	for _, s := range l.provision.Status() {
		served[s.Endpoint] = s
	}
	var problems []error
	if l.block != nil && !l.block.backend.Synced() {
		problems = append(problems, errors.New("the block store's objects have not been read yet; are their definitions installed?"))
	}
	for _, a := range l.c.CSIAddress {
		switch s, there := served[a.Socket]; {
		case !there:
			problems = append(problems, fmt.Errorf("the driver at %s has not said its name yet", a.Socket))
		case s.Err != "":
			problems = append(problems, fmt.Errorf("driver %s at %s: %s", s.Name, a.Socket, s.Err))
		}
	}
	return errors.Join(problems...)
}
