package mount

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// After a restart: what pods still want is mounted again as a repetition, the rest goes once the pods are complete, staged
// volumes without a pod too, and directories that tell nothing are cleaned.
func TestRestart(t *testing.T) {
	r := newRig(t, volumes(2))
	r.manager.PodsComplete()
	r.attach("pv-1", "pv-2")
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.manager.SetPod(pod("pod-2", "claim-2"))
	r.untilMounted("pod-1")
	r.untilMounted("pod-2")
	r.stop()

	for _, d := range []string{"pod-1/volumes/kubernetes.io~csi/pv-1", "pod-2/volumes/kubernetes.io~csi/pv-2", "pod-3/volumes/kubernetes.io~csi/broken-1", "pod-3/volumes/vendor~gone/x"} {
		if err := os.MkdirAll(filepath.Join(r.plugin.dir, "pods", d), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	r.plugin.stays["pv-9"] = true // staged, and no pod has it
	r.plugin.calls = nil
	r.start()
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.untilMounted("pod-1")
	r.expectCalls("stage pv-1 again", "publish pv-1 in pod-1 again")
	if got := r.inUse(); !slices.Contains(got, "pv-2") {
		t.Errorf("in use before the pods are complete: %q", got)
	}
	r.manager.PodsComplete()
	r.untilUnmounted("pod-2")
	r.untilUnmounted("pod-3")
	r.until("the report", func() bool { return slices.Equal(r.inUse(), []string{"pv-1"}) })
	if left := r.plugin.left(); !slices.Equal(left, []string{"pod-1/pv-1", "pv-1"}) {
		t.Errorf("left: %q", left)
	}
	if dirs := entries(podsDir(r.plugin.dir)); !slices.Equal(dirs, []string{"pod-1"}) {
		t.Errorf("pod directories: %q", dirs)
	}
}

// A pod whose claim can't be resolved yet after a restart keeps what is mounted.
func TestRestartHoldsUnresolved(t *testing.T) {
	objects := volumes(1)
	r := newRig(t, objects)
	r.stop()
	if err := os.MkdirAll(filepath.Join(r.plugin.dir, "pods/pod-1/volumes/kubernetes.io~csi/pv-1"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := r.client.CoreV1().PersistentVolumeClaims("default").Delete(t.Context(), "claim-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.manager.PodsComplete()
	r.until("waiting", func() bool {
		s := r.manager.Status("pod-1")
		return len(s.Volumes) == 1 && s.Volumes[0].Waiting != ""
	})
	time.Sleep(50 * time.Millisecond) // nothing may happen: there is no event to wait for
	r.expectCalls()
	r.manager.ReleasePod("pod-1")
	r.untilUnmounted("pod-1")
	r.expectCalls("unpublish pv-1 in pod-1")
}
