// Package e2e has one test per user story: the real `berth up`, started as a user starts it, driven by kubectl, and
// looked at from outside (the kernel's mount table, the loop devices, the files) without Berth's own code.
//
// Most stories share one instance, each in a namespace of its own; those that stop, kill or break an instance have
// their own. The tests need root: `make e2e`.
package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"berth.io/berth/test/instance"
)

// shared is the instance of the stories that break nothing.
var shared *instance.Instance

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the e2e tests need root: run `make e2e`")
		return 1
	}
	dir, err := os.MkdirTemp("", "berth-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if shared, err = instance.New(dir, "--pool-size", "6Gi", "--volume-plugin-dir", flexVolumeDir(dir)); err == nil {
		err = shared.Start(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := shared.Down(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "berth down:", err)
		code = 1
	}
	left := emptied(shared)
	if left != nil {
		fmt.Fprintln(os.Stderr, "after berth down:", left)
		code = 1
	}
	if code != 0 {
		tail(filepath.Join(dir, "log", "berth.log"))
	}
	if left == nil { // never remove a directory with something mounted in it
		os.RemoveAll(dir)
	}
	return code
}

// tail shows the end of a log, for a failure on a machine that nobody can look at.
func tail(path string) {
	b, err := os.ReadFile(path)
	if err != nil {
		return
	}
	lines := strings.Split(string(b), "\n")
	if len(lines) > 60 {
		lines = lines[len(lines)-60:]
	}
	fmt.Fprintf(os.Stderr, "--- end of %s\n%s\n", path, strings.Join(lines, "\n"))
}

// story is one test on one instance, in a namespace of its own.
type story struct {
	*testing.T
	in     *instance.Instance
	client kubernetes.Interface
	ns     string
	ctx    context.Context
}

// tell begins a story on the shared instance.
func tell(t *testing.T) *story {
	t.Helper()
	return tellOn(t, shared)
}

