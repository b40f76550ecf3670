package provision

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	groupinformers "github.com/kubernetes-csi/external-snapshotter/client/v8/informers/externalversions/volumegroupsnapshot/v1"
	grouplisters "github.com/kubernetes-csi/external-snapshotter/client/v8/listers/volumegroupsnapshot/v1"
	"github.com/kubernetes-csi/external-snapshotter/v8/pkg/group_snapshotter"
	snapside "github.com/kubernetes-csi/external-snapshotter/v8/pkg/sidecar-controller"
	"github.com/kubernetes-csi/external-snapshotter/v8/pkg/snapshotter"
	snaputils "github.com/kubernetes-csi/external-snapshotter/v8/pkg/utils"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"berth.io/berth/internal/trace"
)

// sidecar is external-snapshotter's side-car for one driver: it takes and deletes what the contents say.
type sidecar struct {
	controller interface {
		Run(workers int, stop <-chan struct{}, wg *sync.WaitGroup)
	}
	groups *groupContents // nil without group snapshots
}

// What CreateSnapshot and CreateVolumeGroupSnapshot are asked under: a prefix and the uid of the user's object.
const (
	snapshotPrefix      = "snapshot"
	groupSnapshotPrefix = "groupsnapshot"
)

func (r *role) newSnapshotSidecar(group bool, of *scope) *sidecar {
	m := r.m
	f := m.opts.SnapInformers.Snapshot().V1()
	s := &sidecar{}
	var groups group_snapshotter.GroupSnapshotter
	var groupInformer groupinformers.VolumeGroupSnapshotContentInformer
	var groupClasses groupinformers.VolumeGroupSnapshotClassInformer
	if group {
		g := m.opts.SnapInformers.Groupsnapshot().V1()
		groups = tracedGroupSnapshotter{group_snapshotter.NewGroupSnapshotter(r.conn), r}
		s.groups = &groupContents{lister: g.VolumeGroupSnapshotContents().Lister(), queue: newQueue("provision-group-snapshot")}
		groupInformer = capturing(of, g.VolumeGroupSnapshotContents(), of.ownGroupContent, s.groups.capture)
		groupClasses = g.VolumeGroupSnapshotClasses()
	}
	contents := newContentNotes(through(of, f.VolumeSnapshotContents(), of.ownContent))
	s.controller = snapside.NewCSISnapshotSideCarController(contents.client(m.opts.Snap), m.opts.Client, r.driver.Name,
		contents, f.VolumeSnapshotClasses(),
		tracedSnapshotter{snapshotter.NewSnapshotter(r.conn), r}, groups, m.opts.RPCTimeout, 0, snapshotPrefix, -1, groupSnapshotPrefix, -1, m.opts.ExtraCreateMetadata, retries(),
		group, groupInformer, groupClasses, retries())
	if group {
		if _, err := of.register(m.opts.SnapInformers.Groupsnapshot().V1().VolumeGroupSnapshotContents().Informer(), s.groups.handler(of.ownGroupContent)); err != nil {
			m.opts.Log.Error("group snapshots that a driver does not finish at once stay unready", "driver", r.driver.Name, "err", err)
		}
	}
	return s
}

func (s *sidecar) run(ctx context.Context, workers int, wg *sync.WaitGroup) {
	wg.Go(func() { s.controller.Run(workers, ctx.Done(), wg) })
	if s.groups != nil {
		wg.Go(func() { work(ctx, s.groups.queue, 1, s.groups.lookAgain) })
		wg.Go(func() {
			<-ctx.Done()
			s.groups.release(workers)
		})
	}
}

func (s *scope) ownContent(o any) bool {
	c, ok := o.(*snapv1.VolumeSnapshotContent)
	return ok && c.Spec.Driver == s.driver
}

func (s *scope) ownGroupContent(o any) bool {
	c, ok := o.(*groupv1.VolumeGroupSnapshotContent)
	return ok && c.Spec.Driver == s.driver
}

// groupContents makes up for two things that the library does not do: it looks at a group snapshot that is taken and not
// ready yet only with a resync, of which there is none here; and it never shuts its queue of groups down.
type groupContents struct {
	lister  grouplisters.VolumeGroupSnapshotContentLister
	library cache.ResourceEventHandler
	queue   workqueue.TypedRateLimitingInterface[string]
}

