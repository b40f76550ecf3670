package retention

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	snapclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	snapfactory "github.com/kubernetes-csi/external-snapshotter/client/v8/informers/externalversions"
	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	api "berth.io/berth/api/v1alpha1"
)

// Options of a Controller.
type Options struct {
	// Client of the schedules themselves.
	Client    dynamic.Interface
	Informers informers.SharedInformerFactory
	Snap      snapclient.Interface
	// SnapInformers is started by Run, too; it may be somebody else's.
	SnapInformers snapfactory.SharedInformerFactory

	Events  record.EventRecorder
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Controller runs the SnapshotSchedules of all namespaces.
type Controller struct {
	opts    Options
	metrics *metrics
	now     func() time.Time
	queue   workqueue.TypedRateLimitingInterface[string]

	schedules cache.SharedIndexInformer
	claims    corelisters.PersistentVolumeClaimLister
	snapshots cache.SharedIndexInformer
	groups    cache.SharedIndexInformer
	synced    []cache.InformerSynced

	alarm *alarm

	mu   sync.Mutex
	next map[string]time.Time // by schedule
	told map[string]string    // by schedule: the last thing said about claims that were left out
	done map[string]run       // by schedule: the last time for which this process made snapshots
}

// bySchedule is the index of what schedules have made, by the schedule's uid.
const bySchedule = "berth.io/retention/schedule"

// New prepares the controller and adds its handlers to the informers.
func New(o Options) (*Controller, error) {
	if o.Client == nil || o.Informers == nil || o.Snap == nil || o.SnapInformers == nil {
		return nil, errors.New("retention: Client, Informers, Snap and SnapInformers are needed")
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	c := &Controller{opts: o, now: time.Now, next: map[string]time.Time{}, told: map[string]string{}, done: map[string]run{},
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, time.Minute),
			workqueue.TypedRateLimitingQueueConfig[string]{Name: "retention"})}
	var err error
	if c.metrics, err = newMetrics(o.Metrics); err != nil {
		return nil, err
	}
	c.schedules = dynamicinformer.NewFilteredDynamicInformer(o.Client, api.SnapshotScheduleResource, metav1.NamespaceAll, 0,
		cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}, nil).Informer()
	if err := c.schedules.SetTransform(typed); err != nil {
		return nil, err
	}
	c.claims = o.Informers.Core().V1().PersistentVolumeClaims().Lister()
	c.snapshots = o.SnapInformers.Snapshot().V1().VolumeSnapshots().Informer()
	c.groups = o.SnapInformers.Groupsnapshot().V1().VolumeGroupSnapshots().Informer()
	c.synced = []cache.InformerSynced{c.schedules.HasSynced, c.snapshots.HasSynced, c.groups.HasSynced, o.Informers.Core().V1().PersistentVolumeClaims().Informer().HasSynced}
	return c, c.watch()
}

// typed makes a SnapshotSchedule of what the dynamic client reads, once for each object.
func typed(o any) (any, error) {
	u, ok := o.(*unstructured.Unstructured)
	if !ok {
		return o, nil
	}
	u.SetManagedFields(nil)
	s := &api.SnapshotSchedule{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, s); err != nil {
		return nil, fmt.Errorf("read SnapshotSchedule %s/%s: %w", u.GetNamespace(), u.GetName(), err)
	}
	s.SetGroupVersionKind(api.SnapshotScheduleKind) // events refer to it by this
	return s, nil
}

func (c *Controller) watch() error {
	index := cache.Indexers{bySchedule: func(o any) ([]string, error) {
		m, ok := o.(metav1.Object)
		if uid := ""; ok {
			if uid = m.GetLabels()[api.LabelScheduleUID]; uid != "" {
				return []string{uid}, nil
			}
		}
		return nil, nil
	}}
	add := func(o any) {
		if s, ok := last(o).(*api.SnapshotSchedule); ok {
			c.queue.Add(s.Namespace + "/" + s.Name)
		}
	}
	child := func(o any) {
		if m, ok := last(o).(metav1.Object); ok && m.GetLabels()[api.LabelScheduleUID] != "" {
			c.queue.Add(m.GetNamespace() + "/" + m.GetLabels()[api.LabelSchedule])
		}
	}
	_, err := c.schedules.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(_, o any) { add(o) }, DeleteFunc: add})
	if err != nil {
		return err
	}
	claims := c.opts.Informers.Core().V1().PersistentVolumeClaims().Informer()
	if _, err := claims.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { c.claimSeen(nil, o.(*v1.PersistentVolumeClaim)) },
		UpdateFunc: func(was, o any) {
			c.claimSeen(was.(*v1.PersistentVolumeClaim), o.(*v1.PersistentVolumeClaim))
		},
		DeleteFunc: func(o any) {
			if claim, ok := last(o).(*v1.PersistentVolumeClaim); ok {
				c.claimSeen(nil, claim)
			}
		},
	}); err != nil {
		return err
	}
	for _, i := range []cache.SharedIndexInformer{c.snapshots, c.groups} {
		if err := i.AddIndexers(index); err != nil {
			return err
		}
		if _, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: child, UpdateFunc: func(_, o any) { child(o) }, DeleteFunc: child}); err != nil {
			return err
		}
	}
	return nil
}

