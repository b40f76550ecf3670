package main

import (
	"context"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

const (
	// patience bounds every wait for the controllers.
	patience = 10 * time.Minute
	// writers is how many requests the bench has under way at once.
	writers = 48
	// runLabel is on everything of one measurement.
	runLabel  = "bench"
	namespace = "default"
)

// inParallel runs do for 0…n-1 from several goroutines and returns the first error.
func inParallel(n int, do func(i int) error) error {
	next, failed := make(chan int), make(chan error, writers)
	for range writers {
		go func() {
			var err error
			for i := range next {
				if err == nil {
					err = do(i)
				}
			}
			failed <- err
		}()
	}
	for i := range n {
		next <- i
	}
	close(next)
	var first error
	for range writers {
		if err := <-failed; err != nil && first == nil {
			first = err
		}
	}
	return first
}

func claim(run string, i int, class, size string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", run, i), Namespace: namespace, Labels: map[string]string{runLabel: run}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class,
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
		},
	}
}

// provision creates n claims of a class as fast as the API takes them and measures until the last PersistentVolume is there. It returns
// the volumes' names.
func (c *cluster) provision(ctx context.Context, run, class, size string, n int, alive ...*process) ([]string, time.Duration, error) {
	fmt.Fprintf(os.Stderr, "%s: %d claims\n", run, n)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	type outcome struct {
		names []string
		at    time.Time
		err   error
	}
	made := make(chan outcome, 1)
	go func() {
		var o outcome
		o.names, o.at, o.err = c.volumesOf(ctx, run, n)
		made <- o
	}()
	began := time.Now()
	err := inParallel(n, func(i int) error {
		_, err := c.client.CoreV1().PersistentVolumeClaims(namespace).Create(ctx, claim(run, i, class, size), metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	watchAlive(ctx, cancel, alive)
	o := <-made
	for _, p := range alive {
		if err := p.running(); err != nil {
			return o.names, 0, err
		}
	}
	return o.names, o.at.Sub(began), o.err
}

// watchAlive ends a wait when a process of those that are waited for has ended.
func watchAlive(ctx context.Context, cancel func(), ps []*process) {
	for _, p := range ps {
		go func() {
			select {
			case <-p.ended:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
}

// volumesOf waits until n claims of a run have a PersistentVolume that names them.
func (c *cluster) volumesOf(ctx context.Context, run string, n int) (names []string, at time.Time, err error) {
	seen := map[string]bool{}
	for ctx.Err() == nil {
		w, err := c.client.CoreV1().PersistentVolumes().Watch(ctx, metav1.ListOptions{})
		if err != nil {
			return names, at, fmt.Errorf("%d of %d volumes: %w", len(seen), n, err)
		}
		for e := range w.ResultChan() { // it begins with those that are there
			pv, ok := e.Object.(*corev1.PersistentVolume)
			if !ok || e.Type == watch.Deleted || seen[pv.Name] || !claimedBy(pv, run) {
				continue
			}
			seen[pv.Name] = true
			names = append(names, pv.Name)
			if len(names) == n {
				w.Stop()
				return names, time.Now(), nil
			}
		}
		w.Stop()
	}
	return names, at, fmt.Errorf("%d of %d volumes: %w", len(seen), n, ctx.Err())
}

func claimedBy(pv *corev1.PersistentVolume, run string) bool {
	ref := pv.Spec.ClaimRef
	return ref != nil && len(ref.Name) > len(run) && ref.Name[:len(run)+1] == run+"-"
}

// discard deletes a run's claims and returns when their volumes are gone.
func (c *cluster) discard(ctx context.Context, run string) error {
	fmt.Fprintf(os.Stderr, "%s: deleting\n", run)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := c.client.CoreV1().PersistentVolumeClaims(namespace).DeleteCollection(ctx, metav1.DeleteOptions{},
		metav1.ListOptions{LabelSelector: runLabel + "=" + run}); err != nil {
		return err
	}
	for {
		l, err := c.client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return err
		}
		left := 0
		for i := range l.Items {
			if claimedBy(&l.Items[i], run) {
				left++
			}
		}
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %d volumes are not gone: %w", run, left, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}
