package claim

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"berth.io/berth/internal/plugin"
	clienttesting "k8s.io/client-go/testing"
)

func isBoundTo(t *testing.T, a *api, claim, volume string) bool {
	t.Helper()
	c, pv := a.claim(t, claim), a.volume(t, volume)
	return c != nil && pv != nil && c.Spec.VolumeName == volume && c.Status.Phase == v1.ClaimBound &&
		pv.Spec.ClaimRef != nil && pv.Spec.ClaimRef.UID == c.UID && pv.Status.Phase == v1.VolumeBound
}

// wroteBinding says whether got are the writes of a binding: first those before it, then the claim's two in their order
// and, beside these, the volume's status.
func wroteBinding(got []string, before ...string) bool {
	const phase = "patch persistentvolumes/status"
	at := slices.Index(got, phase)
	if at < len(before) {
		return false
	}
	rest := slices.Delete(slices.Clone(got), at, at+1)
	return slices.Equal(rest, append(before, "patch persistentvolumeclaims", "patch persistentvolumeclaims/status"))
}

// A static volume is bound in four writes, in upstream's order but for the volume's phase, with upstream's annotations, and nothing follows.
func TestStaticBindIsFourWrites(t *testing.T) {
	a := newAPI(t, volume("v", "2Gi"), claim("c", "1Gi"))
	r := run(t, a)
	eventually(t, "bound", func() bool { return isBoundTo(t, a, "c", "v") })
	a.quiet()
	if got := a.written(); !wroteBinding(got, "patch persistentvolumes") {
		t.Errorf("writes %q", got)
	}
	c, pv := a.claim(t, "c"), a.volume(t, "v")
	for key, o := range map[string]metav1.ObjectMeta{
		storagehelpers.AnnBindCompleted: c.ObjectMeta, storagehelpers.AnnBoundByController: c.ObjectMeta,
	} {
		if o.Annotations[key] != "yes" {
			t.Errorf("claim lacks %s", key)
		}
	}
	if pv.Annotations[storagehelpers.AnnBoundByController] != "yes" {
		t.Error("volume lacks bound-by-controller")
	}
	if got := c.Status.Capacity[v1.ResourceStorage]; got.String() != "2Gi" {
		t.Errorf("claim has %s", got.String())
	}
	_ = r
}

// The hot path: from the event of a provisioned volume to a bound claim there are three writes and no more.
func TestProvisionedVolumeIsThreeWrites(t *testing.T) {
	a := newAPI(t, class("fast", "x.csi.example.com", storagev1.VolumeBindingImmediate), claim("c", "1Gi", ofClass("fast")))
	r := run(t, a)
	r.said(t, "Normal ExternalProvisioning")
	c := a.claim(t, "c")
	if c.Annotations[storagehelpers.AnnStorageProvisioner] != "x.csi.example.com" || c.Annotations[storagehelpers.AnnBetaStorageProvisioner] != "x.csi.example.com" {
		t.Fatalf("annotations %v", c.Annotations)
	}
	a.quiet()
	if got := a.written(); !slices.Equal(got, []string{"patch persistentvolumeclaims"}) {
		t.Fatalf("hand-over wrote %q", got)
	}
	a.mu.Lock()
	a.writes = nil
	a.mu.Unlock()
	a.add(t, volume("pvc-1", "1Gi", volumeOfClass("fast"), claimedBy("c", string(c.UID)), inPhase(v1.VolumePending),
		volumeAnnotated(storagehelpers.AnnDynamicallyProvisioned, "x.csi.example.com"), reclaimed(v1.PersistentVolumeReclaimDelete)))
	eventually(t, "bound", func() bool { return isBoundTo(t, a, "c", "pvc-1") })
	a.quiet()
	if got := a.written(); !wroteBinding(got) {
		t.Errorf("writes %q", got)
	}
	if _, marked := a.volume(t, "pvc-1").Annotations[storagehelpers.AnnBoundByController]; marked {
		t.Error("a volume that its provisioner bound must not be marked as bound by the controller")
	}
}

