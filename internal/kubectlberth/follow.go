package kubectlberth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"

	"berth.io/berth/internal/why"
)

// calm is how long changes are gathered before the question is asked anew: one step writes several objects.
const calm = 300 * time.Millisecond

// lister is a kind that can be listed and watched.
type lister struct {
	list  func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
}

func listerOf[L runtime.Object](list func(context.Context, metav1.ListOptions) (L, error), watch func(context.Context, metav1.ListOptions) (watch.Interface, error)) lister {
	return lister{func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return list(ctx, o) }, watch}
}

// follow tells the journey again whenever it changes, until nothing is waited for and nothing is wrong. It watches what the answer is
// made of; a kind that may not be watched does not wake it.
func follow(ctx context.Context, s why.Sources, t why.Target, tell func(*why.Journey) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed := make(chan struct{}, 1)
	failed := make(chan error, 16)
	kinds := watched(s, t)
	refused := 0
	for _, k := range kinds {
		go func() { failed <- k.wake(ctx, changed) }()
	}
	var told []byte
	for {
		j, err := why.Explain(ctx, s, t)
		if err != nil {
			return err
		}
		now, err := json.Marshal(j)
		if err != nil {
			return err
		}
		if at, _ := json.Marshal(j.Asked); !bytes.Equal(bytes.Replace(now, at, nil, 1), told) {
			told = bytes.Replace(now, at, nil, 1)
			if err := tell(j); err != nil {
				return err
			}
		}
		if arrived(j) {
			return nil
		}
		select {
		case <-changed:
		case err := <-failed:
			if refused++; refused == len(kinds) {
				return errors.Join(errors.New("nothing of it may be watched"), err)
			}
			continue
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-time.After(calm):
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-changed: // told with the next answer
		default:
		}
	}
}

// watched are the kinds that a journey is made of.
func watched(s why.Sources, t why.Target) []lister {
	core := s.Client.CoreV1()
	attachments := s.Client.StorageV1().VolumeAttachments()
	kinds := []lister{listerOf(attachments.List, attachments.Watch), listerOf(core.Events(t.Namespace).List, core.Events(t.Namespace).Watch)}
	if t.Kind == why.PV {
		return append(kinds, listerOf(core.PersistentVolumes().List, core.PersistentVolumes().Watch).named(t.Name))
	}
	snapshots, groups := s.Snapshots.SnapshotV1().VolumeSnapshots(t.Namespace), s.Snapshots.GroupsnapshotV1().VolumeGroupSnapshots(t.Namespace)
	switch t.Kind {
	case why.Snapshot:
		kinds = append(kinds, listerOf(snapshots.List, snapshots.Watch).named(t.Name))
	case why.Group:
		kinds = append(kinds, listerOf(groups.List, groups.Watch).named(t.Name), listerOf(snapshots.List, snapshots.Watch))
	case why.Schedule:
		schedules := s.Schedules(t.Namespace)
		kinds = append(kinds, listerOf(schedules.List, schedules.Watch).named(t.Name), listerOf(snapshots.List, snapshots.Watch))
	}
	pods, claims := core.Pods(t.Namespace), core.PersistentVolumeClaims(t.Namespace)
	return append(kinds, listerOf(pods.List, pods.Watch), listerOf(claims.List, claims.Watch))
}

// named narrows it to one object.
func (k lister) named(name string) lister {
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	return lister{
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			return k.list(ctx, o)
		},
		watch: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector
			return k.watch(ctx, o)
		},
	}
}

// wake sends to changed whenever an object of the kind changes. It returns when that is not allowed; else it goes on until ctx ends.
func (k lister) wake(ctx context.Context, changed chan<- struct{}) error {
	pause := wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.1, Steps: 6, Cap: 10 * time.Second}
	for ctx.Err() == nil {
		err := k.wakeOnce(ctx, changed)
		switch {
		case apierrors.IsForbidden(err) || apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err):
			return err
		case err == nil:
			continue // the server ends every watch after some minutes
		}
		select {
		case <-time.After(pause.Step()):
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

func (k lister) wakeOnce(ctx context.Context, changed chan<- struct{}) error {
	list, err := k.list(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	w, err := k.watch(ctx, metav1.ListOptions{ResourceVersion: list.(metav1.ListInterface).GetResourceVersion(), AllowWatchBookmarks: true})
	if err != nil {
		return err
	}
	defer w.Stop()
	nudge := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	nudge() // what changed before the watch began
	for e := range w.ResultChan() {
		switch e.Type {
		case watch.Bookmark:
		case watch.Error:
			return apierrors.FromObject(e.Object)
		default:
			nudge()
		}
	}
	return nil
}

// arrived: nothing is waited for, and nothing is wrong.
func arrived(j *why.Journey) bool {
	if j.Waiting != nil || j.Problem != nil {
		return false
	}
	for i := range j.Volumes {
		if j.Volumes[i].Waiting != nil || j.Volumes[i].Problem != nil {
			return false
		}
	}
	switch {
	case j.Snapshot != nil:
		return j.Snapshot.State == "ready"
	case j.Group != nil:
		return j.Group.State == "ready"
	}
	return j.Pod == nil || j.Pod.Ready || j.Pod.Phase == "Succeeded" || j.Pod.Phase == "Failed"
}
