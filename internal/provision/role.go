package provision

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-lib-utils/rpc"
	provctl "github.com/kubernetes-csi/external-provisioner/v6/pkg/controller"
	"google.golang.org/grpc"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	csitrans "k8s.io/csi-translation-lib"
	libprov "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

// With this gate the libraries' workers join the wait group that they are given, so that stopping a driver can wait
// for them. (The gate is the sidecars' own; the leader election it is named after is not used here.)
func init() { _ = utilfeature.DefaultMutableFeatureGate.Set("ReleaseLeaderElectionOnExit=true") }

// Driver is a CSI driver as it registered on the node.
type Driver struct {
	Name     string
	Endpoint string // path of its unix socket
}

// role is everything that is done for one driver, from its registration to its going.
type role struct {
	m      *Manager
	driver Driver
	scope  *scope
	conn   *grpc.ClientConn
	cancel context.CancelFunc
	done   chan struct{}

	pluginCaps     rpc.PluginCapabilitySet
	controllerCaps rpc.ControllerCapabilitySet
	publishes, publishesReadOnly,
	singleNodeMultiWriter,
	takesSnapshots, takesGroups, modifies bool

	capacity *capacities // nil without GET_CAPACITY
	began    reasons
	waiting  reasons
	deleted  recent // volumes, by the PersistentVolume's uid
	moved    recent // attachments, by lane and uid

	mu      sync.Mutex
	status  DriverStatus
	claims  cache.ResourceEventHandler // the provision library's own, to wake it
	volumes cache.ResourceEventHandler
	// clones is the queue of the clone controller; nil without CLONE_VOLUME.
	clones workqueue.TypedRateLimitingInterface[string]
	// modified is the modify library's handler of claims; nil without MODIFY_VOLUME.
	modified cache.ResourceEventHandler
}

// run starts what the driver can do and returns when all of it has stopped.
func (r *role) run(ctx context.Context) {
	defer close(r.done)
	var wg sync.WaitGroup
	defer func() {
		r.scope.close()
		if r.conn != nil {
			_ = r.conn.Close() // ends RPCs whose library gave them no context of ours
		}
		wg.Wait()
	}()
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, 30*time.Second) {
		err := r.start(ctx, &wg)
		r.report(err)
		if err == nil {
			break
		}
		r.m.opts.Log.Warn("cannot serve a CSI driver yet", "driver", r.driver.Name, "endpoint", r.driver.Endpoint, "err", err, "retry", delay)
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay): // the driver's socket is there, but it does not answer: only time can tell
		}
	}
	r.m.modify.driverCame()
	if s := r.m.snapshots.Load(); s != nil {
		s.driverCame()
	}
	<-ctx.Done()
}

func (r *role) report(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.Err = ""
	if err != nil {
		r.status.Err = words(err)
	}
	r.status.Ready = err == nil
}

// start asks the driver what it is and starts the controllers for it. It starts nothing when it returns an error.
func (r *role) start(ctx context.Context, wg *sync.WaitGroup) (err error) {
	if r.conn == nil {
		if r.conn, err = r.dial(r.driver.Endpoint); err != nil {
			return err
		}
	}
	if err := r.ask(ctx); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	workers := r.m.opts.Workers
	var roles []string
	has := func(c csi.ControllerServiceCapability_RPC_Type) bool { return r.controllerCaps[c] }

	var expansion *expansion
	if r.pluginCaps[csi.PluginCapability_Service_CONTROLLER_SERVICE] {
		if expansion, err = r.newExpansion(); err != nil {
			return err
		}
	}
	var lanes *lanes
	if r.m.has(Attach) {
		lanes = r.newLanes()
	}
	var provision *libprov.ProvisionController
	if has(csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME) {
		if has(csi.ControllerServiceCapability_RPC_GET_CAPACITY) && r.m.opts.Namespace != "" && r.m.has(Capacity) {
			r.capacity = r.newCapacities()
			roles = append(roles, string(Capacity))
		}
		if r.m.has(Provision) {
			provision = r.newProvision(ctx, wg)
			roles = append(roles, string(Provision))
		}
	}
	// Informers that only this driver needs.
	r.m.opts.Informers.Start(r.m.ctx.Done())
	r.m.opts.CapacityInformers.Start(r.m.ctx.Done())

	if lanes != nil {
		lanes.run(ctx, workers, wg)
		roles = append(roles, string(Attach))
	}
	if expansion != nil {
		expansion.run(ctx, r.m.few(), wg)
		roles = append(roles, expansion.roles()...)
	}
	if r.m.kinds != nil && r.takesSnapshots && r.m.has(Snapshot) {
		wg.Go(func() { r.m.kinds.during(ctx, r.driver.Name, r.serveSnapshots) })
	}
	r.capacity.run(ctx, wg)
	if provision != nil {
		wg.Go(func() { provision.Run(ctx) })
		r.runCloneProtection(ctx, wg)
		r.m.intents.wake()
	}
	r.mu.Lock()
	r.status.Roles = append(r.status.Roles, roles...)
	r.mu.Unlock()
	return nil
}

// serveSnapshots starts the snapshot side-car for the kinds that the API serves.
func (r *role) serveSnapshots(ctx context.Context, have kinds, s *scope, wg *sync.WaitGroup) {
	have.group = have.group && r.takesGroups
	side := r.newSnapshotSidecar(have.group, s)
	r.m.opts.SnapInformers.Start(r.m.ctx.Done())
	side.run(ctx, r.m.few(), wg)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.Roles = slices.DeleteFunc(r.status.Roles, func(name string) bool { return name == snapshotRole })
	r.status.Roles = append(r.status.Roles, snapshotRole)
	if have.group {
		r.status.Roles = append(r.status.Roles, groupSnapshotRole)
	}
}

