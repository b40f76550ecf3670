package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/block/objects"
	"berth.io/berth/internal/boundary"
)

// statuses are those that this process wrote last: the cache is behind them for a moment.
type statuses struct {
	mu  sync.Mutex
	all map[types.UID]any
}

func (s *statuses) put(uid types.UID, status any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[types.UID]any{}
	}
	s.all[uid] = status
}

func (s *statuses) get(uid types.UID) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[uid]
}

func (s *statuses) forget(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, uid)
}

// latest is the status that an object has: the one that was written last, else that of the cache.
func latest[T any](s *statuses, uid types.UID, cached T) T {
	if w, ok := s.get(uid).(T); ok {
		return w
	}
	return cached
}

func held(o metav1.Object) bool { return slices.Contains(o.GetFinalizers(), api.FinalizerNode) }

// reportVolume writes a volume's status, unless it is written already.
func (a *Agent) reportVolume(ctx context.Context, o *api.BlockVolume, status api.BlockVolumeStatus) error {
	if same(latest(&a.written, o.UID, o.Status), status) {
		return nil
	}
	patch, err := objects.StatusPatch(o.UID, status)
	if err != nil {
		return err
	}
	err = boundary.Do("block-agent/report-volume", func() error {
		_, err := a.o.Objects.Volumes.Patch(ctx, o.Name, types.JSONPatchType, patch, metav1.PatchOptions{}, "status")
		return err
	})
	return a.reported(o.UID, status, err, "volume "+o.Name)
}

// reportSnapshot writes a snapshot's status, unless it is written already.
func (a *Agent) reportSnapshot(ctx context.Context, o *api.BlockSnapshot, status api.BlockSnapshotStatus) error {
	if same(latest(&a.written, o.UID, o.Status), status) {
		return nil
	}
	patch, err := objects.StatusPatch(o.UID, status)
	if err != nil {
		return err
	}
	err = boundary.Do("block-agent/report-snapshot", func() error {
		_, err := a.o.Objects.Snapshots.Patch(ctx, o.Name, types.JSONPatchType, patch, metav1.PatchOptions{}, "status")
		return err
	})
	return a.reported(o.UID, status, err, "snapshot "+o.Name)
}

func (a *Agent) reported(uid types.UID, status any, err error, what string) error {
	switch {
	case err == nil:
		a.written.put(uid, status)
		return nil
	case apierrors.IsNotFound(err):
		a.written.forget(uid)
		return nil
	}
	return fmt.Errorf("write the status of %s: %w", what, err)
}

// same compares statuses as the API has them: an empty list is none, and times have microseconds.
func same(x, y any) bool {
	a, errA := json.Marshal(x)
	b, errB := json.Marshal(y)
	return errA == nil && errB == nil && string(a) == string(b)
}

// failures of one round, as they go into a status.
type failures struct {
	now   []api.OperationError
	again bool
}

// note takes the error of an operation; none is taken away. It says whether there was one.
func (f *failures) note(op api.Operation, err error) bool {
	if err == nil {
		return false
	}
	e := objects.Describe(op, err, time.Now())
	f.now = append(f.now, e)
	f.again = f.again || !objects.Final(e.Kind)
	return true
}