// WaitForFirstConsumer: nothing is written until a node is chosen, then the claim is handed over at once.
func TestWaitForFirstConsumer(t *testing.T) {
	a := newAPI(t, class("late", "x.csi.example.com", storagev1.VolumeBindingWaitForFirstConsumer),
		volume("tempting", "1Gi", volumeOfClass("late")), claim("c", "1Gi", ofClass("late")))
	r := run(t, a)
	r.said(t, "Normal WaitForFirstConsumer waiting for first consumer to be created before binding")
	a.quiet()
	if got := a.written(); len(got) != 0 {
		t.Fatalf("wrote %q", got)
	}
	c := a.claim(t, "c")
	metav1.SetMetaDataAnnotation(&c.ObjectMeta, storagehelpers.AnnSelectedNode, "n1")
	if _, err := a.CoreV1().PersistentVolumeClaims("ns").Update(t.Context(), c, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.said(t, "Normal ExternalProvisioning")
	if a.claim(t, "c").Annotations[storagehelpers.AnnStorageProvisioner] == "" {
		t.Error("not handed over")
	}
}

func TestUnknownClassThenCreated(t *testing.T) {
	a := newAPI(t, class("good", "x.csi.example.com", storagev1.VolumeBindingImmediate), claim("c", "1Gi", ofClass("bad")))
	r := run(t, a)
	r.said(t, `Warning ProvisioningFailed storageclass.storage.k8s.io "bad" not found: create it or name one of good`)
	a.add(t, class("bad", "x.csi.example.com", storagev1.VolumeBindingImmediate))
	r.said(t, "Normal ExternalProvisioning")
}

func TestNoProvisionerSaysWhatToDo(t *testing.T) {
	a := newAPI(t, class("local", "kubernetes.io/no-provisioner", storagev1.VolumeBindingImmediate), claim("c", "1Gi", ofClass("local")))
	r := run(t, a)
	r.said(t, "Warning ProvisioningFailed no volume plugin matched name: kubernetes.io/no-provisioner")
	a.add(t, volume("v", "1Gi", volumeOfClass("local")))
	eventually(t, "bound", func() bool { return isBoundTo(t, a, "c", "v") })
}

// A claim without a class gets the default one, also when that comes later; the legacy annotation counts as a class.
func TestDefaultClassIsRetroactive(t *testing.T) {
	legacy := claim("legacy", "1Gi", noClass, annotated(v1.BetaStorageClassAnnotation, ""))
	a := newAPI(t, claim("c", "1Gi", noClass), legacy)
	r := run(t, a)
	r.said(t, "Normal FailedBinding no persistent volumes available for this claim and no storage class is set")
	a.add(t, class("std", "x.csi.example.com", storagev1.VolumeBindingImmediate, isDefault))
	eventually(t, "class", func() bool {
		c := a.claim(t, "c")
		return c.Spec.StorageClassName != nil && *c.Spec.StorageClassName == "std" && c.Annotations[storagehelpers.AnnStorageProvisioner] != ""
	})
	a.quiet()
	if c := a.claim(t, "legacy"); c.Spec.StorageClassName != nil {
		t.Errorf("the claim with the legacy annotation got class %q", *c.Spec.StorageClassName)
	}
}

func TestClaimNamesVolume(t *testing.T) {
	a := newAPI(t, claim("c", "1Gi", naming("v")), claim("big", "9Gi", naming("small")), volume("small", "1Gi"))
	r := run(t, a)
	r.said(t, `Warning VolumeMismatch Cannot bind to requested volume "small": requested PV is too small`)
	a.add(t, volume("v", "1Gi"))
	eventually(t, "bound", func() bool { return isBoundTo(t, a, "c", "v") })
	if _, ok := a.claim(t, "c").Annotations[storagehelpers.AnnBoundByController]; ok {
		t.Error("the user bound this claim, not the controller")
	}
}

func TestLostAndHealed(t *testing.T) {
	a := newAPI(t, volume("v", "1Gi"), claim("c", "1Gi"))
	r := run(t, a)
	eventually(t, "bound", func() bool { return isBoundTo(t, a, "c", "v") })
	if err := a.Tracker().Delete(v1.SchemeGroupVersion.WithResource("persistentvolumes"), "", "v"); err != nil {
		t.Fatal(err)
	}
	r.said(t, "Warning ClaimLost")
	if c := a.claim(t, "c"); c.Status.Phase != v1.ClaimLost || c.Status.Capacity != nil {
		t.Errorf("status %+v", c.Status)
	}
	again := volume("v", "1Gi")
	again.UID = "another"
	a.add(t, again)
	eventually(t, "healed", func() bool { return isBoundTo(t, a, "c", "v") })
}

// Clearing claimRef by hand gives the volume to whoever waits; the one that had it gets it back if nobody does.
func TestReleasedVolumeIsCleared(t *testing.T) {
	a := newAPI(t, volume("v", "1Gi", claimedBy("gone", "uid-gone"), inPhase(v1.VolumeReleased)), claim("c", "1Gi"))
	r := run(t, a)
	r.said(t, "Normal FailedBinding")
	if _, err := a.CoreV1().PersistentVolumes().Patch(t.Context(), "v", types.MergePatchType, []byte(`{"spec":{"claimRef":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "bound", func() bool { return isBoundTo(t, a, "c", "v") })
}

func TestReclaim(t *testing.T) {
	mock := func(err error) *mockPlugin { return &mockPlugin{err: err} }
	for name, tc := range map[string]struct {
		policy v1.PersistentVolumeReclaimPolicy
		plugin *mockPlugin
		phase  v1.PersistentVolumePhase // "" is deleted
		event  string
	}{
		"retain":               {policy: v1.PersistentVolumeReclaimRetain, phase: v1.VolumeReleased},
		"delete":               {policy: v1.PersistentVolumeReclaimDelete, plugin: mock(nil)},
		"delete, no plugin":    {policy: v1.PersistentVolumeReclaimDelete, phase: v1.VolumeFailed, event: "Warning VolumeFailedDelete error getting deleter volume plugin"},
		"delete fails":         {policy: v1.PersistentVolumeReclaimDelete, plugin: mock(errors.New("broken")), phase: v1.VolumeFailed, event: "Warning VolumeFailedDelete broken"},
		"delete, still in use": {policy: v1.PersistentVolumeReclaimDelete, plugin: mock(plugin.ErrInUse), phase: v1.VolumeReleased, event: "Normal VolumeDelete"},
		"recycle":              {policy: v1.PersistentVolumeReclaimRecycle, plugin: mock(nil), phase: v1.VolumeAvailable, event: "Normal VolumeRecycled"},
		"recycle, no plugin":   {policy: v1.PersistentVolumeReclaimRecycle, phase: v1.VolumeFailed, event: "Warning VolumeFailedRecycle No recycler plugin found"},
		"recycle fails":        {policy: v1.PersistentVolumeReclaimRecycle, plugin: mock(errors.New("broken")), phase: v1.VolumeFailed, event: "Warning VolumeFailedRecycle Recycle failed: broken"},
		"unknown":              {policy: "Shred", phase: v1.VolumeFailed, event: "Warning VolumeUnknownReclaimPolicy"},
	} {
		t.Run(name, func(t *testing.T) {
			pv := volume("v", "1Gi", reclaimed(tc.policy), volumeAnnotated(storagehelpers.AnnBoundByController, "yes"), claimedBy("c", "uid-c"), inPhase(v1.VolumeBound))
			c := claim("c", "1Gi", naming("v"), annotated(storagehelpers.AnnBindCompleted, "yes"))
			c.Status.Phase, c.Status.AccessModes, c.Status.Capacity = v1.ClaimBound, pv.Spec.AccessModes, pv.Spec.Capacity
			a := newAPI(t, pv, c)
			var plugins []plugin.Plugin
			if tc.plugin != nil {
				plugins = append(plugins, tc.plugin)
			}
			r := run(t, a, plugins...)
			if err := a.CoreV1().PersistentVolumeClaims("ns").Delete(t.Context(), "c", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			if tc.event != "" {
				r.said(t, tc.event)
			}
			eventually(t, "phase "+string(tc.phase), func() bool {
				pv := a.volume(t, "v")
				if tc.phase == "" {
					return pv == nil
				}
				return pv != nil && pv.Status.Phase == tc.phase
			})
			if tc.phase == v1.VolumeAvailable && a.volume(t, "v").Spec.ClaimRef != nil {
				t.Error("recycled volume keeps its claimRef")
			}
		})
	}
}

// A Failed volume is tried again until it works, and Failed is never overwritten by Released.
func TestFailedDeleteIsRetried(t *testing.T) {
	p := &mockPlugin{err: errors.New("broken"), heals: 3}
	a := newAPI(t, volume("v", "1Gi", reclaimed(v1.PersistentVolumeReclaimDelete), claimedBy("gone", "uid-gone"), inPhase(v1.VolumeReleased)))
	r := run(t, a, p)
	r.said(t, "Warning VolumeFailedDelete broken")
	eventually(t, "deleted", func() bool { return a.volume(t, "v") == nil })
	if n := len(slices.DeleteFunc(a.written(), func(w string) bool { return w != "patch persistentvolumes/status" })); n != 1 {
		t.Errorf("phase written %d times", n)
	}
}

func TestRecycleWaitsForPods(t *testing.T) {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns"}, Spec: v1.PodSpec{NodeName: "n", Volumes: []v1.Volume{{
		Name: "d", VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "gone"}}}}}}
	a := newAPI(t, pod, volume("v", "1Gi", reclaimed(v1.PersistentVolumeReclaimRecycle), claimedBy("gone", "uid-gone"), inPhase(v1.VolumeReleased)))
	r := run(t, a, &mockPlugin{})
	r.said(t, "Normal VolumeFailedRecycle Volume is used by pods: ns/p")
	// The fake loses what happens between an informer's list and its watch.
	eventually(t, "pods watched", func() bool {
		return slices.ContainsFunc(a.Actions(), func(x clienttesting.Action) bool { return x.Matches("watch", "pods") })
	})
	if err := a.Tracker().Delete(v1.SchemeGroupVersion.WithResource("pods"), "ns", "p"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "recycled", func() bool { return a.volume(t, "v").Status.Phase == v1.VolumeAvailable })
}

func TestProvisionInTree(t *testing.T) {
	sc := class("tree", "kubernetes.io/mock", storagev1.VolumeBindingImmediate)
	t.Run("works, bound, deleted with its claim", func(t *testing.T) {
		a := newAPI(t, sc.DeepCopy(), claim("c", "1Gi", ofClass("tree")))
		r := run(t, a, &mockPlugin{})
		r.said(t, "Normal ProvisioningSucceeded Successfully provisioned volume pvc-uid-c using kubernetes.io/mock")
		eventually(t, "bound", func() bool { return isBoundTo(t, a, "c", "pvc-uid-c") })
		pv := a.volume(t, "pvc-uid-c")
		if pv.Annotations[storagehelpers.AnnDynamicallyProvisioned] != "kubernetes.io/mock" || !slices.Contains(pv.Finalizers, storagehelpers.PVDeletionInTreeProtectionFinalizer) {
			t.Errorf("volume %+v", pv.ObjectMeta)
		}
		if err := a.CoreV1().PersistentVolumeClaims("ns").Delete(t.Context(), "c", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "deleted", func() bool { return a.volume(t, "pvc-uid-c") == nil })
	})
	t.Run("fails, then another node is asked for", func(t *testing.T) {
		a := newAPI(t, sc.DeepCopy(), claim("c", "1Gi", ofClass("tree"), annotated(storagehelpers.AnnSelectedNode, "n")),
			&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
		r := run(t, a, &mockPlugin{err: errors.New("no space")})
		r.said(t, `Warning ProvisioningFailed Failed to provision volume with StorageClass "tree": no space`)
		if _, ok := a.claim(t, "c").Annotations[storagehelpers.AnnSelectedNode]; ok {
			t.Error("the node is still selected")
		}
	})
	t.Run("mount options refused", func(t *testing.T) {
		sc := sc.DeepCopy()
		sc.MountOptions = []string{"ro"}
		a := newAPI(t, sc, claim("c", "1Gi", ofClass("tree")))
		run(t, a, &mockPlugin{}).said(t, "Warning ProvisioningFailed Mount options are not supported")
	})
}

// A claim that is being deleted stays while a pod on a node uses it, and goes with the pod.
func TestClaimProtection(t *testing.T) {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns"}, Spec: v1.PodSpec{NodeName: "n", Volumes: []v1.Volume{{
		Name: "d", VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}}}}
	bare := claim("bare", "1Gi")
	bare.Finalizers = nil
	a := newAPI(t, pod, claim("c", "1Gi"), bare, claim("unused", "1Gi"))
	run(t, a)
	eventually(t, "protected", func() bool { return slices.Contains(a.claim(t, "bare").Finalizers, claimProtection) })
	for _, name := range []string{"c", "unused"} {
		if err := a.CoreV1().PersistentVolumeClaims("ns").Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "unused claim goes", func() bool { return a.claim(t, "unused") == nil })
	if a.claim(t, "c") == nil {
		t.Fatal("a claim in use has gone")
	}
	if err := a.Tracker().Delete(v1.SchemeGroupVersion.WithResource("pods"), "ns", "p"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "claim goes with its pod", func() bool { return a.claim(t, "c") == nil })
}

// A claim that somebody else's finalizer keeps is asked for pods once: when its protection is off, later events of it
// (other finalizers that go) begin neither another live list nor another write.
func TestClaimThatWasLetGoIsNotAskedForAgain(t *testing.T) {
	const other = "example.com/other"
	c := claim("c", "1Gi")
	c.Finalizers = []string{claimProtection, other}
	a := newAPI(t, c)
	var lists atomic.Int32
	live := false
	a.PrependReactor("list", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		if live {
			lists.Add(1)
		}
		return false, nil, nil
	})
	run(t, a)
	a.quiet()
	a.Lock() // the fake's own lock, under which it reacts
	live = true
	a.Unlock()
	if err := a.CoreV1().PersistentVolumeClaims("ns").Delete(t.Context(), "c", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "let go", func() bool { return slices.Equal(a.claim(t, "c").Finalizers, []string{other}) })
	if _, err := a.CoreV1().PersistentVolumeClaims("ns").Patch(t.Context(), "c", types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	a.quiet()
	if n := lists.Load(); n != 1 {
		t.Errorf("%d live lists of pods", n)
	}
	if _, err := a.CoreV1().PersistentVolumeClaims("ns").Patch(t.Context(), "c", types.MergePatchType, []byte(`{"metadata":{"finalizers":[]}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "gone", func() bool { return a.claim(t, "c") == nil })
}

// A provisioner that has deleted a volume's data takes the finalizers off before it deletes the object: nobody puts the
// protection on again meanwhile. A volume that is taken back into use is protected.
func TestReleasedVolumeWithoutProtection(t *testing.T) {
	bare := func(pv *v1.PersistentVolume) { pv.Finalizers = nil }
	a := newAPI(t, volume("going", "1Gi", claimedBy("c", "gone"), inPhase(v1.VolumeReleased), reclaimed(v1.PersistentVolumeReclaimDelete), bare,
		volumeAnnotated(storagehelpers.AnnDynamicallyProvisioned, "csi.example.com")),
		volume("kept", "1Gi", claimedBy("c", "gone"), inPhase(v1.VolumeReleased), reclaimed(v1.PersistentVolumeReclaimRetain), bare))
	run(t, a)
	eventually(t, "the kept one is protected", func() bool { return slices.Contains(a.volume(t, "kept").Finalizers, volumeProtection) })
	a.quiet()
	if f := a.volume(t, "going").Finalizers; len(f) != 0 {
		t.Errorf("finalizers %q on a volume that is going", f)
	}
	if _, err := a.CoreV1().PersistentVolumes().Patch(t.Context(), "going", types.MergePatchType, []byte(`{"spec":{"claimRef":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "protected again", func() bool {
		pv := a.volume(t, "going")
		return pv.Status.Phase == v1.VolumeAvailable && slices.Contains(pv.Finalizers, volumeProtection)
	})
}

func TestVolumeAndClassProtection(t *testing.T) {
	vac := "gold"
	a := newAPI(t, &storagev1.VolumeAttributesClass{ObjectMeta: metav1.ObjectMeta{Name: vac}, DriverName: "x"},
		volume("v", "1Gi", func(pv *v1.PersistentVolume) { pv.Spec.VolumeAttributesClassName = &vac; pv.Finalizers = nil }))
	run(t, a)
	class := func() *storagev1.VolumeAttributesClass {
		c, _ := a.StorageV1().VolumeAttributesClasses().Get(t.Context(), vac, metav1.GetOptions{})
		return c
	}
	eventually(t, "class protected", func() bool { return slices.Contains(class().Finalizers, vacProtection) })
	eventually(t, "volume protected", func() bool { return slices.Contains(a.volume(t, "v").Finalizers, volumeProtection) })
	if err := a.StorageV1().VolumeAttributesClasses().Delete(t.Context(), vac, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	a.quiet()
	if c := class(); c == nil || len(c.Finalizers) == 0 {
		t.Fatal("a class in use has gone")
	}
	if err := a.CoreV1().PersistentVolumes().Delete(t.Context(), "v", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "volume goes", func() bool { return a.volume(t, "v") == nil })
	eventually(t, "class goes", func() bool { c := class(); return c == nil || c.Name == "" })
}

func TestEphemeralClaims(t *testing.T) {
	pod := func(name string) *v1.Pod {
		return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: types.UID("uid-" + name)}, Spec: v1.PodSpec{Volumes: []v1.Volume{{
			Name: "d", VolumeSource: v1.VolumeSource{Ephemeral: &v1.EphemeralVolumeSource{VolumeClaimTemplate: &v1.PersistentVolumeClaimTemplate{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}, Spec: claim("", "1Gi").Spec}}}}}}}
	}
	a := newAPI(t, pod("p"), pod("q"), claim("q-d", "1Gi"))
	r := run(t, a)
	eventually(t, "claim made", func() bool { return a.claim(t, "p-d") != nil })
	if c := a.claim(t, "p-d"); !metav1.IsControlledBy(c, pod("p")) || c.Labels["a"] != "b" {
		t.Errorf("claim %+v", c.ObjectMeta)
	}
	r.said(t, "Warning FailedBinding ephemeral volume d: PVC ns/q-d was not created for pod ns/q (pod is not owner)")
}

func TestExpansionIsAnnounced(t *testing.T) {
	a := newAPI(t, volume("v", "1Gi", func(pv *v1.PersistentVolume) {
		pv.Spec.PersistentVolumeSource = v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{Driver: "x", VolumeHandle: "h"}}
	}), claim("c", "1Gi"))
	r := run(t, a)
	eventually(t, "bound", func() bool { return isBoundTo(t, a, "c", "v") })
	if _, err := a.CoreV1().PersistentVolumeClaims("ns").Patch(t.Context(), "c", types.MergePatchType, []byte(`{"spec":{"resources":{"requests":{"storage":"3Gi"}}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	r.said(t, "Normal ExternalExpanding waiting for an external controller to expand this PVC")
}

// mockPlugin provisions, deletes and recycles in memory, and fails as told; after heals failures it works.
type mockPlugin struct {
	err   error
	heals int
	calls int
}

func (p *mockPlugin) result() error {
	p.calls++
	if p.heals > 0 && p.calls > p.heals {
		return nil
	}
	return p.err
}

func (p *mockPlugin) Name() string { return "kubernetes.io/mock" }
func (p *mockPlugin) Supports(v *plugin.Volume) bool {
	return v.PV != nil && v.PV.Spec.HostPath != nil
}
func (p *mockPlugin) UniqueName(v *plugin.Volume) (v1.UniqueVolumeName, error) {
	return v1.UniqueVolumeName(v.SpecName()), nil
}
func (p *mockPlugin) SupportsMountOptions() bool { return false }
func (p *mockPlugin) Provision(_ context.Context, r plugin.ProvisionRequest) (*v1.PersistentVolume, error) {
	pv := volume(r.VolumeName, r.Claim.Spec.Resources.Requests.Storage().String(), reclaimed(r.ReclaimPolicy))
	pv.Status.Phase = ""
	return pv, p.result()
}
func (p *mockPlugin) Delete(context.Context, *v1.PersistentVolume) error { return p.result() }
func (p *mockPlugin) Recycle(_ context.Context, _ *v1.PersistentVolume, say func(string, string)) error {
	say(v1.EventTypeNormal, strings.ToLower("Scrubbing"))
	return p.result()
}

// growingPlugin grows volumes too; onNode leaves the filesystem to the node.
type growingPlugin struct {
	mockPlugin
	onNode bool
}

func (p *growingPlugin) ExpandVolume(_ context.Context, _ *v1.PersistentVolume, size, _ resource.Quantity) (resource.Quantity, error) {
	return size, p.result()
}
func (p *growingPlugin) RequiresFSResize() bool { return p.onNode }

// TestMarkGoesWhenTheFilesystemHasGrown: the node has written the claim's new size.
func TestMarkGoesWhenTheFilesystemHasGrown(t *testing.T) {
	c := claim("c", "3Gi", naming("v"), annotated(storagehelpers.AnnBindCompleted, "yes"))
	c.Status.Phase = v1.ClaimBound
	c.Status.Capacity = v1.ResourceList{v1.ResourceStorage: resource.MustParse("3Gi")}
	a := newAPI(t, c, volume("v", "3Gi", claimedBy("c", "uid-c"), inPhase(v1.VolumeBound), volumeAnnotated(preResizeCapacity, "1Gi")))
	run(t, a, &growingPlugin{onNode: true})
	eventually(t, "mark gone", func() bool { _, marked := a.volume(t, "v").Annotations[preResizeCapacity]; return !marked })
}

// TestGrowthInTreeFails: the user is told, nothing is written, and it is tried again.
func TestGrowthInTreeFails(t *testing.T) {
	c := claim("c", "3Gi", naming("v"), annotated(storagehelpers.AnnBindCompleted, "yes"))
	c.Status.Phase = v1.ClaimBound
	c.Status.Capacity = v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}
	a := newAPI(t, c, volume("v", "1Gi", claimedBy("c", "uid-c"), inPhase(v1.VolumeBound)))
	r := run(t, a, &growingPlugin{mockPlugin: mockPlugin{err: errors.New("no room"), heals: 1}})
	r.said(t, "Warning VolumeResizeFailed no room")
	eventually(t, "grown at the second try", func() bool { return a.claim(t, "c").Status.Capacity.Storage().String() == "3Gi" })
}
