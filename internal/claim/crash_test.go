package claim

import (
	"fmt"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"berth.io/berth/internal/plugin"
)

// The process dies after each write of each journey, and another starts with empty memory on what is in the API. The
// journey ends as if nothing had happened, and what the writes have in common is not written twice: a volume belongs
// to one claim, a plugin's volume is made once and deleted.
func TestResumeAfterAnyWrite(t *testing.T) {
	tree := class("tree", "kubernetes.io/mock", storagev1.VolumeBindingImmediate)
	csi := class("csi", "x.csi.example.com", storagev1.VolumeBindingImmediate)
	provisioned := volume("pvc-1", "1Gi", volumeOfClass("csi"), claimedBy("c", "uid-c"), inPhase(v1.VolumePending))
	boundClaim := claim("c", "1Gi", naming("v"), annotated(storagehelpers.AnnBindCompleted, "yes"))
	boundClaim.Status.Phase = v1.ClaimBound

	asksForMore := claim("c", "3Gi", naming("v"), annotated(storagehelpers.AnnBindCompleted, "yes"))
	asksForMore.Status.Phase = v1.ClaimBound
	asksForMore.Status.Capacity = v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}
	capacities := func(t *testing.T, a *api) (ofVolume, ofClaim string) {
		return a.volume(t, "v").Spec.Capacity.Storage().String(), a.claim(t, "c").Status.Capacity.Storage().String()
	}

	journeys := map[string]struct {
		objects []runtime.Object
		plugins func() []plugin.Plugin
		// before runs with the first process, after it started.
		before func(t *testing.T, a *api)
		done   func(t *testing.T, a *api) bool
	}{
		"static bind": {
			objects: []runtime.Object{volume("v", "1Gi"), claim("c", "1Gi")},
			done:    func(t *testing.T, a *api) bool { return isBoundTo(t, a, "c", "v") },
		},
		"bind of a provisioned volume": {
			objects: []runtime.Object{csi, provisioned, claim("c", "1Gi", ofClass("csi"))},
			done:    func(t *testing.T, a *api) bool { return isBoundTo(t, a, "c", "pvc-1") },
		},
		"bind of a volume that the user reserved": {
			objects: []runtime.Object{volume("v", "1Gi", claimedBy("c", "")), claim("c", "1Gi", naming("v"))},
			done:    func(t *testing.T, a *api) bool { return isBoundTo(t, a, "c", "v") },
		},
		"default class, provision in tree, bind": {
			objects: []runtime.Object{func() runtime.Object { sc := tree.DeepCopy(); isDefault(sc); return sc }(), claim("c", "1Gi", noClass)},
			plugins: func() []plugin.Plugin { return []plugin.Plugin{&mockPlugin{}} },
			done:    func(t *testing.T, a *api) bool { return isBoundTo(t, a, "c", "pvc-uid-c") },
		},
		"delete in tree": {
			objects: []runtime.Object{volume("v", "1Gi", claimedBy("gone", "uid-gone"), inPhase(v1.VolumeBound), reclaimed(v1.PersistentVolumeReclaimDelete),
				volumeAnnotated(storagehelpers.AnnDynamicallyProvisioned, "kubernetes.io/mock"))},
			plugins: func() []plugin.Plugin { return []plugin.Plugin{&mockPlugin{}} },
			done:    func(t *testing.T, a *api) bool { return a.volume(t, "v") == nil },
		},
		"recycle, then bind to the next": {
			objects: []runtime.Object{claim("next", "1Gi"), volume("v", "1Gi", claimedBy("gone", "uid-gone"), inPhase(v1.VolumeBound), reclaimed(v1.PersistentVolumeReclaimRecycle),
				volumeAnnotated(storagehelpers.AnnBoundByController, "yes"))},
			plugins: func() []plugin.Plugin { return []plugin.Plugin{&mockPlugin{}} },
			done:    func(t *testing.T, a *api) bool { return isBoundTo(t, a, "next", "v") },
		},
		"grow in tree": {
			objects: []runtime.Object{asksForMore, volume("v", "1Gi", claimedBy("c", "uid-c"), inPhase(v1.VolumeBound))},
			plugins: func() []plugin.Plugin { return []plugin.Plugin{&growingPlugin{}} },
			done: func(t *testing.T, a *api) bool {
				ofVolume, ofClaim := capacities(t, a)
				return ofVolume == "3Gi" && ofClaim == "3Gi"
			},
		},
		"grow in tree, the filesystem on the node": {
			objects: []runtime.Object{asksForMore, volume("v", "1Gi", claimedBy("c", "uid-c"), inPhase(v1.VolumeBound))},
			plugins: func() []plugin.Plugin { return []plugin.Plugin{&growingPlugin{onNode: true}} },
			done: func(t *testing.T, a *api) bool {
				ofVolume, ofClaim := capacities(t, a)
				pending := a.claim(t, "c").Status.Conditions
				return ofVolume == "3Gi" && ofClaim == "1Gi" && a.volume(t, "v").Annotations[preResizeCapacity] == "1Gi" &&
					len(pending) == 1 && pending[0].Type == v1.PersistentVolumeClaimFileSystemResizePending
			},
		},
		"unbind a volume whose claim went elsewhere": {
			objects: []runtime.Object{boundClaim, volume("v", "1Gi", claimedBy("c", "uid-c"), inPhase(v1.VolumeBound)),
				volume("w", "1Gi", claimedBy("c", "uid-c"), inPhase(v1.VolumeBound), volumeAnnotated(storagehelpers.AnnBoundByController, "yes"))},
			done: func(t *testing.T, a *api) bool {
				w := a.volume(t, "w")
				return isBoundTo(t, a, "c", "v") && w.Spec.ClaimRef == nil && w.Status.Phase == v1.VolumeAvailable
			},
		},
		"claim deleted": {
			objects: []runtime.Object{boundClaim, volume("v", "1Gi", claimedBy("c", "uid-c"), inPhase(v1.VolumeBound))},
			before: func(t *testing.T, a *api) {
				if err := a.CoreV1().PersistentVolumeClaims("ns").Delete(t.Context(), "c", metav1.DeleteOptions{}); err != nil && a.claim(t, "c") == nil {
					t.Fatal(err)
				}
			},
			done: func(t *testing.T, a *api) bool {
				return a.claim(t, "c") == nil && a.volume(t, "v").Status.Phase == v1.VolumeReleased
			},
		},
	}
	for name, j := range journeys {
		t.Run(name, func(t *testing.T) {
			for survived := 0; ; survived++ {
				died := resume(t, name, j.objects, j.plugins, j.before, j.done, survived)
				if !died {
					if survived < 2 {
						t.Fatalf("the journey has only %d writes", survived)
					}
					t.Logf("died after each of %d writes", survived)
					return
				}
			}
		})
	}
}

