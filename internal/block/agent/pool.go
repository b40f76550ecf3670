package agent

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/objects"
	"berth.io/berth/internal/boundary"
)

// The BlockPool is written at most so often.
const poolEvery = time.Second

// mostOrphanNames in a status.
const mostOrphanNames = 32

func (a *Agent) kickPool() {
	select {
	case a.poolChanged <- struct{}{}:
	default:
	}
}

// keepPool keeps the node's BlockPool true until ctx ends, and looks after the volumes' health.
func (a *Agent) keepPool(ctx context.Context) {
	look := time.NewTicker(a.o.LookEvery)
	defer look.Stop()
	retry := time.NewTimer(0) // the first time at once
	defer retry.Stop()
	var next time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			a.look(ctx)
		case <-a.poolChanged:
		case <-retry.C:
		}
		if wait := time.Until(next); wait > 0 { // what changes meanwhile goes into the same write
			retry.Reset(wait)
			continue
		}
		next = time.Now().Add(poolEvery)
		if err := a.writePool(ctx); err != nil && ctx.Err() == nil {
			a.o.Log.Warn("the BlockPool could not be written; it is tried again", slog.Any("error", err))
			retry.Reset(poolEvery)
		}
	}
}

// look works the volumes anew of which the backend tells something else than their status.
func (a *Agent) look(ctx context.Context) {
	volumes, err := a.o.Backend.List(ctx)
	if err != nil {
		return // the pool's status tells
	}
	problems := map[string]string{}
	for _, v := range volumes {
		problems[v.ID] = objects.Clip(v.Problem)
	}
	for _, o := range objects.Of[api.BlockVolume](a.volumes, "", "") {
		status := latest(&a.written, o.UID, o.Status)
		problem, there := problems[o.Name]
		goes := goes(o, status)
		problem = keptVolume(o, goes, problem)
		if status.Phase == api.PhaseReady && !goes && (problem != status.Problem || !there && status.Problem == "") {
			a.queue.Add(volumeKey + o.Name)
		}
	}
}

// writePool makes the node's BlockPool, and writes its status where it has changed.
func (a *Agent) writePool(ctx context.Context) error {
	o := objects.Get[api.BlockPool](a.pools, a.o.Node)
	if o == nil {
		o = &api.BlockPool{
			ObjectMeta: metav1.ObjectMeta{Name: a.o.Node, Labels: map[string]string{api.LabelNode: api.NodeLabel(a.o.Node)}},
			Spec:       api.BlockPoolSpec{Node: a.o.Node},
		}
		if a.o.Owner != nil {
			o.OwnerReferences = []metav1.OwnerReference{*a.o.Owner}
		}
		var made *api.BlockPool
		err := boundary.Do("block-agent/create-pool", func() (err error) {
			made, err = a.o.Objects.Pools.Create(ctx, o, metav1.CreateOptions{})
			return err
		})
		switch {
		case apierrors.IsAlreadyExists(err): // the cache will know it in a moment
			return err
		case err != nil:
			return fmt.Errorf("make BlockPool %s: %w", a.o.Node, err)
		}
		o = made
	}
	was := latest(&a.written, o.UID, o.Status)
	status := a.poolStatus(ctx, was)
	if same(was, status) {
		a.announced.Store(true)
		return nil
	}
	now := metav1.NewMicroTime(time.Now())
	status.LastHeartbeat = &now
	patch, err := objects.StatusPatch(o.UID, status)
	if err != nil {
		return err
	}
	err = boundary.Do("block-agent/report-pool", func() error {
		_, err := a.o.Objects.Pools.Patch(ctx, o.Name, types.JSONPatchType, patch, metav1.PatchOptions{}, "status")
		return err
	})
	if err != nil {
		return fmt.Errorf("write the status of BlockPool %s: %w", o.Name, err)
	}
	a.written.put(o.UID, status)
	a.announced.Store(true)
	return nil
}

// poolStatus is what there is to say of the pool now. What does not change is left as it was.
func (a *Agent) poolStatus(ctx context.Context, was api.BlockPoolStatus) api.BlockPoolStatus {
	s := was
	s.Conditions = slices.Clone(was.Conditions)
	problem := ""
	if c, err := a.o.Backend.Capacity(ctx); err != nil {
		problem = err.Error()
	} else {
		s.CapacityBytes, s.AvailableBytes, s.MaximumVolumeBytes, s.MinimumVolumeBytes = c.Total, c.Available, c.MaximumVolume, c.MinimumVolume
	}
	if h, ok := a.o.Backend.(backend.StorageHealth); ok {
		if p := h.StorageProblem(ctx); p != "" {
			problem = p
		}
	}
	volumes, snapshots, orphans, err := a.census(ctx)
	if err != nil {
		problem = err.Error()
	} else {
		s.Volumes, s.Snapshots, s.Orphans = int32(volumes), int32(snapshots), int32(len(orphans))
		a.metrics.orphans.Set(float64(len(orphans)))
		if len(orphans) != int(was.Orphans) && len(orphans) > 0 {
			a.o.Log.Warn("the pool holds what no object names; it is left alone", slog.Any("orphans", orphans))
		}
		s.OrphanNames = orphans[:min(len(orphans), mostOrphanNames)]
	}
	s.Ready = problem == ""
	ready := metav1.Condition{Type: api.ConditionReady, Status: metav1.ConditionTrue, Reason: api.ReasonServing}
	if problem != "" {
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, api.ReasonUnusable, objects.Clip(problem)
	}
	meta.SetStatusCondition(&s.Conditions, ready)
	orphaned := metav1.Condition{Type: api.ConditionOrphaned, Status: metav1.ConditionFalse, Reason: api.ReasonNoOrphans}
	if s.Orphans > 0 {
		orphaned.Status, orphaned.Reason = metav1.ConditionTrue, api.ReasonWithoutName
		orphaned.Message = fmt.Sprintf("%d in the pool without an object, left alone: %s", s.Orphans, strings.Join(s.OrphanNames, ", "))
	}
	meta.SetStatusCondition(&s.Conditions, orphaned)
	return s
}

// census counts what is in the pool, and names what no object names.
func (a *Agent) census(ctx context.Context) (volumes, snapshots int, orphans []string, err error) {
	all, err := a.o.Backend.List(ctx)
	if err != nil {
		return 0, 0, nil, fmt.Errorf("list the volumes of the pool: %w", err)
	}
	for _, v := range all {
		volumes++
		if objects.Get[api.BlockVolume](a.volumes, v.ID) == nil && !a.o.Foreign(v) {
			orphans = append(orphans, volumeKey+v.ID)
		}
	}
	if a.snapshots == nil {
		return volumes, 0, orphans, nil
	}
	taken, err := a.snapshots.Snapshots(ctx)
	if err != nil {
		return 0, 0, nil, fmt.Errorf("list the snapshots of the pool: %w", err)
	}
	for _, s := range taken {
		snapshots++
		if objects.Get[api.BlockSnapshot](a.snaps, s.ID) == nil {
			orphans = append(orphans, snapshotKey+s.ID)
		}
	}
	return volumes, snapshots, orphans, nil
}
