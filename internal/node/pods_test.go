package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/node/holder"
)

// The whole life of a holder: seen, mounted, Ready with its paths in one write, deleted, unmounted, gone.
func TestHolderFromSeenToGone(t *testing.T) {
	r := start(t)
	pod := r.create(testPod("a"))
	r.eventually(func() string {
		if !r.mounts.isComplete() || r.mounts.Status(pod.UID).AllUnmounted {
			return "the pod was not set"
		}
		return ""
	})
	r.mounts.mount(pod.UID)
	r.eventually(r.phaseIs("a", v1.PodRunning))
	now := r.pod("a")
	if now.Annotations[holder.PathsAnnotation] != `{"data":"/v/data"}` {
		t.Errorf("paths %q", now.Annotations[holder.PathsAnnotation])
	}
	if ready, _ := holder.Ready(now); !ready || !now.Status.ContainerStatuses[0].Ready || now.Status.ContainerStatuses[0].State.Running == nil {
		t.Errorf("not ready: %+v", now.Status)
	}
	writes := 0
	for _, a := range r.client.Actions() {
		if a.Matches("patch", "pods") {
			writes++
		}
	}
	if writes != 1 {
		t.Errorf("%d writes to the pod, want 1: a mount that is done soon needs no Pending", writes)
	}
	r.deletePod(pod)
	r.eventually(func() string {
		if r.pod("a") != nil {
			return "the pod is still there"
		}
		return ""
	})
	r.eventually(func() string {
		if r.agent.pods.state(pod.UID) != nil {
			return "the agent still knows the pod"
		}
		return ""
	})
	if n := r.mounts.releases(pod.UID); n != 1 {
		t.Errorf("released %d times: each release is answered with a change, so more than one would never end", n)
	}
}

// deletePod sets the deletion timestamp, which the fake API does not do by itself.
func (r *rig) deletePod(pod *v1.Pod) {
	r.t.Helper()
	now := r.pod(pod.Name).DeepCopy()
	stamp := metav1.Now()
	now.DeletionTimestamp, now.ResourceVersion = &stamp, "1000"
	if err := r.client.Tracker().Update(v1.SchemeGroupVersion.WithResource("pods"), now, "ns"); err != nil {
		r.t.Fatal(err)
	}
}

// As long as anything is mounted, the API keeps the pod.
func TestPodStaysUntilItIsUnmounted(t *testing.T) {
	r := start(t)
	pod := r.create(testPod("a"))
	r.mounts.mu.Lock()
	r.mounts.held[pod.UID] = true
	r.mounts.mu.Unlock()
	r.eventually(func() string {
		if r.mounts.Status(pod.UID).AllUnmounted {
			return "not set"
		}
		return ""
	})
	r.deletePod(pod)
	r.eventually(func() string {
		if r.mounts.releases(pod.UID) == 0 {
			return "not released"
		}
		return ""
	})
	time.Sleep(30 * time.Millisecond)
	if r.pod("a") == nil {
		t.Fatal("the pod is gone while its volume is mounted")
	}
	r.mounts.letGo(pod.UID)
	r.eventually(func() string {
		if r.pod("a") != nil {
			return "the pod is still there"
		}
		return ""
	})
}

func TestPendingSaysWhatItWaitsFor(t *testing.T) {
	r := start(t)
	r.mounts.mu.Lock()
	r.mounts.waiting = "the claim is not bound"
	r.mounts.mu.Unlock()
	r.create(testPod("a"))
	r.eventually(func() string {
		pod := r.pod("a")
		if len(pod.Status.ContainerStatuses) == 0 {
			return "no status"
		}
		w := pod.Status.ContainerStatuses[0].State.Waiting
		if pod.Status.Phase != v1.PodPending || w == nil || w.Reason != "ContainerCreating" || !strings.Contains(w.Message, `volume "data": the claim is not bound`) {
			return "status " + pod.Status.String()
		}
		return ""
	})
}

