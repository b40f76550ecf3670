package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// attachments follows the VolumeAttachments of one attacher through one watch.
type attachments struct {
	c      *cluster
	driver string

	mu       sync.Mutex
	changed  chan struct{}
	attached map[string]time.Time // when it was seen attached
	gone     map[string]bool
	err      error
}

func (c *cluster) attachments(ctx context.Context, driver string) (*attachments, error) {
	a := &attachments{c: c, driver: driver, changed: make(chan struct{}), attached: map[string]time.Time{}, gone: map[string]bool{}}
	w, err := c.client.StorageV1().VolumeAttachments().Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	go func() {
		for e := range w.ResultChan() {
			va, ok := e.Object.(*storagev1.VolumeAttachment)
			if !ok || va.Spec.Attacher != driver {
				continue
			}
			now := time.Now()
			a.mu.Lock()
			if _, known := a.attached[va.Name]; va.Status.Attached && !known {
				a.attached[va.Name] = now
			}
			if e.Type == watch.Deleted {
				a.gone[va.Name] = true
			}
			close(a.changed)
			a.changed = make(chan struct{})
			a.mu.Unlock()
		}
		a.mu.Lock()
		a.err = fmt.Errorf("the watch of VolumeAttachments has ended: %w", context.Cause(ctx))
		close(a.changed)
		a.changed = make(chan struct{})
		a.mu.Unlock()
	}()
	return a, nil
}

// wait until ok says yes, which is asked under the lock after each event.
func (a *attachments) wait(ctx context.Context, what string, ok func() bool) error {
	for {
		a.mu.Lock()
		yes, err, changed := ok(), a.err, a.changed
		a.mu.Unlock()
		if yes {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, ctx.Err())
		}
	}
}

// create makes the attachment of a volume, as the attach/detach controller does, and returns when the API had taken it.
func (a *attachments) create(ctx context.Context, name, volume string) (time.Time, error) {
	_, err := a.c.client.StorageV1().VolumeAttachments().Create(ctx, &storagev1.VolumeAttachment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: storagev1.VolumeAttachmentSpec{
			Attacher: a.driver, NodeName: nodeName, Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &volume},
		},
	}, metav1.CreateOptions{})
	return time.Now(), err
}

// attach measures one: created → attached.
func (a *attachments) attach(ctx context.Context, name, volume string) (time.Duration, error) {
	began, err := a.create(ctx, name, volume)
	if err != nil {
		return 0, err
	}
	var at time.Time
	err = a.wait(ctx, name+" is not attached", func() bool {
		var ok bool
		at, ok = a.attached[name]
		return ok
	})
	return max(0, at.Sub(began)), err
}

// detachAll deletes attachments and returns when the API has taken all of it; the detaching itself goes on.
func (a *attachments) detachAll(ctx context.Context, names []string) error {
	return inParallel(len(names), func(i int) error {
		return a.c.client.StorageV1().VolumeAttachments().Delete(ctx, names[i], metav1.DeleteOptions{})
	})
}

// inFlight counts those of names that are not gone.
func (a *attachments) inFlight(names []string) int {
	n := 0
	for _, name := range names {
		if !a.gone[name] {
			n++
		}
	}
	return n
}

// attachFigures is what was measured of one side.
type attachFigures struct {
	idle, busy []time.Duration
	// least and most detaches that were under way when a busy attach began.
	least, most int
	// drained is how long the detaches took, from the last deletion accepted, in the median round.
	drained []time.Duration
}

// attachBehindDetach attaches volumes one after the other with nothing else to do; then, in each round, lets all be detached at once and
// attaches others one after the other while that goes on. volumes are to be attached and detached, spare are the others.
func (c *cluster) attachBehindDetach(ctx context.Context, driver, run string, volumes, spare []string, idle, rounds int) (attachFigures, error) {
	f := attachFigures{least: len(volumes)}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	a, err := c.attachments(ctx, driver)
	if err != nil {
		return f, err
	}
	var names []string
	for i := range volumes {
		names = append(names, fmt.Sprintf("%s-%d", run, i))
	}
	for round := range rounds {
		fmt.Fprintf(os.Stderr, "%s: attach, round %d of %d\n", run, round+1, rounds)
		alone := 0
		if round == 0 {
			alone = min(idle, len(volumes))
		}
		for i := range alone {
			took, err := a.attach(ctx, names[i], volumes[i])
			if err != nil {
				return f, err
			}
			f.idle = append(f.idle, took)
		}
		if err := inParallel(len(volumes)-alone, func(i int) error {
			_, err := a.create(ctx, names[alone+i], volumes[alone+i])
			return err
		}); err != nil {
			return f, err
		}
		if err := a.wait(ctx, "not all are attached", func() bool {
			for _, name := range names {
				if _, ok := a.attached[name]; !ok {
					return false
				}
			}
			return true
		}); err != nil {
			return f, err
		}
		if err := a.round(ctx, fmt.Sprintf("%s-spare-%d", run, round), names, spare, &f); err != nil {
			return f, err
		}
		a.mu.Lock()
		clear(a.attached)
		clear(a.gone)
		a.mu.Unlock()
	}
	return f, nil
}

// round detaches names, and meanwhile attaches spare ones until none of names is left; then these go, too.
func (a *attachments) round(ctx context.Context, run string, names, spare []string, f *attachFigures) error {
	if err := a.detachAll(ctx, names); err != nil {
		return err
	}
	began := time.Now()
	var extra []string
	for i, volume := range spare {
		a.mu.Lock()
		left := a.inFlight(names)
		a.mu.Unlock()
		if left == 0 {
			break
		}
		f.least, f.most = min(f.least, left), max(f.most, left)
		name := fmt.Sprintf("%s-%d", run, i)
		extra = append(extra, name)
		took, err := a.attach(ctx, name, volume)
		if err != nil {
			return err
		}
		f.busy = append(f.busy, took)
	}
	if err := a.wait(ctx, "not all are detached", func() bool { return a.inFlight(names) == 0 }); err != nil {
		return err
	}
	f.drained = append(f.drained, time.Since(began))
	if err := a.detachAll(ctx, extra); err != nil {
		return err
	}
	return a.wait(ctx, "not all are detached", func() bool { return a.inFlight(extra) == 0 })
}
