package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"berth.io/berth/test/instance"
)

// patience bounds every single wait.
const patience = 5 * time.Minute

// slow is the journey that bench explains on standard error.
var slow = 150 * time.Millisecond

// subject is an instance under measurement.
type subject struct {
	name   string
	in     *instance.Instance
	client kubernetes.Interface
}

func newSubject(name string, args ...string) (*subject, error) {
	dir, err := os.MkdirTemp("", "berth-bench-")
	if err != nil {
		return nil, err
	}
	in, err := instance.New(dir, args...)
	return &subject{name: name, in: in}, err
}

func (s *subject) start(ctx context.Context) error {
	fmt.Fprintf(os.Stderr, "%s: starting\n", s.name)
	if err := s.in.Start(ctx); err != nil {
		return err
	}
	var err error
	if s.client, err = s.in.Client(); err != nil {
		return err
	}
	for { // a pod is refused until its service account is there
		_, err := s.client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		if err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *subject) down(ctx context.Context) error {
	err := s.in.Down(ctx)
	return errors.Join(err, s.in.Settled(instance.World.Empty))
}

func (s *subject) remove() {
	if w, err := s.in.World(); s.in.Running() || err != nil || w.Empty() != nil {
		if s.in.Down(context.Background()) != nil {
			return
		}
	}
	os.RemoveAll(s.in.Dir)
}

func claim(name, size string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
		},
	}
}

func pod(name string) *corev1.Pod {
	var grace int64
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{Name: "app", Image: "busybox",
				VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}},
		},
	}
}

// make creates a claim and its pod and returns when the API has accepted both.
func (s *subject) make(ctx context.Context, name, size string) error {
	if _, err := s.client.CoreV1().PersistentVolumeClaims("default").Create(ctx, claim(name, size), metav1.CreateOptions{}); err != nil {
		return err
	}
	_, err := s.client.CoreV1().Pods("default").Create(ctx, pod(name), metav1.CreateOptions{})
	return err
}

// journeys measures claim and pod accepted → pod Ready (all volumes mounted), and pod and claim deleted → volume gone,
// one at a time.
func (s *subject) journeys(ctx context.Context, runs int, size string, t *table) error {
	if runs == 0 {
		return nil
	}
	var up, down []time.Duration
	for i := range runs {
		if i%50 == 0 {
			fmt.Fprintf(os.Stderr, "%s: journey %d of %d\n", s.name, i, runs)
		}
		name := fmt.Sprintf("run-%d", i)
		u, d, err := s.journey(ctx, name, size)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		up, down = append(up, u), append(down, d)
	}
	t.durations(s.name, fmt.Sprintf("claim + pod accepted → mounted (%s ext4), %d runs", size, runs), up)
	t.durations(s.name, "delete pod + claim → volume gone", down)
	return nil
}

// watchPod watches a pod that is not there yet, from what the API server's cache has: to begin at the newest state has the cache ask etcd how
// new it is, which it does every 100 ms at most, and a list of pods that the journey itself needs would wait for the next time.
func (s *subject) watchPod(ctx context.Context, name string) (watch.Interface, error) {
	return s.client.CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name, ResourceVersion: "0"})
}

func (s *subject) journey(ctx context.Context, name, size string) (up, down time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	pods, err := s.watchPod(ctx, name)
	if err != nil {
		return 0, 0, err
	}
	defer pods.Stop()
	if err := s.make(ctx, name, size); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if err := waitPod(ctx, pods, isReady); err != nil {
		return 0, 0, err
	}
	up = time.Since(began)
	if up > slow {
		s.explain(ctx, name, up)
	}

	c, err := s.client.CoreV1().PersistentVolumeClaims("default").Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return 0, 0, err
	}
	volumes, err := s.client.CoreV1().PersistentVolumes().Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + c.Spec.VolumeName})
	if err != nil {
		return 0, 0, err
	}
	defer volumes.Stop()
	began = time.Now()
	if err := s.client.CoreV1().Pods("default").Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return 0, 0, err
	}
	if err := s.client.CoreV1().PersistentVolumeClaims("default").Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return 0, 0, err
	}
	for e := range volumes.ResultChan() {
		if e.Type == watch.Deleted {
			return up, time.Since(began), nil
		}
	}
	return 0, 0, fmt.Errorf("volume %s is not gone: %w", c.Spec.VolumeName, ctx.Err())
}

