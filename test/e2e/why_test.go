package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// why asks about an object and wants each of the texts in the answer.
func (s *story) why(target string, texts ...string) string {
	s.Helper()
	out := s.berth("why", "-n", s.ns, target)
	for _, text := range texts {
		if !strings.Contains(out, text) {
			s.Errorf("berth why %s does not say %q:\n%s", target, text, out)
		}
	}
	return out
}

func classYAML(name string, more ...string) string {
	return fmt.Sprintf("\napiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: %s}\nprovisioner: block.csi.berth.io\n%s\n---", name, strings.Join(more, "\n"))
}

// The first start applies a file with a class of its own: its pod is placed at once, and never refused for want of a capacity
// that is only about to be published.
func TestFirstStartRefusesNoPodOfAnOwnClass(t *testing.T) {
	file := filepath.Join(t.TempDir(), "own.yaml")
	yaml := classYAML("mine", "volumeBindingMode: WaitForFirstConsumer") + claimYAML("data", "32Mi", "storageClassName: mine") + podYAML("app", "data")
	if err := os.WriteFile(file, []byte(yaml), 0o644); err != nil {
		t.Fatal(err)
	}
	s := tellOn(t, own(t, "--apply", file))
	own := s.ns
	t.Cleanup(func() { s.ns = own })
	s.ns = metav1.NamespaceDefault
	s.ready("app")
	events, err := s.client.CoreV1().Events(s.ns).List(s.ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events.Items {
		if e.Type == corev1.EventTypeWarning {
			t.Errorf("%s of %s: %s", e.Reason, e.InvolvedObject.Name, e.Message)
		}
	}
	if out := s.why("pod/app"); strings.Contains(out, "nodes are available") {
		t.Error(out)
	}
}

// A claim that waits for its first pod is no trouble; a name that is nearly right is suggested.
func TestStatusAndWhyOfAClaimWithoutPod(t *testing.T) {
	s := tell(t)
	s.apply(claimYAML("early", "32Mi") + claimYAML("stuck", "32Mi", "storageClassName: nowhere"))
	s.why("pvc/early", "This is no error")
	var out string
	s.until("the later claim to be listed as one that does not get on", func() (bool, string) {
		out = s.berth("status")
		return strings.Contains(out, "pvc/stuck"), out
	})
	if !strings.Contains(out, "waiting for a first pod") || strings.Contains(out, "pvc/early") {
		t.Error(out)
	}
	if _, err := s.in.Berth(s.ctx, "why", "-n", s.ns, "pvc/eraly"); err == nil || !strings.Contains(err.Error(), "did you mean pvc/early?") {
		t.Errorf("near miss: %v", err)
	}
	if _, err := s.in.Berth(s.ctx, "why", "pvc/early"); err == nil || !strings.Contains(err.Error(), "-n "+s.ns+" pvc/early") {
		t.Errorf("another namespace: %v", err)
	}
}

// Of two pods with a ReadWriteOncePod claim the second waits, and what the first one's volume does is not shown as its own.
func TestWhyOfTheSecondPodOfOne(t *testing.T) {
	s := tell(t)
	s.apply(strings.Replace(claimYAML("data", "32Mi"), "ReadWriteOnce", "ReadWriteOncePod", 1) + podYAML("first", "data"))
	s.ready("first")
	s.apply(podYAML("second", "data"))
	s.event("second", "FailedScheduling", "ReadWriteOncePod")
	if out := s.why("pod/second", "another pod has it", "also used by first"); strings.Contains(out, "Attached") || strings.Contains(out, "Published") {
		t.Errorf("shows what the first pod's volume does:\n%s", out)
	}
	s.kubectl("delete", "pod", "first")
	s.ready("second")
	if out := s.why("pod/second", "Attached", "Running"); strings.Contains(out, "Detached") || strings.Contains(out, "Unstaged") {
		t.Errorf("shows the first pod's way back:\n%s", out)
	}
}

// A growth beyond the pool is refused with figures, and with a command that mends it.
func TestWhyOfAGrowthThatIsTooLarge(t *testing.T) {
	s := tell(t)
	s.apply(claimYAML("data", "64Mi") + podYAML("app", "data"))
	s.ready("app")
	const patch = `{"spec":{"resources":{"requests":{"storage":"%s"}}}}`
	s.kubectl("patch", "pvc", "data", "-p", fmt.Sprintf(patch, "900Gi"))
	s.event("data", "VolumeResizeFailed", "larger than the pool")
	s.why("pvc/data", "to grow from 64Mi to 900Gi", "more to give", "kubectl patch pvc -n "+s.ns+" data", "works on at its present size")
	s.kubectl("patch", "pvc", "data", "-p", fmt.Sprintf(patch, "72Mi"))
	if out := s.why("pvc/data"); strings.Contains(out, "900Gi, and") {
		t.Error(out)
	}
}

// A volume with Retain outlives its claim; the commands that why tells give it to another claim, and then delete it.
func TestWhyOfAKeptVolume(t *testing.T) {
	s := tell(t)
	class := "keep-" + s.ns
	s.apply(classYAML(class, "reclaimPolicy: Retain") + claimYAML("data", "32Mi", "storageClassName: "+class))
	t.Cleanup(func() { _, _ = s.in.Kubectl(s.ctx, "delete", "storageclass", class) })
	var volume string
	s.until("claim data bound", func() (bool, string) {
		volume = s.claim("data").Spec.VolumeName
		return s.claim("data").Status.Phase == corev1.ClaimBound, string(s.claim("data").Status.Phase)
	})
	released := func() {
		t.Helper()
		s.until("volume Released", func() (bool, string) {
			pv, err := s.client.CoreV1().PersistentVolumes().Get(s.ctx, volume, metav1.GetOptions{})
			if err != nil {
				return false, err.Error()
			}
			return pv.Status.Phase == corev1.VolumeReleased, string(pv.Status.Phase)
		})
	}
	commands := regexp.MustCompile(`kubectl patch pv (\S+)( --type=merge)? -p '([^']+)'`)
	s.kubectl("delete", "pvc", "data")
	released()
	told := commands.FindAllStringSubmatch(s.why("pv/"+volume, "Claim "+s.ns+"/data had the volume", "the data is kept"), -1)
	if len(told) != 2 {
		t.Fatalf("commands %q", told)
	}
	run := func(c []string) { s.kubectl("patch", "pv", c[1], "--type=merge", "-p", c[3]) }
	run(told[0])
	s.apply(claimYAML("again", "32Mi", "storageClassName: "+class, "volumeName: "+volume))
	s.until("claim again bound", func() (bool, string) {
		c := s.claim("again")
		return c.Status.Phase == corev1.ClaimBound && c.Spec.VolumeName == volume, string(c.Status.Phase)
	})
	s.kubectl("delete", "pvc", "again")
	released()
	run(told[1])
	s.volumeGone(volume)
}

// A directory of the host is never emptied or removed; why says what to do instead.
func TestWhyOfAHostPathVolumeWithDelete(t *testing.T) {
	for policy, cause := range map[string]string{"Delete": "nothing here can delete", "Recycle": "nothing here empties"} {
		t.Run(policy, func(t *testing.T) {
			s := tell(t)
			dir, name := t.TempDir(), "hand-"+s.ns
			if err := os.WriteFile(filepath.Join(dir, "precious"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			s.apply(fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: %s}
spec: {capacity: {storage: 32Mi}, accessModes: [ReadWriteOnce], storageClassName: "%[1]s", persistentVolumeReclaimPolicy: %s, hostPath: {path: %s}}
---`, name, policy, dir) + claimYAML("data", "32Mi", "storageClassName: "+name))
			t.Cleanup(func() { _, _ = s.in.Kubectl(s.ctx, "delete", "pv", name) })
			s.until("claim bound", func() (bool, string) {
				return s.claim("data").Status.Phase == corev1.ClaimBound, string(s.claim("data").Status.Phase)
			})
			s.kubectl("delete", "pvc", "data")
			s.until("why to tell", func() (bool, string) {
				out := s.berth("why", "pv/"+name)
				return strings.Contains(out, cause) && strings.Contains(out, dir), out
			})
			if _, err := os.Stat(filepath.Join(dir, "precious")); err != nil {
				t.Error(err)
			}
		})
	}
}

// What a pod asks of a container runtime is said not to be done.
func TestWhyOfWhatAHolderDoesNotRun(t *testing.T) {
	s := tell(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: app, image: x, readinessProbe: {exec: {command: ["false"]}}}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: import}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: app, image: x}]}}}
---`)
	s.ready("probed")
	s.why("pod/probed", "A holder never runs commands", "the readiness probe of app")
	var pod string
	s.until("the Job's pod", func() (bool, string) {
		list, err := s.client.CoreV1().Pods(s.ns).List(s.ctx, metav1.ListOptions{LabelSelector: "job-name=import"})
		if err != nil || len(list.Items) == 0 || list.Items[0].Spec.NodeName == "" {
			return false, fmt.Sprint(err)
		}
		pod = list.Items[0].Name
		return true, ""
	})
	s.why("pod/"+pod, "a holder never runs commands", "kubectl delete job -n "+s.ns+" import")
}

// Completion asks the running instance.
func TestCompletionOfNames(t *testing.T) {
	s := tell(t)
	s.apply(claimYAML("data", "32Mi") + podYAML("app", "data"))
	s.ready("app")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"why", "-n", s.ns, ""}, "pvc/data"},
		{[]string{"why", "-n", s.ns, ""}, "pod/app"},
		{[]string{"why", "-n", ""}, s.ns},
		{[]string{"exec", "-n", s.ns, ""}, "app"},
		{[]string{"exec", "-n", s.ns, "app", "-c", ""}, "app"},
		{[]string{"status", "-o", ""}, "yaml"},
	} {
		if out := s.berth(append([]string{"__complete"}, c.args...)...); !slices.Contains(strings.Fields(out), c.want) {
			t.Errorf("%q offers %q, not %s", c.args, out, c.want)
		}
	}
}