const (
	snapshotRole      = string(Snapshot)
	groupSnapshotRole = "group-snapshot"
)

// ask fills in the driver's capabilities.
func (r *role) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.m.opts.RPCTimeout)
	defer cancel()
	name, err := rpc.GetDriverName(ctx, r.conn)
	if err != nil {
		return fmt.Errorf("ask driver at %s for its name: %w", r.driver.Endpoint, err)
	}
	if name != r.driver.Name {
		return fmt.Errorf("the driver at %s calls itself %q, but registered as %q", r.driver.Endpoint, name, r.driver.Name)
	}
	if r.pluginCaps, err = rpc.GetPluginCapabilities(ctx, r.conn); err != nil {
		return fmt.Errorf("ask driver %s for its capabilities: %w", name, err)
	}
	r.controllerCaps = nil
	if r.pluginCaps[csi.PluginCapability_Service_CONTROLLER_SERVICE] {
		if r.controllerCaps, err = rpc.GetControllerCapabilities(ctx, r.conn); err != nil {
			return fmt.Errorf("ask driver %s for its controller's capabilities: %w", name, err)
		}
	}
	r.publishes = r.controllerCaps[csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME]
	r.publishesReadOnly = r.controllerCaps[csi.ControllerServiceCapability_RPC_PUBLISH_READONLY]
	r.singleNodeMultiWriter = r.controllerCaps[csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER]
	r.takesSnapshots = r.controllerCaps[csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT]
	r.modifies = r.controllerCaps[csi.ControllerServiceCapability_RPC_MODIFY_VOLUME]
	r.takesGroups = false
	if r.takesSnapshots && r.pluginCaps[csi.PluginCapability_Service_GROUP_CONTROLLER_SERVICE] {
		caps, err := rpc.GetGroupControllerCapabilities(ctx, r.conn)
		if err != nil {
			return fmt.Errorf("ask driver %s for its group controller's capabilities: %w", name, err)
		}
		r.takesGroups = caps[csi.GroupControllerServiceCapability_RPC_CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT]
	}
	r.mu.Lock()
	r.status.Controller = r.pluginCaps[csi.PluginCapability_Service_CONTROLLER_SERVICE]
	r.mu.Unlock()
	return nil
}

// newProvision is sig-storage-lib's controller over external-provisioner's CSI calls.
func (r *role) newProvision(ctx context.Context, wg *sync.WaitGroup) *libprov.ProvisionController {
	m, f := r.m, r.m.opts.Informers
	inner := provctl.NewCSIProvisioner(m.opts.Client, m.opts.RPCTimeout, r.driver.Name, "pvc", -1, r.conn, m.opts.Snap, r.driver.Name,
		r.pluginCaps, r.controllerCaps, "", m.opts.StrictTopology, !m.opts.NoImmediateTopology, csitrans.New(), m.classes, m.csiNodes, m.nodes, m.claims,
		nil /* attachments: provisioner.ShouldDelete looks by index */, nil, m.opts.ExtraCreateMetadata, m.opts.DefaultFSType, nil,
		m.opts.ControllerPublishReadOnly, true, provctl.NewInMemoryStore())
	c := libprov.NewProvisionController(ctx, newTerse(ctx, m.opts.Client), r.driver.Name, &provisioner{inner, r},
		libprov.LeaderElection(false),
		libprov.FailedProvisionThreshold(0), libprov.FailedDeleteThreshold(0), // never give up
		libprov.RateLimiter(retries()),
		libprov.Threadiness(m.opts.Workers),
		libprov.AddFinalizer(true),
		libprov.RetryIntervalMax(retrySlowly),
		libprov.CreateProvisionedPVLimiter(retries()),
		libprov.MetricsInstance(m.metrics.lib),
		libprov.ClaimsInformer(noting(capturing(r.scope, f.Core().V1().PersistentVolumeClaims(), r.scope.ownClaim, func(h cache.ResourceEventHandler) { r.claims = h })).Informer()),
		libprov.VolumesInformer(capturing(r.scope, f.Core().V1().PersistentVolumes(), r.scope.ownVolume, func(h cache.ResourceEventHandler) { r.volumes = h }).Informer()),
		libprov.ClassesInformer(f.Storage().V1().StorageClasses().Informer()),
	)
	c.ControllerWaitGroup(wg)
	return c
}

// runCloneProtection takes the finalizer off a deleted claim that was cloned, once its clones are made.
func (r *role) runCloneProtection(ctx context.Context, wg *sync.WaitGroup) {
	if !r.controllerCaps[csi.ControllerServiceCapability_RPC_CLONE_VOLUME] {
		return
	}
	r.clones = newQueue("provision-clones")
	informer := scoped{SharedIndexInformer: r.m.opts.Informers.Core().V1().PersistentVolumeClaims().Informer(), scope: r.scope, keep: r.scope.maybeOwnClaim}
	c := provctl.NewCloningProtectionController(r.m.opts.Client, r.m.claims, informer, r.clones, r.controllerCaps)
	wg.Go(func() { c.Run(ctx, 1, wg) })
}

// look makes the library look at a volume again.
func (r *role) look(volume string) {
	if r.volumes == nil {
		return
	}
	if pv, err := r.m.volumes.Get(volume); err == nil {
		r.volumes.OnUpdate(pv, pv)
	}
}

// retryRefused asks again for the claims that were refused: there may be room now.
func (r *role) retryRefused() {
	if r.claims == nil {
		return
	}
	for _, key := range r.m.intents.refused(r.driver.Name) {
		ns, name, _ := cache.SplitMetaNamespaceKey(key)
		if c, err := r.m.claims.PersistentVolumeClaims(ns).Get(name); err == nil {
			r.claims.OnUpdate(c, c)
		}
	}
}