func (g *groupContents) capture(h cache.ResourceEventHandler) { g.library = h }

func (g *groupContents) handler(own func(any) bool) cache.ResourceEventHandler {
	seen := func(o any) {
		if c, ok := o.(*groupv1.VolumeGroupSnapshotContent); ok && own(c) && becomesReady(c) {
			g.queue.AddRateLimited(c.Name)
		}
	}
	return cache.ResourceEventHandlerFuncs{AddFunc: seen, UpdateFunc: func(_, o any) { seen(o) }}
}

// becomesReady says of a content whether only time will tell: the driver has taken the group and goes on working.
func becomesReady(c *groupv1.VolumeGroupSnapshotContent) bool {
	return c.DeletionTimestamp == nil && c.Status != nil && c.Status.VolumeGroupSnapshotHandle != nil && c.Status.Error == nil &&
		(c.Status.ReadyToUse == nil || !*c.Status.ReadyToUse)
}

var errNotReady = errors.New("not ready yet")

func (g *groupContents) lookAgain(_ context.Context, name string) error {
	c, err := g.lister.Get(name)
	if err != nil || !becomesReady(c) {
		return nil
	}
	g.library.OnUpdate(c, c)
	return errNotReady
}

// release ends the library's workers, who wait for the next key: each is given one, of nothing, and sees on its way back
// that it is to stop.
func (g *groupContents) release(workers int) {
	for i := range workers {
		g.library.OnAdd(&groupv1.VolumeGroupSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("stop-%d", i)}}, false)
	}
}

// tracedSnapshotter records the journey of the volume around a snapshot of it.
type tracedSnapshotter struct {
	snapshotter.Snapshotter
	r *role
}

// CreateSnapshot asks the driver. boundary: held by the caller: the connection's interceptor (bounded).
func (t tracedSnapshotter) CreateSnapshot(ctx context.Context, name, handle string, parameters, secrets map[string]string) (string, string, time.Time, int64, bool, error) {
	content, claim, pv := t.r.m.snapshotSource(name)
	if why := otherDriver(content, claim, pv); why != "" {
		// The library takes the driver from the class and the handle from the volume, and never compares.
		return "", "", time.Time{}, 0, false, status.Error(codes.InvalidArgument, why)
	}
	done := t.r.snapshotBegins(name, pv)
	driver, id, taken, size, ready, err := t.Snapshotter.CreateSnapshot(ctx, name, handle, parameters, secrets)
	done(ready, err)
	return driver, id, taken, size, ready, err
}

// snapshotSource finds what the snapshot that CreateSnapshot is asked for by name is of; each may be nil.
func (m *Manager) snapshotSource(name string) (*snapv1.VolumeSnapshotContent, *v1.PersistentVolumeClaim, *v1.PersistentVolume) {
	content, err := m.opts.SnapInformers.Snapshot().V1().VolumeSnapshotContents().Lister().Get("snapcontent-" + strings.TrimPrefix(name, snapshotPrefix+"-"))
	if err != nil {
		return nil, nil, nil
	}
	ref := content.Spec.VolumeSnapshotRef
	snapshot, err := m.opts.SnapInformers.Snapshot().V1().VolumeSnapshots().Lister().VolumeSnapshots(ref.Namespace).Get(ref.Name)
	if err != nil || snapshot.UID != ref.UID || snapshot.Spec.Source.PersistentVolumeClaimName == nil {
		return content, nil, nil
	}
	claim, err := m.claims.PersistentVolumeClaims(ref.Namespace).Get(*snapshot.Spec.Source.PersistentVolumeClaimName)
	if err != nil {
		return content, nil, nil
	}
	pv, _ := m.volumes.Get(claim.Spec.VolumeName)
	return content, claim, pv
}

