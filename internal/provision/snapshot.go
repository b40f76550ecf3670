package provision

import (
	"context"
	"sync"

	groupinformers "github.com/kubernetes-csi/external-snapshotter/client/v8/informers/externalversions/volumegroupsnapshot/v1"
	snapcommon "github.com/kubernetes-csi/external-snapshotter/v8/pkg/common-controller"
	snapmetrics "github.com/kubernetes-csi/external-snapshotter/v8/pkg/metrics"
	"k8s.io/client-go/tools/cache"
)

// snapshots is the cluster-wide half, for the kinds that are served: external-snapshotter's common controller, which binds
// VolumeSnapshots to contents and group snapshots to theirs, and what wakes it (wakes.go).
type snapshots struct {
	m *Manager
	// wake is the common controller's own handler of VolumeSnapshots, wakeGroup that of VolumeGroupSnapshots; nil without those.
	wake, wakeGroup cache.ResourceEventHandler
	waits           *snapshotWaits
	sources         *snapshotSources
}

// serveSnapshots runs the common controller until ctx ends, or, where another process has that role, only what wakes the claims
// that are made from snapshots. It does not wait for a driver that can make snapshots: a snapshot of a
// driver that cannot is told so.
func (m *Manager) serveSnapshots(ctx context.Context) {
	m.kinds.during(ctx, "", func(ctx context.Context, have kinds, all *scope, wg *sync.WaitGroup) {
		s := &snapshots{m: m, waits: newSnapshotWaits(m), sources: &snapshotSources{m: m, queue: newQueue("provision-snapshot-source")}}
		s.run(ctx, have, all, wg)
		m.snapshots.Store(s)
	})
}

func (s *snapshots) run(ctx context.Context, have kinds, all *scope, wg *sync.WaitGroup) {
	if s.m.has(SnapshotController) {
		s.runCommon(ctx, have, all, wg)
		return
	}
	s.wake = cache.ResourceEventHandlerFuncs{}
	if err := s.watch(ctx, false, all, wg); err != nil {
		s.m.opts.Log.Error("claims that are made from snapshots are not woken by events", "err", err)
	}
	s.m.opts.SnapInformers.Start(s.m.ctx.Done())
}

func (s *snapshots) runCommon(ctx context.Context, have kinds, all *scope, wg *sync.WaitGroup) {
	m := s.m
	f, k := m.opts.SnapInformers.Snapshot().V1(), m.opts.Informers.Core().V1()
	var gs groupinformers.VolumeGroupSnapshotInformer
	var gc groupinformers.VolumeGroupSnapshotContentInformer
	var gl groupinformers.VolumeGroupSnapshotClassInformer
	if have.group {
		g := m.opts.SnapInformers.Groupsnapshot().V1()
		gs = capturing(all, g.VolumeGroupSnapshots(), nil, func(h cache.ResourceEventHandler) { s.wakeGroup = h })
		gc, gl = through(all, g.VolumeGroupSnapshotContents(), nil), g.VolumeGroupSnapshotClasses()
	}
	c := snapcommon.NewCSISnapshotCommonController(goneIsDeleted{m.opts.Snap}, m.opts.Client,
		capturing(all, f.VolumeSnapshots(), nil, func(h cache.ResourceEventHandler) { s.wake = h }),
		through(all, f.VolumeSnapshotContents(), nil), f.VolumeSnapshotClasses(), gs, gc, gl,
		k.PersistentVolumeClaims(), through(all, k.PersistentVolumes(), nil), nil,
		snapmetrics.NewMetricsManager(), 0, retries(), retries(), retries(), retries(), false, true, have.group)
	if err := s.watch(ctx, have.group, all, wg); err != nil {
		m.opts.Log.Error("snapshots are served, but not woken by events", "err", err)
	}
	m.opts.SnapInformers.Start(m.ctx.Done())
	wg.Go(func() { c.Run(m.few(), ctx.Done(), wg) })
}
