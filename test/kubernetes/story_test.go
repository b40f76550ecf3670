//go:build kubernetes

package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// story is one test in a Kubernetes namespace of its own.
type story struct {
	*testing.T
	ctx context.Context
	ns  string
	// last is what is taken away when the story's pods have gone.
	last []func() error
}

// patience is how long a story may take, or one part of it where it has parts.
const patience = 8 * time.Minute

// more gives the story its patience anew, at the beginning of each of its parts: the deadline follows the work.
func (s *story) more() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s.Cleanup(cancel)
	s.ctx = ctx
}

// part is the story in a part of the test, which fails by itself and has a deadline of its own.
func (s *story) part(t *testing.T) *story {
	part := *s
	part.T, part.last = t, nil
	part.more()
	return &part
}

// tell begins a story.
func tell(t *testing.T) *story {
	t.Helper()
	s := &story{T: t, ns: fmt.Sprintf("story-%d", time.Now().UnixNano())}
	s.more()
	s.inside("kubectl", "create", "namespace", s.ns)
	t.Cleanup(func() {
		if t.Failed() {
			s.showState()
		}
		// Waited for: a pod that lives on would hold its volumes while the next story looks at them.
		if out, err := output(shared.inside(context.Background(), "kubectl", "delete", "namespace", s.ns, "--timeout=90s")); err != nil {
			t.Errorf("delete the story's namespace: %v\n%s", err, out)
		}
		for _, away := range s.last {
			if err := away(); err != nil {
				t.Error(err)
			}
		}
	})
	// A pod is refused until its service account is there.
	s.until("the default service account", func() error {
		_, err := output(shared.inside(s.ctx, "kubectl", "-n", s.ns, "get", "serviceaccount", "default"))
		return err
	})
	return s
}

// showState prints what is known of a story that failed.
func (s *story) showState() {
	for _, args := range [][]string{{"describe", "pods"}, {"get", "events", "--sort-by=.lastTimestamp"}} {
		out, err := output(shared.inside(context.Background(), append([]string{"kubectl", "-n", s.ns}, args...)...))
		s.Logf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// inside runs a command in the cluster's namespaces and returns its standard output.
func (s *story) inside(args ...string) string {
	s.Helper()
	out, err := output(shared.inside(s.ctx, args...))
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// kubectl runs it in the story's namespace.
func (s *story) kubectl(args ...string) string {
	s.Helper()
	return s.inside(append([]string{"kubectl", "-n", s.ns}, args...)...)
}

// apply makes objects, in the story's namespace where they have one.
func (s *story) apply(yaml string) {
	s.Helper()
	cmd := shared.inside(s.ctx, "kubectl", "-n", s.ns, "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(yaml)
	if _, err := output(cmd); err != nil {
		s.Fatal(err)
	}
}

// until polls for an outcome, two minutes at most; the error says how far it got.
func (s *story) until(what string, done func() error) {
	s.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		err := done()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("waited 2 minutes for %s: %v", what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// ready waits for a pod to be Ready and returns it.
func (s *story) ready(name string) *corev1.Pod {
	s.Helper()
	return s.readyWithin(2*time.Minute, name)
}

func (s *story) readyWithin(limit time.Duration, name string) *corev1.Pod {
	s.Helper()
	s.kubectl("wait", "--for=condition=Ready", "--timeout="+limit.String(), "pod/"+name)
	pod := &corev1.Pod{}
	if err := json.Unmarshal([]byte(s.kubectl("get", "pod", name, "-o", "json")), pod); err != nil {
		s.Fatal(err)
	}
	return pod
}

// deletePod deletes a pod and waits until it is gone: the kubelet has unmounted its volumes then.
func (s *story) deletePod(name string) {
	s.Helper()
	s.kubectl("delete", "pod", name, "--timeout=120s")
}

// inPod runs a command in a pod's first container.
func (s *story) inPod(name string, command ...string) string {
	s.Helper()
	return s.kubectl(append([]string{"exec", name, "--"}, command...)...)
}

// mountInPod is the pod's view of a mount point: the fields of the last line of its mount table that names it, as in
// proc(5): device, mount point, filesystem, options.
func (s *story) mountInPod(name, path string) []string {
	s.Helper()
	var found []string
	for line := range strings.Lines(s.inPod(name, "cat", "/proc/mounts")) {
		if fields := strings.Fields(line); len(fields) >= 4 && fields[1] == path {
			found = fields
		}
	}
	if found == nil {
		s.Fatalf("pod %s has nothing mounted at %s", name, path)
	}
	return found
}

// event waits for an event on an object whose message contains text.
func (s *story) event(object, reason, text string) {
	s.Helper()
	s.until(fmt.Sprintf("event %s on %s with %q", reason, object, text), func() error {
		out, err := output(shared.inside(s.ctx, "kubectl", "-n", s.ns, "get", "events", "-o", "json",
			"--field-selector", "involvedObject.name="+object+",reason="+reason))
		if err != nil {
			return err
		}
		var events corev1.EventList
		if err := json.Unmarshal([]byte(out), &events); err != nil {
			return err
		}
		var seen []string
		for _, e := range events.Items {
			if strings.Contains(e.Message, text) {
				return nil
			}
			seen = append(seen, e.Message)
		}
		return fmt.Errorf("seen: %q", seen)
	})
}

// installDriver puts a FlexVolume driver where the kubelet and the controller manager find it, as vendor/name, until the
// story's pods have gone: they need it to unmount.
func (s *story) installDriver(vendor, name, program string) (driver string) {
	s.Helper()
	dir := filepath.Join(shared.plugins(), vendor+"~"+name)
	s.last = append(s.last, func() error { return os.RemoveAll(dir) })
	content, err := os.ReadFile(program)
	if err == nil {
		err = os.Mkdir(dir, 0o755)
	}
	// Names with a dot are not looked at: nobody starts half a program.
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "."+name), content, 0o755)
	}
	if err == nil {
		err = os.Rename(filepath.Join(dir, "."+name), filepath.Join(dir, name))
	}
	if err != nil {
		s.Fatal(err)
	}
	return vendor + "/" + name
}

// podYAML is a pod that sleeps, with one volume at /data; the volume is given as the fields beside its name.
func podYAML(name, volume string, more ...string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 5 # with 0 the API forgets a pod before the kubelet has unmounted anything
%s
  containers:
  - name: app
    image: busybox
    imagePullPolicy: Never
    command: [sh, -c, "trap exit TERM; sleep infinity & wait"]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes:
  - name: data
    %s
---`, name, strings.Join(more, "\n"), volume)
}