// otherDriver says why a content cannot be: its class and its volume belong to two drivers. It wants positive proof.
func otherDriver(content *snapv1.VolumeSnapshotContent, claim *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) string {
	if content == nil || claim == nil || pv == nil || pv.Spec.CSI == nil || pv.Spec.CSI.Driver == content.Spec.Driver {
		return ""
	}
	class := ""
	if content.Spec.VolumeSnapshotClassName != nil {
		class = *content.Spec.VolumeSnapshotClassName
	}
	return fmt.Sprintf("VolumeSnapshotClass %q is of driver %s, and the volume of claim %s is of driver %s: name a class of that driver", class, content.Spec.Driver, claim.Name, pv.Spec.CSI.Driver)
}

// snapshotKey is what the reasons know a snapshot by, by the name that the driver is asked under.
func snapshotKey(name string) string { return "snapshot/" + name }

// forgetSnapshot drops what was told of a snapshot by its uid, and reports whether it was under way.
func (r *role) forgetSnapshot(uid string) bool {
	key := snapshotKey(snapshotPrefix + "-" + uid)
	r.waiting.Remove(key)
	return r.began.Remove(key)
}

// snapshotBegins records that the driver is asked for a snapshot of a volume; done records the outcome.
func (r *role) snapshotBegins(name string, pv *v1.PersistentVolume) (done func(ready bool, err error)) {
	e := trace.Entry{Step: trace.Snapshotted, State: trace.Began, Claim: trace.ClaimOf(pv), Detail: "asking driver " + r.driver.Name}
	if pv != nil {
		e.Volume = pv.Name
	}
	key := snapshotKey(name)
	if r.began.Add(key, "") {
		r.m.opts.Trace.Record(e)
	}
	return func(ready bool, err error) {
		switch {
		case err != nil:
			e.State, e.Detail = trace.Failed, words(err)
		case !ready:
			e.State, e.Detail = trace.Waiting, "the snapshot is taken, and driver "+r.driver.Name+" has not finished it"
		default:
			e.State, e.Detail = trace.Done, ""
		}
		if e.State != trace.Done && !r.waiting.Add(key, e.Detail) {
			return
		}
		if e.State == trace.Done {
			r.began.Remove(key)
			r.waiting.Remove(key)
			r.capacity.changed()
		}
		r.m.opts.Trace.Record(e)
	}
}

// DeleteSnapshot asks the driver. boundary: held by the caller: the connection's interceptor (bounded).
func (t tracedSnapshotter) DeleteSnapshot(ctx context.Context, id string, secrets map[string]string) error {
	err := t.Snapshotter.DeleteSnapshot(ctx, id, secrets)
	if err == nil {
		t.r.capacity.changed()
	}
	return err
}

// tracedGroupSnapshotter records the journey of each volume of a group.
type tracedGroupSnapshotter struct {
	group_snapshotter.GroupSnapshotter
	r *role
}

func (t tracedGroupSnapshotter) CreateGroupSnapshot(ctx context.Context, name string, handles []string, parameters, secrets map[string]string) (string, string, []*csi.Snapshot, time.Time, bool, error) {
	var done []func(bool, error)
	for _, h := range handles {
		done = append(done, t.r.snapshotBegins(name+"/"+h, t.r.m.volumeOf(t.r.driver.Name, h)))
	}
	driver, id, snaps, taken, ready, err := t.GroupSnapshotter.CreateGroupSnapshot(ctx, name, handles, parameters, secrets)
	for _, f := range done {
		f(ready, err)
	}
	return driver, id, snaps, taken, ready, err
}

func (t tracedGroupSnapshotter) DeleteGroupSnapshot(ctx context.Context, id string, ids []string, secrets map[string]string) error {
	err := t.GroupSnapshotter.DeleteGroupSnapshot(ctx, id, ids, secrets)
	if err == nil {
		t.r.capacity.changed()
	}
	return err
}

// volumeOf is the PersistentVolume of a driver's volume; nil when there is none, or more than one.
func (m *Manager) volumeOf(driver, handle string) *v1.PersistentVolume {
	found, _ := m.volumeIndex.ByIndex(snaputils.CSIDriverHandleIndexName, snaputils.PersistentVolumeKeyFuncByCSIDriverHandle(driver, handle))
	if len(found) != 1 {
		return nil
	}
	pv, _ := found[0].(*v1.PersistentVolume)
	return pv
}
