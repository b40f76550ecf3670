//go:build kubernetes

package kubernetes

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// writer is a pod that writes to its volume and checks what it wrote, at all times (testdata/writer).
type writer struct {
	s     *story
	claim string
	was   *corev1.Pod
	// mounts of the volume on the node, as lines of its mount table without those of containers.
	mounts []string
	handle string
}

// writes starts a writer on a volume of its own.
func (s *story) writes(fsType string) *writer {
	s.Helper()
	dir := s.nodeDirectory("writer")
	build := exec.Command("go", "build", "-o", shared.run(dir, "writer"), "./testdata/writer")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if _, err := output(build); err != nil {
		s.Fatal(err)
	}
	w := &writer{s: s, claim: "written"}
	s.apply(fmt.Sprintf(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %[1]s}
provisioner: %[2]s
allowVolumeExpansion: true
parameters: {csi.storage.k8s.io/fstype: %[3]s}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: written}
spec: {accessModes: [ReadWriteOnce], storageClassName: %[1]s, resources: {requests: {storage: 320Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: writer}
spec:
  restartPolicy: Never # what goes wrong stays to be seen
  terminationGracePeriodSeconds: 5
  containers:
  - name: app
    image: busybox:1.37
    command: [/program/writer, /data/file]
    volumeMounts: [{name: data, mountPath: /data}, {name: program, mountPath: /program}]
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: written}}
  - {name: program, hostPath: {path: %[4]s}}
`, s.ns, driverName, fsType, dir))
	s.last = append(s.last, func() error {
		_, err := output(shared.inside(context.Background(), "kubectl", "delete", "storageclass", s.ns))
		return err
	})
	w.was = s.ready("writer")
	var claim corev1.PersistentVolumeClaim
	s.get(&claim, "persistentvolumeclaim", "written")
	w.handle = claim.Spec.VolumeName
	w.mounts = w.mounted()
	if len(w.mounts) == 0 {
		s.Fatalf("nothing of %s is mounted on the node", w.handle)
	}
	w.blocks()
	return w
}

// mounted are the lines of the node's mount table that the volume's mounts have: with their ids, so that a mount that was made anew is another.
func (w *writer) mounted() []string {
	w.s.Helper()
	var found []string
	for line := range strings.Lines(w.s.inside("cat", "/proc/self/mountinfo")) {
		if strings.Contains(line, "/volumes/kubernetes.io~csi/"+w.handle+"/mount ") {
			found = append(found, line)
		}
	}
	return found
}

// blocks waits for the writer's next word, and fails where it has ended or had to start again.
func (w *writer) blocks() {
	w.s.Helper()
	said := w.s.kubectl("logs", "writer", "--tail=1")
	w.s.until("the writer to go on", func() error {
		var pod corev1.Pod
		if err := w.s.read(&pod, "pod", "writer"); err != nil {
			return err
		}
		if pod.Status.Phase != corev1.PodRunning || pod.UID != w.was.UID || pod.Status.ContainerStatuses[0].RestartCount > 0 {
			w.s.Fatalf("the writer is %s: %s", pod.Status.Phase, w.s.kubectl("logs", "writer", "--tail=5"))
		}
		now, err := output(shared.inside(w.s.ctx, "kubectl", "-n", w.s.ns, "logs", "writer", "--tail=1"))
		if err != nil {
			return err
		}
		if now == said {
			return fmt.Errorf("it says %q still", now)
		}
		return nil
	})
}

// unharmed fails where the writer met an error, or its volume was mounted anew.
func (w *writer) unharmed() {
	w.s.Helper()
	w.blocks()
	if now := w.mounted(); !slices.Equal(now, w.mounts) {
		w.s.Errorf("the node had mounted:\n%sand has:\n%s", strings.Join(w.mounts, ""), strings.Join(now, ""))
	}
	w.s.Logf("the writer: %s", strings.TrimSpace(w.s.kubectl("logs", "writer", "--tail=1")))
}

// journey is a claim and a pod with a file in it, made and deleted again: what works as long as everything does.
func (s *story) journey(name string) {
	s.Helper()
	s.journeyWithin(2*time.Minute, name)
}

func (s *story) journeyWithin(limit time.Duration, name string) {
	s.Helper()
	s.apply(fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
---`, name) + podYAML(name, fmt.Sprintf("persistentVolumeClaim: {claimName: %s}", name)))
	began := time.Now()
	s.readyWithin(limit, name)
	s.Logf("%s: claim and pod to Ready in %s", name, time.Since(began).Round(10*time.Millisecond))
	s.inPod(name, "sh", "-c", "echo kept >/data/file; sync")
	s.deletePod(name)
	s.kubectl("delete", "persistentvolumeclaim", name, "--timeout=120s")
}

