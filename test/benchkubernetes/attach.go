package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// attachments follows the VolumeAttachments of one attacher.
type attachments struct {
	c      *cluster
	driver string

	mu       sync.Mutex
	changed  chan struct{}
	attached map[string]time.Time // when it was seen attached
	gone     map[string]bool
}

// attachments watches until ctx ends; an informer goes on where the API server ends a watch.
func (c *cluster) attachments(ctx context.Context, driver string) (*attachments, error) {
	a := &attachments{c: c, driver: driver, changed: make(chan struct{}), attached: map[string]time.Time{}, gone: map[string]bool{}}
	f := informers.NewSharedInformerFactory(c.client, 0)
	seen, err := f.Storage().V1().VolumeAttachments().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    a.seen,
		UpdateFunc: func(_, o any) { a.seen(o) },
		DeleteFunc: a.left,
	})
	if err != nil {
		return nil, err
	}
	f.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), seen.HasSynced) {
		return nil, fmt.Errorf("VolumeAttachments: %w", ctx.Err())
	}
	return a, nil
}

func (a *attachments) seen(o any) {
	va, ok := o.(*storagev1.VolumeAttachment)
	if !ok || va.Spec.Attacher != a.driver || !va.Status.Attached {
		return
	}
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.attached[va.Name]; !known {
		a.attached[va.Name] = now
		a.wake()
	}
}

func (a *attachments) left(o any) {
	key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(o) // an attachment's name: it has no namespace
	if err != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gone[key] = true
	a.wake()
}

// wake those that wait; called with mu held.
func (a *attachments) wake() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// wait until ok says yes, which is asked under the lock after each event.
func (a *attachments) wait(ctx context.Context, what string, ok func() bool) error {
	for {
		a.mu.Lock()
		yes, changed := ok(), a.changed
		a.mu.Unlock()
		if yes {
			return nil
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