// tellOn begins a story on a running instance.
func tellOn(t *testing.T, in *instance.Instance) *story {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	client, err := in.Client()
	if err != nil {
		t.Fatal(err)
	}
	s := &story{T: t, in: in, client: client, ctx: ctx}
	made, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "story-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.ns = made.Name
	t.Cleanup(func() {
		if !in.Running() {
			return
		}
		// Not waited for: the namespace controller takes its 5 s, and a story of its own tells of it.
		err := client.CoreV1().Namespaces().Delete(context.Background(), s.ns, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
	// A pod is refused until its service account is there.
	s.until("the default service account", func() (bool, string) {
		_, err := client.CoreV1().ServiceAccounts(s.ns).Get(ctx, "default", metav1.GetOptions{})
		return err == nil, fmt.Sprint(err)
	})
	return s
}

// own starts an instance for this test alone and takes it down at its end.
func own(t *testing.T, args ...string) *instance.Instance {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-own-")
	if err != nil {
		t.Fatal(err)
	}
	in, err := instance.New(dir, append([]string{"--pool-size", "2Gi", "--volume-plugin-dir", flexVolumeDir(dir)}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			tail(filepath.Join(dir, "log", "berth.log"))
		}
		if err := in.Down(context.Background()); err != nil {
			t.Errorf("berth down: %v", err)
		}
		if err := emptied(in); err != nil {
			t.Errorf("after berth down: %v", err)
			return // never remove a directory with something mounted in it
		}
		os.RemoveAll(dir)
	})
	if err := in.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	return in
}

// emptied says what is left of an instance in the kernel.
func emptied(in *instance.Instance) error { return in.Settled(instance.World.Empty) }

// until polls for an outcome; the text says how far it got.
func (s *story) until(what string, done func() (bool, string)) {
	s.Helper()
	s.within(60*time.Second, what, done)
}

func (s *story) within(d time.Duration, what string, done func() (bool, string)) {
	s.Helper()
	deadline := time.Now().Add(d)
	for {
		ok, state := done()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			events, _ := s.in.Kubectl(s.ctx, "get", "events", "-n", s.ns, "--sort-by=.lastTimestamp")
			s.Fatalf("waited %s for %s: %s\n%s", d, what, state, events)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *story) apply(yaml string) {
	s.Helper()
	if _, err := s.in.BerthInput(s.ctx, yaml, "kubectl", "apply", "-n", s.ns, "-f", "-"); err != nil {
		s.Fatal(err)
	}
}

func (s *story) kubectl(args ...string) string {
	s.Helper()
	out, err := s.in.Kubectl(s.ctx, append([]string{"-n", s.ns}, args...)...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

func (s *story) berth(args ...string) string {
	s.Helper()
	out, err := s.in.Berth(s.ctx, args...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

func (s *story) pod(name string) *corev1.Pod {
	s.Helper()
	p, err := s.client.CoreV1().Pods(s.ns).Get(s.ctx, name, metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	return p
}

// ready waits for a pod to be Ready and returns it.
func (s *story) ready(name string) *corev1.Pod {
	s.Helper()
	var pod *corev1.Pod
	s.until("pod "+name+" Ready", func() (bool, string) {
		p, err := s.client.CoreV1().Pods(s.ns).Get(s.ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		pod = p
		return isReady(p), fmt.Sprintf("%s %+v", p.Status.Phase, p.Status.Conditions)
	})
	return pod
}

func isReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// gone waits until an object is not found.
func (s *story) gone(what string, get func() error) {
	s.Helper()
	s.until(what+" gone", func() (bool, string) {
		err := get()
		return apierrors.IsNotFound(err), fmt.Sprint(err)
	})
}

func (s *story) podGone(name string) {
	s.Helper()
	s.gone("pod "+name, func() error {
		_, err := s.client.CoreV1().Pods(s.ns).Get(s.ctx, name, metav1.GetOptions{})
		return err
	})
}

func (s *story) claimGone(name string) {
	s.Helper()
	s.gone("claim "+name, func() error {
		_, err := s.client.CoreV1().PersistentVolumeClaims(s.ns).Get(s.ctx, name, metav1.GetOptions{})
		return err
	})
}

func (s *story) volumeGone(name string) {
	s.Helper()
	s.gone("volume "+name, func() error {
		_, err := s.client.CoreV1().PersistentVolumes().Get(s.ctx, name, metav1.GetOptions{})
		return err
	})
}

// claim returns a claim.
func (s *story) claim(name string) *corev1.PersistentVolumeClaim {
	s.Helper()
	c, err := s.client.CoreV1().PersistentVolumeClaims(s.ns).Get(s.ctx, name, metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	return c
}

// event waits for an event on an object whose message contains text.
func (s *story) event(object, reason, text string) {
	s.Helper()
	s.until(fmt.Sprintf("event %s on %s with %q", reason, object, text), func() (bool, string) {
		list, err := s.client.CoreV1().Events(s.ns).List(s.ctx, metav1.ListOptions{})
		if err != nil {
			return false, err.Error()
		}
		var seen []string
		for _, e := range list.Items {
			if e.InvolvedObject.Name == object {
				if e.Reason == reason && strings.Contains(e.Message, text) {
					return true, ""
				}
				seen = append(seen, e.Reason+": "+e.Message)
			}
		}
		return false, strings.Join(seen, "; ")
	})
}

func (s *story) deleteNamespace() {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	if err := s.client.CoreV1().Namespaces().Delete(ctx, s.ns, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		s.Error(err)
		return
	}
	for {
		_, err := s.client.CoreV1().Namespaces().Get(ctx, s.ns, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return
		}
		if ctx.Err() != nil {
			s.Errorf("namespace %s was not gone after 90 s: %v", s.ns, err)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// claimYAML is a claim of the default class unless class is given.
func claimYAML(name, size string, more ...string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: %s}}
%s
---`, name, size, indent(more, "  "))
}

// podYAML is a pod with the claim mounted at /data.
func podYAML(name, claim string, more ...string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: app, image: busybox, volumeMounts: [{name: data, mountPath: /data}]}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: %s}}
%s
---`, name, claim, indent(more, "  "))
}

func indent(lines []string, by string) string {
	if len(lines) == 0 {
		return ""
	}
	return by + strings.Join(lines, "\n"+by)
}
