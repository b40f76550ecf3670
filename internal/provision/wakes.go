package provision

import (
	"context"
	"slices"
	"sync"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/cache"
)

// bySnapshotted is the index of the snapshots that are not ready, by the claim that they are of.
const bySnapshotted = "berth.io/provision/snapshotted"

func isReady(s *snapv1.VolumeSnapshot) bool {
	return s.Status != nil && s.Status.ReadyToUse != nil && *s.Status.ReadyToUse
}

// watch wakes the libraries' queues for the reasons that they would find out by asking again, with delays that grow to
// a minute: a claim was bound, a class came, a snapshot became ready, the last claim that is made from a snapshot was.
func (s *snapshots) watch(ctx context.Context, group bool, all *scope, wg *sync.WaitGroup) error {
	m := s.m
	f := m.opts.SnapInformers.Snapshot().V1()
	err := scoped{SharedIndexInformer: f.VolumeSnapshots().Informer()}.AddIndexers(cache.Indexers{bySnapshotted: func(o any) ([]string, error) {
		if x, ok := o.(*snapv1.VolumeSnapshot); ok && !isReady(x) && x.Spec.Source.PersistentVolumeClaimName != nil {
			return []string{x.Namespace + "/" + *x.Spec.Source.PersistentVolumeClaimName}, nil
		}
		return nil, nil
	}})
	if err != nil {
		return err
	}
	on := func(i cache.SharedIndexInformer, h cache.ResourceEventHandlerFuncs) {
		if _, failed := all.register(i, h); failed != nil && err == nil {
			err = failed
		}
	}
	on(f.VolumeSnapshots().Informer(), cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { s.snapshotSeen(nil, o.(*snapv1.VolumeSnapshot)) },
		UpdateFunc: func(was, o any) { s.snapshotSeen(was.(*snapv1.VolumeSnapshot), o.(*snapv1.VolumeSnapshot)) },
		DeleteFunc: func(o any) {
			if x, ok := last(o).(*snapv1.VolumeSnapshot); ok {
				s.waits.gone(x)
			}
		},
	})
	if m.has(SnapshotController) {
		on(f.VolumeSnapshotClasses().Informer(), cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { s.lookAtUnready() },
			UpdateFunc: func(any, any) { s.lookAtUnready() },
		})
	}
	on(m.opts.Informers.Core().V1().PersistentVolumeClaims().Informer(), cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { s.claimSeen(nil, o.(*v1.PersistentVolumeClaim)) },
		UpdateFunc: func(was, o any) { s.claimSeen(was.(*v1.PersistentVolumeClaim), o.(*v1.PersistentVolumeClaim)) },
		DeleteFunc: func(o any) {
			if c, ok := last(o).(*v1.PersistentVolumeClaim); ok {
				s.claimLeft(c)
			}
		},
	})
	if group {
		on(m.opts.SnapInformers.Groupsnapshot().V1().VolumeGroupSnapshotClasses().Informer(), cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { s.lookAtUnreadyGroups() },
		})
		on(m.opts.SnapInformers.Groupsnapshot().V1().VolumeGroupSnapshots().Informer(), cache.ResourceEventHandlerFuncs{
			DeleteFunc: func(o any) {
				if g, ok := last(o).(*groupv1.VolumeGroupSnapshot); ok {
					s.groupGone(g)
				}
			},
		})
	}
	if m.has(SnapshotController) {
		wg.Go(func() { work(ctx, s.waits.queue, 1, s.waits.tell) })
	}
	if m.has(Provision) {
		wg.Go(func() { work(ctx, s.sources.queue, 1, s.sources.settle) })
	}
	return err
}

// driverCame tells again what snapshots wait for: it may be another thing now.
func (s *snapshots) driverCame() {
	all, _ := s.m.opts.SnapInformers.Snapshot().V1().VolumeSnapshots().Lister().List(labels.Everything())
	for _, x := range all {
		s.waits.seen(x)
	}
}

func (s *snapshots) snapshotSeen(was, now *snapv1.VolumeSnapshot) {
	if isReady(now) && (was == nil || !isReady(was)) {
		s.m.provisionAgain(s.m.madeFrom(snapshotKind, now.Namespace, now.Name))
	}
	s.waits.seen(now)
	s.sources.seen(now)
}

// claimSeen wakes what waits for a claim to be bound.
func (s *snapshots) claimSeen(was, now *v1.PersistentVolumeClaim) {
	if now.Status.Phase != v1.ClaimBound || was != nil && was.Status.Phase == v1.ClaimBound {
		return
	}
	s.lookAt(s.unreadyOf(now.Namespace, now.Name))
	s.m.provisionAgain(s.m.madeFrom(claimKind, now.Namespace, now.Name))
	s.claimLeft(now)
	if s.wakeGroup != nil {
		s.lookAtUnreadyGroups()
	}
}

// claimLeft frees what a claim was made from: it is bound, or gone.
func (s *snapshots) claimLeft(c *v1.PersistentVolumeClaim) {
	switch kind, name := sourceOf(c); kind {
	case claimKind:
		s.m.cloneEnded(c, name)
	case snapshotKind:
		o, err := s.m.opts.SnapInformers.Snapshot().V1().VolumeSnapshots().Lister().VolumeSnapshots(c.Namespace).Get(name)
		if err == nil && o.DeletionTimestamp != nil {
			s.sources.seen(o)
			s.wake.OnUpdate(o, o) // the common controller holds it, too, while a claim is made from it
		}
	}
}

func (s *snapshots) unreadyOf(namespace, claim string) []*snapv1.VolumeSnapshot {
	found, _ := s.m.opts.SnapInformers.Snapshot().V1().VolumeSnapshots().Informer().GetIndexer().ByIndex(bySnapshotted, namespace+"/"+claim)
	out := make([]*snapv1.VolumeSnapshot, 0, len(found))
	for _, o := range found {
		if x, ok := o.(*snapv1.VolumeSnapshot); ok {
			out = append(out, x)
		}
	}
	return out
}

func (s *snapshots) lookAtUnready() {
	all, _ := s.m.opts.SnapInformers.Snapshot().V1().VolumeSnapshots().Lister().List(labels.Everything())
	s.lookAt(slices.DeleteFunc(slices.Clone(all), isReady))
}

func (s *snapshots) lookAt(all []*snapv1.VolumeSnapshot) {
	for _, x := range all {
		s.wake.OnUpdate(x, x)
		s.waits.seen(x)
	}
}

func (s *snapshots) lookAtUnreadyGroups() {
	all, _ := s.m.opts.SnapInformers.Groupsnapshot().V1().VolumeGroupSnapshots().Lister().List(labels.Everything())
	for _, x := range all {
		if !groupReady(x) {
			s.wakeGroup.OnUpdate(x, x)
		}
	}
}

// groupGone frees the members: they may go now, which they may not before.
func (s *snapshots) groupGone(g *groupv1.VolumeGroupSnapshot) {
	all, _ := s.m.opts.SnapInformers.Snapshot().V1().VolumeSnapshots().Lister().VolumeSnapshots(g.Namespace).List(labels.Everything())
	for _, x := range all {
		if x.DeletionTimestamp != nil && x.Status != nil && x.Status.VolumeGroupSnapshotName != nil && *x.Status.VolumeGroupSnapshotName == g.Name {
			s.wake.OnUpdate(x, x)
		}
	}
}

func groupReady(g *groupv1.VolumeGroupSnapshot) bool {
	return g.Status != nil && g.Status.ReadyToUse != nil && *g.Status.ReadyToUse
}