// explain prints where a slow journey's time went.
func (s *subject) explain(ctx context.Context, name string, took time.Duration) {
	out, err := s.in.Berth(ctx, "why", "pod/"+name)
	fmt.Fprintf(os.Stderr, "%s: slow: %s after %d ms\n%s\n", s.name, name, took.Milliseconds(), out)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func isReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// waitPod reads a watch until done says yes.
func waitPod(ctx context.Context, w watch.Interface, done func(*corev1.Pod) bool) error {
	for e := range w.ResultChan() {
		if p, ok := e.Object.(*corev1.Pod); ok && done(p) {
			return nil
		}
	}
	return fmt.Errorf("the watch ended: %w", ctx.Err())
}

// waitReady returns when n pods are Ready. A watch that ends is followed by another, which begins with what is there.
func (s *subject) waitReady(ctx context.Context, n int) error {
	ready := map[string]bool{}
	for {
		pods, err := s.client.CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("%d of %d Ready: %w", len(ready), n, err)
		}
		_ = waitPod(ctx, pods, func(p *corev1.Pod) bool {
			if isReady(p) {
				ready[p.Name] = true
			}
			return len(ready) == n
		})
		pods.Stop()
		if len(ready) == n {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%d of %d Ready: %w", len(ready), n, ctx.Err())
		}
	}
}

// atOnce creates n claims and pods as fast as the API takes them and measures until the last pod is Ready.
func (s *subject) atOnce(ctx context.Context, n int, size string, t *table) error {
	if n == 0 {
		return nil
	}
	fmt.Fprintf(os.Stderr, "%s: %d at once\n", s.name, n)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// Read from the start: the API server ends the watch of one who does not keep up.
	mounted := make(chan error, 1)
	go func() { mounted <- s.waitReady(ctx, n) }()
	began := time.Now()
	failed := make(chan error, n)
	for i := range n {
		go func() { failed <- s.make(ctx, fmt.Sprintf("burst-%d", i), size) }()
	}
	for range n {
		if err := <-failed; err != nil {
			return err
		}
	}
	if err := <-mounted; err != nil {
		return err
	}
	took := time.Since(began)
	t.row(s.name, fmt.Sprintf("%d claims + pods (%s) at once → all mounted", n, size), fmt.Sprintf("%.1f s, %.1f per second", took.Seconds(), float64(n)/took.Seconds()))

	began = time.Now()
	var zero int64
	if err := s.client.CoreV1().Pods("default").DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &zero}, metav1.ListOptions{}); err != nil {
		return err
	}
	if err := s.client.CoreV1().PersistentVolumeClaims("default").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		return err
	}
	for {
		l, err := s.client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{Limit: 1})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		if len(l.Items) == 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.row(s.name, fmt.Sprintf("the same %d deleted → all volumes gone", n), fmt.Sprintf("%.1f s", time.Since(began).Seconds()))
	return nil
}

// secondStart stops and starts the instance and measures from exec to ready.
func (s *subject) secondStart(ctx context.Context, n int, t *table) error {
	if n == 0 {
		return nil
	}
	var took []time.Duration
	for range n {
		if err := s.in.Stop(); err != nil {
			return err
		}
		began := time.Now()
		if err := s.in.Start(ctx); err != nil {
			return err
		}
		took = append(took, time.Since(began))
	}
	t.durations(s.name, "second start of berth up → ready", took)
	return nil
}