// rolledOut waits until a workload's pods are those of its present template.
func (s *story) rolledOut(workload string) {
	s.Helper()
	s.inside("kubectl", "-n", system, "rollout", "status", "--timeout=120s", workload)
}

// noMountTwice: what an agent mounts within a directory that it shares with the host stays there, and its successors would mount it again.
func (s *story) noMountTwice() {
	s.Helper()
	if twice := s.inside("sh", "-c", `awk '$5 ~ "^/var/lib/(kubelet|berth)" {print $5}' /proc/self/mountinfo | sort | uniq -cd`); twice != "" {
		s.Errorf("mounted more than once on the node:\n%s", twice)
	}
}

// The agent and the controller are replaced while a pod writes: it meets no error, its volume stays mounted, and volumes are made, mounted
// and taken away afterwards.
func TestInstalledRollingUpdate(t *testing.T) {
	s := tell(t)
	in := s.installed()
	w := s.writes("xfs")
	before := s.podsOf(agents)
	s.inside("kubectl", "-n", system, "rollout", "restart", agents, controller)
	s.rolledOut(agents)
	s.rolledOut(controller)
	if after := s.podsOf(agents); len(after) != 1 || after[0].UID == before[0].UID {
		t.Errorf("the agent's pod is still %s", before[0].Name)
	}
	if err := in.ready(s.ctx); err != nil {
		t.Fatal(err)
	}
	w.unharmed()
	s.noMountTwice()
	s.journey("after")
	s.kubectl("delete", "pod", "writer", "--timeout=120s")
	s.empty()
}

// A gray update: with the strategy OnDelete a new template waits until the pod of the node that is to be first is deleted; then, with
// RollingUpdate and maxUnavailable, it goes on to the others.
func TestInstalledGrayUpdate(t *testing.T) {
	s := tell(t)
	in := s.installed()
	w := s.writes("ext4")
	s.last = append(s.last, in.apply) // as it is in deploy/
	before := s.podsOf(agents)[0]
	s.inside("kubectl", "-n", system, "patch", agents, "--type=merge", "-p",
		`{"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}, "template": {"metadata": {"annotations": {"test": "gray"}}}}}`)
	s.until("the new template to be known", func() error {
		out, err := output(shared.inside(s.ctx, "kubectl", "-n", system, "get", agents, "-o", "jsonpath={.status.observedGeneration} {.metadata.generation} {.status.updatedNumberScheduled}"))
		if f := strings.Fields(out); err != nil || len(f) < 2 || f[0] != f[1] || len(f) == 3 && f[2] != "0" {
			return fmt.Errorf("%q %v", out, err)
		}
		return nil
	})
	if now := s.podsOf(agents)[0]; now.UID != before.UID {
		t.Errorf("the agent's pod was replaced before anybody deleted it")
	}
	w.unharmed()

	s.inside("kubectl", "-n", system, "delete", "pod", before.Name, "--timeout=60s")
	s.until("the node's agent of the new template", func() error {
		pods := s.podsOf(agents)
		if len(pods) != 1 || pods[0].Annotations["test"] != "gray" {
			return fmt.Errorf("there are %d pods", len(pods))
		}
		return nil
	})
	s.inside("kubectl", "-n", system, "patch", agents, "--type=merge", "-p", `{"spec": {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}}}`)
	s.rolledOut(agents)
	if err := in.ready(s.ctx); err != nil {
		t.Fatal(err)
	}
	w.unharmed()
	s.noMountTwice()
	s.journey("after")
}