// countAfter keeps the count of a schedule's claims, which is for people, out of the rush in which claims are bound.
const countAfter = time.Second

// claimSeen counts anew the claims of the schedules that may select one: it was bound, or labelled, or goes.
func (c *Controller) claimSeen(was, now *v1.PersistentVolumeClaim) {
	if was != nil && was.Status.Phase == now.Status.Phase && (was.DeletionTimestamp == nil) == (now.DeletionTimestamp == nil) && maps.Equal(was.Labels, now.Labels) {
		return
	}
	keys, _ := c.schedules.GetIndexer().IndexKeys(cache.NamespaceIndex, now.Namespace)
	for _, key := range keys {
		c.queue.AddAfter(key, countAfter)
	}
}

// last is the object that a delete event is about, also when the informer missed the deletion itself.
func last(o any) any {
	if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
		return gone.Obj
	}
	return o
}

// Run runs the schedules until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	var err error
	if c.alarm, err = newAlarm(); err != nil {
		return fmt.Errorf("retention: %w", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { c.schedules.Run(ctx.Done()) })
	c.opts.SnapInformers.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), c.synced...) {
		return ctx.Err()
	}
	failed := make(chan error, 1)
	wg.Go(func() { failed <- c.alarm.run(ctx, c.wake) })
	wg.Go(func() { c.work(ctx) })
	<-ctx.Done()
	c.queue.ShutDown()
	wg.Wait()
	return <-failed
}

func (c *Controller) work(ctx context.Context) {
	for {
		key, stop := c.queue.Get()
		if stop {
			return
		}
		if err := c.reconcile(ctx, key); err != nil {
			c.opts.Log.Warn("snapshot schedule", "schedule", key, "err", err)
			c.queue.AddRateLimited(key)
		} else {
			c.queue.Forget(key)
		}
		c.queue.Done(key)
	}
}

// wake looks at every schedule: a time has come, or the clock was set.
func (c *Controller) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key := range c.next {
		c.queue.Add(key)
	}
}

// wakeAt notes when a schedule is to be looked at next; zero: never by itself.
func (c *Controller) wakeAt(key string, at time.Time, exists bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if exists {
		c.next[key] = at
	} else {
		delete(c.next, key)
	}
	var first time.Time
	for _, t := range c.next {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	c.metrics.schedules.Set(float64(len(c.next)))
	return c.alarm.set(first)
}

// madeBy lists what a schedule has made.
func (c *Controller) madeBy(s *api.SnapshotSchedule) []made {
	var all []made
	for _, i := range []cache.SharedIndexInformer{c.snapshots, c.groups} {
		found, _ := i.GetIndexer().ByIndex(bySchedule, string(s.UID))
		for _, o := range found {
			if m, ok := madeOf(o, s); ok {
				all = append(all, m)
			}
		}
	}
	return all
}

// madeOf reads a snapshot that claims to be the schedule's; false when it is not. The labels alone prove nothing: someone may
// have copied them to a snapshot that is to stay. The name does, which only the schedule, the claim and the time give.
func madeOf(o any, s *api.SnapshotSchedule) (made, bool) {
	object, ok := o.(metav1.Object)
	if !ok || object.GetNamespace() != s.Namespace {
		return made{}, false
	}
	at, err := time.Parse(time.RFC3339, object.GetAnnotations()[api.AnnotationScheduledAt])
	if err != nil {
		return made{}, false
	}
	m := made{name: object.GetName(), uid: object.GetUID(), at: at, deleting: object.GetDeletionTimestamp() != nil}
	switch x := o.(type) {
	case *snapv1.VolumeSnapshot:
		if x.Spec.Source.PersistentVolumeClaimName == nil {
			return made{}, false
		}
		m.of = *x.Spec.Source.PersistentVolumeClaimName
		if st := x.Status; st != nil {
			m.ready, m.failed, m.why = became(st.ReadyToUse, st.Error)
		}
	case *groupv1.VolumeGroupSnapshot:
		m.group = true
		if st := x.Status; st != nil {
			m.ready, m.failed, m.why = became(st.ReadyToUse, st.Error)
		}
	}
	return m, m.name == nameOf(s.Name, s.UID, m.of, m.at)
}

func became(readyToUse *bool, failure *snapv1.VolumeSnapshotError) (ready, failed bool, why string) {
	ready = readyToUse != nil && *readyToUse
	if !ready && failure != nil {
		failed, why = true, "it failed"
		if failure.Message != nil {
			why = *failure.Message
		}
	}
	return ready, failed, why
}