func TestPodsOfOtherNodesAreLeftAlone(t *testing.T) {
	r := start(t)
	other := r.create(testPod("other", func(p *v1.Pod) { p.Spec.NodeName = "node-2" }))
	mine := r.create(testPod("mine"))
	r.eventually(func() string {
		if r.mounts.Status(mine.UID).AllUnmounted {
			return "mine was not set"
		}
		return ""
	})
	if !r.mounts.Status(other.UID).AllUnmounted {
		t.Error("a pod of another node was set")
	}
}

func TestEndedPodGivesItsVolumesBack(t *testing.T) {
	r := start(t)
	pod := r.create(testPod("a", func(p *v1.Pod) { p.Status.Phase = v1.PodSucceeded }))
	r.eventually(func() string {
		if r.mounts.releases(pod.UID) == 0 {
			return "not released"
		}
		return ""
	})
	if r.pod("a") == nil {
		t.Error("an ended pod was deleted")
	}
}

func TestActiveDeadline(t *testing.T) {
	r := start(t)
	seconds := int64(1)
	pod := r.create(testPod("a", func(p *v1.Pod) { p.Spec.ActiveDeadlineSeconds = &seconds; p.Spec.Volumes = nil }))
	r.eventually(r.phaseIs("a", v1.PodFailed))
	if now := r.pod("a"); now.Status.Reason != deadlineReason || now.Status.ContainerStatuses[0].State.Terminated == nil {
		t.Errorf("status %+v", now.Status)
	}
	r.eventually(func() string {
		if r.mounts.releases(pod.UID) == 0 {
			return "not released"
		}
		return ""
	})
}

// A Job's pod has a finalizer, and the Job counts the pod only when it has ended.
func TestDeletedJobPodEndsFirst(t *testing.T) {
	r := start(t)
	pod := r.create(testPod("a", func(p *v1.Pod) {
		p.Spec.RestartPolicy = v1.RestartPolicyNever
		p.Finalizers = []string{"batch.kubernetes.io/job-tracking"}
		p.Spec.Volumes = nil
	}))
	r.eventually(r.phaseIs("a", v1.PodRunning))
	r.eventually(func() string {
		select {
		case e := <-r.events.Events:
			if strings.Contains(e, jobMessage) {
				return ""
			}
		default:
		}
		return "no event says that Jobs need a runtime"
	})
	r.deletePod(pod)
	r.eventually(func() string {
		for _, a := range r.client.Actions() {
			if a.Matches("delete", "pods") {
				return ""
			}
		}
		return "not deleted"
	})
	patched := false
	for _, a := range r.client.Actions() {
		switch {
		case a.Matches("patch", "pods"):
			patched = true
		case a.Matches("delete", "pods") && !patched:
			t.Error("deleted before the final status")
		}
	}
}

// A directory of a pod that the API does not know is removed; one with a file in a volume is kept.
func TestPodDirectoriesOfUnknownPods(t *testing.T) {
	r := start(t)
	// Made elsewhere and moved there whole: the agent may be looking already.
	pods, made := filepath.Join(r.dir, "pods"), filepath.Join(r.dir, "made")
	kept := filepath.Join(pods, "uid-kept/volumes/kubernetes.io~csi/pv-2")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(made, "uid-empty/volumes/kubernetes.io~csi/pv-1"), 0o755),
		os.MkdirAll(filepath.Join(made, "uid-kept/volumes/kubernetes.io~csi/pv-2"), 0o755),
		os.WriteFile(filepath.Join(made, "uid-kept/volumes/kubernetes.io~csi/pv-2/data"), nil, 0o600),
		os.Rename(made, pods),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, uid := range []types.UID{"uid-empty", "uid-kept"} {
		r.agent.PodChanged(uid)
	}
	r.eventually(func() string {
		if _, err := os.Stat(filepath.Join(pods, "uid-empty")); err == nil {
			return "the empty directory is still there"
		}
		return ""
	})
	if _, err := os.Stat(filepath.Join(kept, "data")); err != nil {
		t.Errorf("a file of a volume was removed: %v", err)
	}
}
