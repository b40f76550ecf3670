package claim

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// Whoever asks while a list is under way gets the next one, never the one that began before the question; and all
// who ask meanwhile share that next one.
func TestLiveListsAreSharedAndFresh(t *testing.T) {
	l := liveLists{flights: map[string]*flight{}}
	var lists atomic.Int32
	began, finish := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = l.pods(t.Context(), "ns", func(context.Context) (*v1.PodList, error) {
			lists.Add(1)
			close(began)
			<-finish
			return &v1.PodList{}, nil
		})
	})
	<-began
	for range 20 {
		wg.Go(func() {
			got, err := l.pods(t.Context(), "ns", func(context.Context) (*v1.PodList, error) {
				lists.Add(1)
				return &v1.PodList{Items: make([]v1.Pod, 1)}, nil
			})
			if err != nil || len(got.Items) != 1 {
				t.Errorf("got an older list: %v %v", got, err)
			}
		})
	}
	// All twenty wait behind the first list before it ends.
	time.Sleep(20 * time.Millisecond)
	close(finish)
	wg.Wait()
	if n := lists.Load(); n != 2 {
		t.Errorf("%d lists, want 2", n)
	}
}

func TestUsesClaim(t *testing.T) {
	now := metav1.Now()
	c := claim("p-d", "1Gi")
	c.OwnerReferences = []metav1.OwnerReference{{UID: "pod", Controller: ptr.To(true), Name: "p", Kind: "Pod"}}
	direct := v1.Volume{Name: "d", VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "p-d"}}}
	own := v1.Volume{Name: "d", VolumeSource: v1.VolumeSource{Ephemeral: &v1.EphemeralVolumeSource{}}}
	pod := func(v v1.Volume, change func(*v1.Pod)) *v1.Pod {
		p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "pod"}, Spec: v1.PodSpec{NodeName: "n", Volumes: []v1.Volume{v}}}
		change(p)
		return p
	}
	nothing := func(*v1.Pod) {}
	shutDown := func(p *v1.Pod) { p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &now, ptr.To[int64](0) }
	for name, tc := range map[string]struct {
		pod  *v1.Pod
		want bool
	}{
		"on a node":                     {pod(direct, nothing), true},
		"has ended, is still there":     {pod(direct, func(p *v1.Pod) { p.Status.Phase = v1.PodSucceeded }), true},
		"shut down, is still there":     {pod(direct, shutDown), true},
		"without a node":                {pod(direct, func(p *v1.Pod) { p.Spec.NodeName = "" }), false},
		"its own ephemeral claim":       {pod(own, nothing), true},
		"its own, shut down":            {pod(own, shutDown), false},
		"another pod's ephemeral claim": {pod(own, func(p *v1.Pod) { p.UID = "another" }), false},
		"another claim":                 {pod(v1.Volume{Name: "x"}, nothing), false},
	} {
		if got := usesClaim(tc.pod, c); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
