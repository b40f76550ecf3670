package provision

import (
	"context"
	"fmt"
	"sync"
	"time"

	groupinformers "github.com/kubernetes-csi/external-snapshotter/client/v8/informers/externalversions/volumegroupsnapshot/v1"
	snapcommon "github.com/kubernetes-csi/external-snapshotter/v8/pkg/common-controller"
	snapmetrics "github.com/kubernetes-csi/external-snapshotter/v8/pkg/metrics"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/tools/cache"
)

// snapshots is the cluster-wide half: external-snapshotter's common controller, which binds VolumeSnapshots to contents
// and group snapshots to theirs, and what wakes it (wakes.go).
type snapshots struct {
	m *Manager

	mu            sync.Mutex
	known         bool
	single, group bool

	// wake is the common controller's own handler of VolumeSnapshots, wakeGroup that of VolumeGroupSnapshots.
	wake, wakeGroup cache.ResourceEventHandler
	waits           *snapshotWaits
	sources         *snapshotSources
}

// kinds says whether the API has the snapshot kinds, and the group snapshot kinds.
func (s *snapshots) kinds() (single, group bool, err error) {
	o := s.m.opts
	if o.Snap == nil || o.SnapInformers == nil {
		return false, false, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known {
		return s.single, s.group, nil
	}
	d := o.Snap.Discovery()
	if single, err = hasKind(d, "snapshot.storage.k8s.io/v1", "volumesnapshotcontents"); err != nil {
		return false, false, err
	}
	if group, err = hasKind(d, "groupsnapshot.storage.k8s.io/v1", "volumegroupsnapshotcontents"); err != nil {
		return false, false, err
	}
	s.known, s.single, s.group = true, single, group
	return single, group, nil
}

func hasKind(d discovery.DiscoveryInterface, version, resource string) (bool, error) {
	list, err := d.ServerResourcesForGroupVersion(version)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask the API for %s: %w", version, err)
	}
	for _, r := range list.APIResources {
		if r.Name == resource {
			return true, nil
		}
	}
	return false, nil
}

// run runs the common controller until ctx ends, from the moment on at which the API has told its kinds. It does not
// wait for a driver that can make snapshots: a snapshot of a driver that cannot is told so.
func (s *snapshots) run(ctx context.Context) {
	var single, group bool
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, 30*time.Second) {
		var err error
		if single, group, err = s.kinds(); err == nil {
			break
		}
		s.m.opts.Log.Warn("cannot serve snapshots yet", "err", err, "retry", delay)
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay): // the API does not answer: only time can tell
		}
	}
	if !single {
		return
	}
	m := s.m
	f, k, everything := m.opts.SnapInformers.Snapshot().V1(), m.opts.Informers.Core().V1(), newScope("")
	var gs groupinformers.VolumeGroupSnapshotInformer
	var gc groupinformers.VolumeGroupSnapshotContentInformer
	var gl groupinformers.VolumeGroupSnapshotClassInformer
	if group {
		g := m.opts.SnapInformers.Groupsnapshot().V1()
		gs = capturing(everything, g.VolumeGroupSnapshots(), nil, func(h cache.ResourceEventHandler) { s.wakeGroup = h })
		gc, gl = g.VolumeGroupSnapshotContents(), g.VolumeGroupSnapshotClasses()
	}
	c := snapcommon.NewCSISnapshotCommonController(goneIsDeleted{m.opts.Snap}, m.opts.Client,
		capturing(everything, f.VolumeSnapshots(), nil, func(h cache.ResourceEventHandler) { s.wake = h }),
		f.VolumeSnapshotContents(), f.VolumeSnapshotClasses(), gs, gc, gl,
		k.PersistentVolumeClaims(), through(everything, k.PersistentVolumes(), nil), nil,
		snapmetrics.NewMetricsManager(), 0, retries(), retries(), retries(), retries(), false, true, group)
	if err := s.watch(ctx, group); err != nil {
		m.opts.Log.Error("snapshots are served, but not woken by events", "err", err)
	}
	m.opts.SnapInformers.Start(ctx.Done())
	m.wg.Go(func() { c.Run(min(m.opts.Workers, 4), ctx.Done(), &m.wg) })
}
