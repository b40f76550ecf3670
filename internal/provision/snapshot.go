package provision

import (
	"context"
	"sync"

	groupinformers "github.com/kubernetes-csi/external-snapshotter/client/v8/informers/externalversions/volumegroupsnapshot/v1"
	snapcommon "github.com/kubernetes-csi/external-snapshotter/v8/pkg/common-controller"
	"github.com/kubernetes-csi/external-snapshotter/v8/pkg/group_snapshotter"
	snapmetrics "github.com/kubernetes-csi/external-snapshotter/v8/pkg/metrics"
	snapside "github.com/kubernetes-csi/external-snapshotter/v8/pkg/sidecar-controller"
	"github.com/kubernetes-csi/external-snapshotter/v8/pkg/snapshotter"
	"k8s.io/client-go/discovery"
)

// snapshots is the cluster-wide snapshot controller. It starts with the first driver that can make snapshots: until
// then its five watches would be memory for nothing.
type snapshots struct {
	m    *Manager
	once sync.Once
}

// available says whether the API has the snapshot kinds, and the group snapshot kinds.
func (m *Manager) snapshotKinds() (single, group bool) {
	if m.opts.Snap == nil || m.opts.SnapInformers == nil {
		return false, false
	}
	d := m.opts.Snap.Discovery()
	return hasKind(d, "snapshot.storage.k8s.io/v1", "volumesnapshotcontents"), hasKind(d, "groupsnapshot.storage.k8s.io/v1", "volumegroupsnapshotcontents")
}

func hasKind(d discovery.DiscoveryInterface, version, resource string) bool {
	list, err := d.ServerResourcesForGroupVersion(version)
	if err != nil {
		return false
	}
	for _, r := range list.APIResources {
		if r.Name == resource {
			return true
		}
	}
	return false
}

// start runs the common controller until the manager ends.
func (s *snapshots) start(group bool) {
	s.once.Do(func() {
		m := s.m
		f, k := m.opts.SnapInformers.Snapshot().V1(), m.opts.Informers.Core().V1()
		sc := newScope("")
		var gs groupinformers.VolumeGroupSnapshotInformer
		var gc groupinformers.VolumeGroupSnapshotContentInformer
		var gl groupinformers.VolumeGroupSnapshotClassInformer
		if group {
			g := m.opts.SnapInformers.Groupsnapshot().V1()
			gs, gc, gl = g.VolumeGroupSnapshots(), g.VolumeGroupSnapshotContents(), g.VolumeGroupSnapshotClasses()
		}
		c := snapcommon.NewCSISnapshotCommonController(m.opts.Snap, m.opts.Client, f.VolumeSnapshots(), f.VolumeSnapshotContents(), f.VolumeSnapshotClasses(),
			gs, gc, gl, k.PersistentVolumeClaims(), through(sc, k.PersistentVolumes(), nil), nil,
			snapmetrics.NewMetricsManager(), 0, retries(), retries(), retries(), retries(), false, true, group)
		m.opts.SnapInformers.Start(m.ctx.Done())
		m.wg.Go(func() { c.Run(min(m.opts.Workers, 4), m.ctx.Done(), &m.wg) })
	})
}

// sidecar is the snapshot side-car of one driver.
type sidecar interface {
	Run(workers int, stop <-chan struct{}, wg *sync.WaitGroup)
}

func (r *role) newSnapshotSidecar(group bool) sidecar {
	m := r.m
	f := m.opts.SnapInformers.Snapshot().V1()
	contents := through(r.scope, f.VolumeSnapshotContents(), nil)
	var groups group_snapshotter.GroupSnapshotter
	var groupContents groupinformers.VolumeGroupSnapshotContentInformer
	var groupClasses groupinformers.VolumeGroupSnapshotClassInformer
	if group {
		g := m.opts.SnapInformers.Groupsnapshot().V1()
		groups = group_snapshotter.NewGroupSnapshotter(r.conn)
		groupContents, groupClasses = through(r.scope, g.VolumeGroupSnapshotContents(), nil), g.VolumeGroupSnapshotClasses()
	}
	return snapside.NewCSISnapshotSideCarController(m.opts.Snap, m.opts.Client, r.driver.Name, contents, f.VolumeSnapshotClasses(),
		snapshotter.NewSnapshotter(r.conn), groups, m.opts.RPCTimeout, 0, "snapshot", -1, "groupsnapshot", -1, false, retries(), group, groupContents, groupClasses, retries())
}

func runSidecar(ctx context.Context, s sidecar, workers int, wg *sync.WaitGroup) {
	if s != nil {
		wg.Go(func() { s.Run(workers, ctx.Done(), wg) })
	}
}