// The agent is killed, not ended: what it did for the pod stays.
func TestInstalledAgentIsKilled(t *testing.T) {
	s := tell(t)
	in := s.installed()
	w := s.writes("xfs")
	s.inside("pkill", "--signal", "KILL", "--full", "^(/[^ ]*/)?berth node")
	s.inside("pkill", "--signal", "KILL", "--full", "^(/[^ ]*/)?berth controller")
	w.unharmed()
	s.until("everything Ready again", func() error { return in.ready(s.ctx) })
	w.unharmed()
	s.noMountTwice()
	s.journey("after")
}

// A kubelet that was killed finds the volumes of running pods, leaves them mounted, and unmounts them when the pods go; also one whose pod
// was deleted while it was away.
func TestInstalledOutlivesTheKubelet(t *testing.T) {
	s := tell(t)
	s.installed()
	w := s.writes("ext4")
	s.inside("pkill", "--signal", "KILL", "--exact", "kubelet")
	s.journey("after")
	w.unharmed()
	s.kubectl("delete", "pod", "writer", "--wait=false")
	s.inside("pkill", "--signal", "KILL", "--exact", "kubelet")
	s.kubectl("wait", "--for=delete", "--timeout=120s", "pod/writer")
	s.until("the volume to be unmounted", func() error {
		if left := w.mounted(); len(left) > 0 {
			return fmt.Errorf("the node has %s", left)
		}
		return nil
	})
}

// The node loses its power and comes back: pods that use volumes run again with what they had synced, and everything else works.
func TestInstalledNodeReboots(t *testing.T) {
	s := tell(t)
	in := s.installed()
	s.apply(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: kept}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: raw}
spec: {accessModes: [ReadWriteOnce], volumeMode: Block, resources: {requests: {storage: 64Mi}}}
---` + podYAML("kept", "persistentVolumeClaim: {claimName: kept}") + rawPod("raw"))
	s.ready("kept")
	s.ready("raw")
	s.inPod("kept", "sh", "-c", "echo kept >/data/file; sync")
	s.inPod("raw", "sh", "-c", "echo kept | dd of=/dev/xvda conv=fsync,notrunc 2>/dev/null")
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if _, err := output(shared.script(ctx, "cluster.sh", "reboot")); err != nil {
		t.Fatal(err)
	}
	s.until("everything Ready again", func() error { return in.ready(s.ctx) })
	for pod, read := range map[string][]string{"kept": {"cat", "/data/file"}, "raw": {"head", "-c", "5", "/dev/xvda"}} {
		s.until(pod+" to run again with what it had", func() error {
			got, err := output(shared.inside(s.ctx, append([]string{"kubectl", "-n", s.ns, "exec", pod, "--"}, read...)...))
			if err == nil && got != "kept\n" {
				s.Fatalf("%s reads %q", pod, got)
			}
			return err
		})
	}
	s.journey("after")
	s.deletePod("kept")
	s.deletePod("raw")
	s.empty()
}

// A node whose agent is not yet there keeps pods away with a taint; the agent takes it off as soon as the kubelet knows the drivers.
func TestInstalledStartUpTaint(t *testing.T) {
	s := tell(t)
	in := s.installed()
	s.inside("kubectl", "taint", "node", "node1", "berth.io/agent-not-ready=:NoSchedule")
	s.until("the taint to go", func() error {
		taints, err := output(shared.inside(s.ctx, "kubectl", "get", "node", "node1", "-o", "jsonpath={.spec.taints[*].key}"))
		if err == nil && strings.Contains(taints, "berth.io/agent-not-ready") {
			err = fmt.Errorf("there are %s", taints)
		}
		return err
	})
	s.until("everything Ready", func() error { return in.ready(s.ctx) })
}