// resume lets the first process make a number of writes, then starts a second. It says whether the first died.
func resume(t *testing.T, name string, objects []runtime.Object, plugins func() []plugin.Plugin,
	before func(*testing.T, *api), done func(*testing.T, *api) bool, survived int) bool {
	t.Helper()
	var copies []runtime.Object
	for _, o := range objects {
		copies = append(copies, o.DeepCopyObject())
	}
	var p []plugin.Plugin
	if plugins != nil {
		p = plugins()
	}
	a := newAPI(t, copies...)
	if before != nil {
		before(t, a)
	}
	a.mu.Lock()
	a.budget = survived
	a.mu.Unlock()
	first := run(t, a, p...)
	// Cut off or done, and then whatever else it would write: a plugin's work between two writes may be long on a busy machine.
	waitUntil(30*time.Second, func() bool {
		a.mu.Lock()
		cut := a.budget == 0
		a.mu.Unlock()
		return cut || done(t, a)
	})
	a.quiet()
	first.stop()
	a.mu.Lock()
	died := a.budget == 0
	a.budget = -1
	a.mu.Unlock()
	if !died && !done(t, a) {
		t.Fatalf("%s: not done, though no write failed: %q", name, a.written())
	}
	second := run(t, a, p...)
	eventually(t, fmt.Sprintf("%s done after a death behind write %d (%q)", name, survived, a.written()), func() bool { return done(t, a) })
	a.quiet()
	if !done(t, a) {
		t.Fatalf("%s: done and undone: %q", name, a.written())
	}
	second.stop()
	return died
}
