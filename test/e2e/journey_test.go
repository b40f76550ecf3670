package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// paths reads the annotation with the host paths of a pod's volumes.
func paths(s *story, pod *corev1.Pod) map[string]string {
	s.Helper()
	m := map[string]string{}
	if err := json.Unmarshal([]byte(pod.Annotations["storage.berth.io/paths"]), &m); err != nil {
		s.Fatalf("annotation storage.berth.io/paths %q: %v", pod.Annotations["storage.berth.io/paths"], err)
	}
	return m
}

// mountAt returns what is mounted at path in the kernel's table.
func mountAt(s *story, path string) *mountinfo.Info {
	s.Helper()
	m, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
	if err != nil || len(m) != 1 {
		s.Fatalf("nothing is mounted at %s (%v)", path, err)
	}
	return m[0]
}

// A user applies a claim and a pod; the pod's directory is a mounted ext4; what is written there is there for the next
// pod; deleting the pod unmounts, deleting the claim deletes the volume.
func TestClaimToMountedVolumeAndBack(t *testing.T) {
	s := tell(t)
	s.apply(claimYAML("data", "64Mi") + podYAML("first", "data"))
	dir := paths(s, s.ready("first"))["data"]
	if m := mountAt(s, dir); m.FSType != "ext4" {
		t.Errorf("%s is %s, want ext4", dir, m.FSType)
	}
	if err := os.WriteFile(filepath.Join(dir, "greeting"), []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	volume := s.claim("data").Spec.VolumeName

	s.kubectl("delete", "pod", "first")
	s.podGone("first")
	if mounted, _ := mountinfo.Mounted(dir); mounted {
		t.Errorf("%s is still mounted after its pod is gone", dir)
	}

	s.apply(podYAML("second", "data"))
	dir = paths(s, s.ready("second"))["data"]
	if b, err := os.ReadFile(filepath.Join(dir, "greeting")); err != nil || string(b) != "hello" {
		t.Errorf("the second pod reads %q, %v", b, err)
	}

	s.kubectl("delete", "pod", "second")
	s.kubectl("delete", "pvc", "data")
	s.claimGone("data")
	s.volumeGone(volume)
	w, err := s.in.World()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range w.VolumeLoops() {
		if strings.Contains(l, volume) {
			t.Errorf("loop device %s is left", l)
		}
	}
	if va, err := s.client.StorageV1().VolumeAttachments().List(s.ctx, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	} else {
		for _, a := range va.Items {
			if p := a.Spec.Source.PersistentVolumeName; p != nil && *p == volume {
				t.Errorf("attachment %s is left", a.Name)
			}
		}
	}
}

// The pod is a holder: it says so, is Ready n/n, and `berth exec` sees the volumes at their mountPaths.
func TestHolderPodAndExec(t *testing.T) {
	s := tell(t)
	s.apply(claimYAML("data", "32Mi") + podYAML("holder", "data"))
	pod := s.ready("holder")
	if pod.Status.Phase != corev1.PodRunning {
		t.Errorf("phase %s, want Running", pod.Status.Phase)
	}
	if out := s.kubectl("get", "pod", "holder", "--no-headers"); !strings.Contains(out, "1/1") {
		t.Errorf("kubectl get pod: %q, want READY 1/1", out)
	}
	if _, err := s.in.Berth(s.ctx, "exec", "-n", s.ns, "holder", "-c", "app", "--", "sh", "-c", "echo from inside > /data/note"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(paths(s, pod)["data"], "note"))
	if err != nil || string(b) != "from inside\n" {
		t.Errorf("note is %q, %v", b, err)
	}
	if _, err := os.Stat("/data/note"); err == nil {
		t.Error("/data/note exists on the host")
	}
	_, err = s.in.Berth(s.ctx, "exec", "-n", s.ns, "holder", "--", "sh", "-c", "exit 7")
	if err == nil || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("exit code of the command: %v, want 7", err)
	}
}

// A namespace takes everything in it along.
func TestDeletingTheNamespaceDeletesAll(t *testing.T) {
	s := tell(t)
	s.apply(claimYAML("data", "32Mi") + podYAML("app", "data"))
	s.ready("app")
	volume := s.claim("data").Spec.VolumeName
	s.deleteNamespace()
	s.volumeGone(volume)
}
