package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"

	"berth.io/berth/internal/plugin"
)

func objects(groups ...[]runtime.Object) (out []runtime.Object) {
	for _, g := range groups {
		out = append(out, g...)
	}
	return out
}

func one(o ...runtime.Object) []runtime.Object { return o }

// A pod on a node: attached, told to the node and to the pod. The pod goes: first out of the status, then detached.
func TestAttachAndDetachInOrder(t *testing.T) {
	w := start(t, nil, objects(one(machine("n")), bound("a", "vol", v1.ReadWriteOnce))...)
	w.api.CoreV1().Pods("a").Create(t.Context(), user("a", "pod", "n", "vol"), metav1.CreateOptions{})
	w.eventually("reported", func() bool { return slices.Equal(w.reported("n"), []string{"vol"}) })
	w.eventually("the event", func() bool {
		return w.event(`Normal SuccessfulAttachVolume AttachVolume.Attach succeeded for volume "vol"`)
	})
	if h := w.c.Holders(); len(h) != 0 {
		t.Errorf("holders of nothing: %v", h)
	}
	w.changeNode("n", uses("vol"))
	w.deletePod("a", "pod")
	w.eventually("somebody waits", func() bool { h := w.c.Holders(); return len(h) == 1 && h[0].Step == "node n still uses the volume" })
	if c := w.backend.calls(); len(c) != 1 {
		t.Fatalf("detached while used: %v", c)
	}
	w.changeNode("n", uses())
	w.eventually("detached", func() bool { return slices.Contains(w.backend.calls(), "detach vol n") })
	w.eventually("nothing left", func() bool { return len(w.c.Holders()) == 0 && len(w.reported("n")) == 0 })
}

// The claim is bound after its pod came to the node.
func TestPodThatWaitsForItsClaim(t *testing.T) {
	o := bound("a", "vol", v1.ReadWriteOnce)
	claim := o[0].(*v1.PersistentVolumeClaim)
	claim.Status.Phase = v1.ClaimPending
	w := start(t, nil, objects(one(machine("n"), user("a", "pod", "n", "vol")), o)...)
	w.quiet()
	if c := w.backend.calls(); len(c) != 0 {
		t.Fatalf("attached an unbound claim: %v", c)
	}
	claim = claim.DeepCopy()
	claim.Status.Phase = v1.ClaimBound
	w.api.CoreV1().PersistentVolumeClaims("a").Update(t.Context(), claim, metav1.UpdateOptions{})
	w.eventually("reported", func() bool { return len(w.reported("n")) == 1 })
}

// The backend answers later: the VolumeAttachment's change wakes the entry, nothing polls.
func TestPendingAttachIsWokenByItsObject(t *testing.T) {
	w := start(t, func(w *world) { w.backend.pending = true }, objects(one(machine("n"), user("a", "pod", "n", "vol")), bound("a", "vol", v1.ReadWriteOnce))...)
	w.eventually("asked", func() bool { return len(w.backend.calls()) == 1 })
	w.quiet()
	if n := len(w.backend.calls()); n != 1 {
		t.Fatalf("asked %d times without an event", n)
	}
	w.backend.set(func() { w.backend.on[key{"fake/vol", "n"}] = true })
	va := attachmentOf("vol", "n")
	va.Status.Attached = true
	w.api.StorageV1().VolumeAttachments().Create(t.Context(), va, metav1.CreateOptions{})
	w.eventually("reported", func() bool { return len(w.reported("n")) == 1 })

	// Somebody deletes the object while the volume is wanted: it is asked for again.
	w.backend.set(func() { delete(w.backend.on, key{"fake/vol", "n"}); w.backend.pending = false })
	w.api.StorageV1().VolumeAttachments().Delete(t.Context(), va.Name, metav1.DeleteOptions{})
	w.eventually("attached again", func() bool { return len(w.backend.calls()) == 2 })
}

// An exclusive volume on another node: refused in words, without a foreign namespace's pod, and attached the moment
// that it is free.
func TestMultiAttachIsRefusedUntilFree(t *testing.T) {
	w := start(t, nil, objects(one(machine("n1"), machine("n2"), user("a", "first", "n1", "vol")), bound("a", "vol", v1.ReadWriteOnce))...)
	w.eventually("first attach", func() bool { return len(w.reported("n1")) == 1 })
	w.api.CoreV1().Pods("a").Create(t.Context(), user("a", "second", "n2", "vol"), metav1.CreateOptions{})
	w.eventually("the refusal", func() bool {
		return w.event(`Warning FailedAttachVolume Multi-Attach error for volume "vol" Volume is already used by pod(s) first`)
	})
	w.deletePod("a", "first")
	w.eventually("the move", func() bool { return len(w.reported("n2")) == 1 })
	if c := w.backend.calls(); !slices.Equal(c, []string{"attach vol n1", "detach vol n1", "attach vol n2"}) {
		t.Errorf("calls %v", c)
	}
}

func TestUsersAreNamedInTheirOwnNamespaceOnly(t *testing.T) {
	for _, c := range []struct {
		here   []string
		others int
		say    string
	}{
		{nil, 0, "Volume is already exclusively attached to one node and can't be attached to another"},
		{[]string{"x", "y"}, 0, "Volume is already used by pod(s) x, y"},
		{nil, 2, "Volume is already used by 2 pod(s) in different namespaces"},
		{[]string{"x"}, 1, "Volume is already used by pod(s) x and 1 pod(s) in different namespaces"},
	} {
		if got := usedBy(c.here, c.others); got != c.say {
			t.Errorf("got %q", got)
		}
	}
}

// A shared volume goes to both nodes at once.
func TestSharedVolumeIsAttachedTwice(t *testing.T) {
	w := start(t, nil, objects(one(machine("n1"), machine("n2"), user("a", "p1", "n1", "vol"), user("a", "p2", "n2", "vol")), bound("a", "vol", v1.ReadWriteMany))...)
	w.eventually("both", func() bool { return len(w.reported("n1")) == 1 && len(w.reported("n2")) == 1 })
}

// After a start: what pods use stays, what a node has without a pod goes, and so does a dangling attachment that no
// node's status tells of.
func TestRestart(t *testing.T) {
	dangling := bound("a", "dangling", v1.ReadWriteOnce)
	w := start(t, func(w *world) {
		w.backend.on = map[key]bool{{"fake/kept", "n"}: true, {"fake/left", "n"}: true, {"fake/dangling", "n"}: true}
		w.backend.list = []plugin.AttachedVolume{{Name: "fake/kept", Node: "n"}, {Name: "fake/left", Node: "n"},
			{Name: "fake/dangling", Node: "n", Volume: &plugin.Volume{PV: dangling[1].(*v1.PersistentVolume)}, Uncertain: true}}
	}, objects(one(machine("n", has("kept", "left")), user("a", "pod", "n", "kept")), bound("a", "kept", v1.ReadWriteOnce), dangling)...)
	w.eventually("both gone", func() bool {
		c := w.backend.calls()
		slices.Sort(c)
		return slices.Equal(c, []string{"detach dangling n", "detach left n"})
	})
	if r := w.reported("n"); !slices.Equal(r, []string{"kept"}) {
		t.Errorf("reported %v", r)
	}
}

// The node's status has it, the backend does not: it was taken away while nobody looked, and is attached again.
func TestRestartFindsALostAttachment(t *testing.T) {
	other := bound("a", "other", v1.ReadWriteOnce)
	w := start(t, func(w *world) {
		w.backend.list = []plugin.AttachedVolume{{Name: "fake/other", Node: "n", Volume: &plugin.Volume{PV: other[1].(*v1.PersistentVolume)}}}
		w.backend.on[key{"fake/other", "n"}] = true
	}, objects(one(machine("n", has("vol")), user("a", "pod", "n", "vol", "other")), bound("a", "vol", v1.ReadWriteOnce), other)...)
	w.eventually("attached", func() bool { return len(w.backend.calls()) > 0 })
	w.eventually("both reported", func() bool { return slices.Equal(w.reported("n"), []string{"other", "vol"}) })
}

// Fifty volumes at once cost far fewer than fifty writes of the node's status.
func TestNodeStatusIsCoalesced(t *testing.T) {
	o := one(machine("n"))
	for i := range 50 {
		name := fmt.Sprintf("v%02d", i)
		o = append(o, bound("a", name, v1.ReadWriteOnce)...)
		o = append(o, user("a", name, "n", name))
	}
	w := start(t, nil, o...)
	w.eventually("all", func() bool { return len(w.reported("n")) == 50 })
	if n := w.nodeWrites(); n > 30 {
		t.Errorf("%d writes", n)
	}
}

func TestForcedDetach(t *testing.T) {
	for name, c := range map[string]struct {
		node   func(*v1.Node)
		change func(*Options)
	}{
		"out of service": {func(n *v1.Node) {
			notReady(n)
			n.Spec.Taints = []v1.Taint{{Key: v1.TaintNodeOutOfService, Effect: v1.TaintEffectNoExecute}}
		}, nil},
		"by time":     {notReady, func(o *Options) { o.ForceDetachAfter = 100 * time.Millisecond }},
		"on evidence": {func(*v1.Node) {}, func(o *Options) { o.Evidence = func(*v1.Node) string { return "it rebooted" } }},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, func(w *world) {
				if c.change != nil {
					c.change(&w.options)
				}
				w.backend.on[key{"fake/vol", "n"}] = true
			}, objects(one(machine("n", has("vol"), uses("vol"), c.node)), bound("a", "vol", v1.ReadWriteOnce))...)
			w.eventually("detached", func() bool { return slices.Contains(w.backend.calls(), "detach vol n") })
		})
	}
}

// A node that is lost for less than the limit keeps the volumes that it uses, also when its object is deleted: nothing says that
// the machine has let go of them. What it does not use goes at once.
func TestLostNodeKeepsItsVolumes(t *testing.T) {
	w := start(t, func(w *world) {
		w.backend.on[key{"fake/vol", "n"}] = true
		w.backend.on[key{"fake/free", "n"}] = true
	}, objects(one(machine("n", has("vol", "free"), uses("vol", "free"), notReady)), append(bound("a", "vol", v1.ReadWriteOnce), bound("a", "free", v1.ReadWriteOnce)...))...)
	w.quiet()
	if c := w.backend.calls(); len(c) != 0 {
		t.Fatalf("calls %v", c)
	}
	w.changeNode("n", func(n *v1.Node) { n.Status.VolumesInUse = []v1.UniqueVolumeName{"fake/vol"} })
	w.eventually("the free one detached", func() bool { return slices.Contains(w.backend.calls(), "detach free n") })
	w.api.CoreV1().Nodes().Delete(t.Context(), "n", metav1.DeleteOptions{})
	w.quiet()
	if slices.Contains(w.backend.calls(), "detach vol n") {
		t.Error("detached while it is mounted")
	}
}

// Somebody deletes the Node object of a machine that lives: its pods run on, and nothing is taken from under them.
func TestDeletedNodeObjectDetachesNothingFromRunningPods(t *testing.T) {
	w := start(t, nil, objects(one(machine("n", uses("vol")), user("a", "pod", "n", "vol")), bound("a", "vol", v1.ReadWriteOnce))...)
	w.eventually("attached", func() bool { return len(w.reported("n")) == 1 })
	w.api.CoreV1().Nodes().Delete(t.Context(), "n", metav1.DeleteOptions{})
	w.quiet()
	if _, err := w.api.CoreV1().Nodes().Create(t.Context(), machine("n"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("reported on the new object", func() bool { return len(w.reported("n")) == 1 })
	if slices.Contains(w.backend.calls(), "detach vol n") {
		t.Errorf("calls %v", w.backend.calls())
	}
}

// The detach fails, and nobody knows how far it came: the node is not told that the volume is attached before an attach has
// succeeded, also when a pod wants it again.
func TestFailedDetachLeavesItUncertain(t *testing.T) {
	w := start(t, func(w *world) {
		w.backend.on[key{"fake/vol", "n"}] = true
		w.backend.fails["detach"] = errors.New("busy")
	}, objects(one(machine("n", has("vol"))), bound("a", "vol", v1.ReadWriteOnce))...)
	w.eventually("two attempts", func() bool { return len(w.backend.calls()) >= 2 })
	w.quiet()
	for _, a := range w.api.Actions() {
		if p, ok := a.(clienttesting.PatchAction); ok && strings.Contains(string(p.GetPatch()), "fake/vol") {
			t.Errorf("told as attached after half a detach: %s", p.GetPatch())
		}
	}
	w.backend.set(func() { delete(w.backend.fails, "detach") })
	w.eventually("nothing left", func() bool { return len(w.c.Holders()) == 0 })
	for _, c := range w.backend.calls() {
		if c != "detach vol n" {
			t.Errorf("call %q", c)
		}
	}
}

// The attach fails, the pod is told once, and when the cause has gone the next attempt succeeds.
func TestFailedAttachIsToldAndRetried(t *testing.T) {
	w := start(t, func(w *world) { w.backend.fails["attach"] = errors.New("no path") },
		objects(one(machine("n"), user("a", "pod", "n", "vol")), bound("a", "vol", v1.ReadWriteOnce))...)
	w.eventually("the event", func() bool {
		return w.event(`Warning FailedAttachVolume AttachVolume.Attach failed for volume "vol" : no path`)
	})
	w.eventually("retries", func() bool { return len(w.backend.calls()) >= 3 })
	if w.event("no path") {
		t.Error("told twice")
	}
	w.backend.set(func() { delete(w.backend.fails, "attach") })
	w.eventually("reported", func() bool { return len(w.reported("n")) == 1 })
}

// A node whose agent attaches by itself is none of ours: neither its volumes nor its status are touched.
func TestUnmanagedNodeIsLeftAlone(t *testing.T) {
	n := machine("n", has("own"))
	n.Annotations = nil
	w := start(t, nil, objects(one(n, user("a", "pod", "n", "vol")), bound("a", "vol", v1.ReadWriteOnce))...)
	w.quiet()
	if len(w.backend.calls()) != 0 || w.nodeWrites() != 0 {
		t.Fatalf("calls %v, %d writes", w.backend.calls(), w.nodeWrites())
	}
	w.changeNode("n", func(n *v1.Node) {
		n.Annotations = map[string]string{annManaged: "true"}
		n.Status.VolumesAttached = nil
	})
	w.eventually("attached once it is ours", func() bool { return slices.Equal(w.reported("n"), []string{"vol"}) })
}

// Ended pods let go of their volumes, unless the node keeps them.
func TestTerminatedPods(t *testing.T) {
	keeping := machine("keeps")
	keeping.Annotations[annKeepsTerminated] = "true"
	w := start(t, nil, objects(one(machine("n"), keeping, user("a", "p1", "n", "v1"), user("a", "p2", "keeps", "v2")),
		bound("a", "v1", v1.ReadWriteOnce), bound("a", "v2", v1.ReadWriteOnce))...)
	w.eventually("both", func() bool { return len(w.reported("n")) == 1 && len(w.reported("keeps")) == 1 })
	for _, name := range []string{"p1", "p2"} {
		p, _ := w.api.CoreV1().Pods("a").Get(t.Context(), name, metav1.GetOptions{})
		p.Status.Phase = v1.PodSucceeded
		w.api.CoreV1().Pods("a").Update(t.Context(), p, metav1.UpdateOptions{})
	}
	w.eventually("one let go", func() bool { return len(w.reported("n")) == 0 })
	if len(w.reported("keeps")) != 1 {
		t.Error("the other let go, too")
	}
}

// A pod of the same name takes the deleted one's place between two looks.
func TestPodIsReplacedUnderItsName(t *testing.T) {
	w := start(t, nil, objects(one(machine("n"), user("a", "pod", "n", "v1")), bound("a", "v1", v1.ReadWriteOnce), bound("a", "v2", v1.ReadWriteOnce))...)
	w.eventually("first", func() bool { return slices.Equal(w.reported("n"), []string{"v1"}) })
	p := user("a", "pod", "n", "v2")
	p.UID = types.UID("another")
	w.api.CoreV1().Pods("a").Update(t.Context(), p, metav1.UpdateOptions{})
	w.eventually("second", func() bool { return slices.Equal(w.reported("n"), []string{"v2"}) })
}

// Someone empties the node's status: it is written again.
func TestNodeStatusIsRepaired(t *testing.T) {
	w := start(t, nil, objects(one(machine("n"), user("a", "pod", "n", "vol")), bound("a", "vol", v1.ReadWriteOnce))...)
	w.eventually("reported", func() bool { return len(w.reported("n")) == 1 })
	w.changeNode("n", func(n *v1.Node) { n.Status.VolumesAttached = nil })
	w.eventually("repaired", func() bool { return len(w.reported("n")) == 1 })
}

// The answer to our own write of the node's status tells first that a volume is not used any more. The event that
// follows is no news then, so the answer must wake the volume (three of a hundred detaches at once hung for ever).
func TestUseThatEndsInTheAnswerToOurOwnWrite(t *testing.T) {
	quiet := machine("n") // from the first write on, nothing is used any more, and no event says so
	w := start(t, func(w *world) {
		w.backend.on = map[key]bool{{"fake/v1", "n"}: true, {"fake/v2", "n"}: true}
		w.api.PrependReactor("patch", "nodes", func(a clienttesting.Action) (bool, runtime.Object, error) {
			n := quiet.DeepCopy()
			return true, n, json.Unmarshal(a.(clienttesting.PatchAction).GetPatch(), n)
		})
	}, objects(one(machine("n", has("v1", "v2"), uses("v1", "v2"))), bound("a", "v1", v1.ReadWriteOnce), bound("a", "v2", v1.ReadWriteOnce))...)
	w.eventually("both detached", func() bool { return len(w.c.Holders()) == 0 && len(w.backend.calls()) >= 2 })
}

// The volume leaves the node's status while the node still unmounts it, so that nothing is to be written when it has; the
// event that ends the use is a state read after that write, and no other question is asked before the detach.
func TestStatusIsWrittenWhileTheNodeUnmounts(t *testing.T) {
	w := start(t, nil, objects(one(machine("n"), user("a", "pod", "n", "vol")), bound("a", "vol", v1.ReadWriteOnce))...)
	w.eventually("reported", func() bool { return len(w.reported("n")) == 1 })
	w.changeNode("n", uses("vol"))
	w.deletePod("a", "pod")
	w.eventually("waits for the unmount, out of the status", func() bool {
		h := w.c.Holders()
		return len(w.reported("n")) == 0 && len(h) == 1 && h[0].Step == "node n still uses the volume"
	})
	w.quiet()
	if slices.Contains(w.backend.calls(), "detach vol n") {
		t.Fatal("detached while it is mounted")
	}
	w.api.ClearActions()
	w.changeNode("n", uses())
	w.eventually("detached", func() bool { return slices.Contains(w.backend.calls(), "detach vol n") })
	for _, a := range w.api.Actions() {
		if a.Matches("patch", "nodes/status") {
			t.Errorf("another write: %v", a)
		}
	}
}

// A kubelet that restarts may forget what it uses until it has read its pods again: on its nodes the volume stays in the
// status until it is unmounted, as upstream has it.
func TestKubeletsVolumeStaysInTheStatusUntilItIsUnmounted(t *testing.T) {
	bare := func(n *v1.Node) { ofKubelet(n); delete(n.Annotations, annKeepsUse) }
	for name, kind := range map[string]func(*v1.Node){"a kubelet's node": bare, "a node that a kubelet took over": ofKubelet} {
		t.Run(name, func(t *testing.T) {
			w := start(t, nil, objects(one(machine("n", kind)), bound("a", "vol", v1.ReadWriteOnce))...)
			w.api.CoreV1().Pods("a").Create(t.Context(), user("a", "pod", "n", "vol"), metav1.CreateOptions{})
			w.eventually("reported", func() bool { return len(w.reported("n")) == 1 })
			w.changeNode("n", uses("vol"))
			w.eventually("the use is known", func() bool {
				w.c.mu.Lock()
				defer w.c.mu.Unlock()
				return w.c.node("n").inUse["fake/vol"]
			})
			w.deletePod("a", "pod")
			w.eventually("waits for the unmount", func() bool {
				h := w.c.Holders()
				return len(h) == 1 && h[0].Step == "node n still uses the volume"
			})
			w.quiet()
			if r := w.reported("n"); len(r) != 1 {
				t.Fatalf("out of the status while it is mounted: %v", r)
			}
			w.changeNode("n", uses())
			w.eventually("detached, out of the status before", func() bool { return slices.Contains(w.backend.calls(), "detach vol n") })
		})
	}
}

// The pod comes back while its predecessor's volume is being unmounted: the node is told of it again, and nothing is
// detached from under it.
func TestVolumeThatIsWantedAgainWhileItIsUnmounted(t *testing.T) {
	w := start(t, nil, objects(one(machine("n"), user("a", "pod", "n", "vol")), bound("a", "vol", v1.ReadWriteOnce))...)
	w.eventually("reported", func() bool { return len(w.reported("n")) == 1 })
	w.changeNode("n", uses("vol"))
	w.deletePod("a", "pod")
	w.eventually("out of the status", func() bool { return len(w.reported("n")) == 0 })
	next := user("a", "pod", "n", "vol")
	next.UID = "another"
	if _, err := w.api.CoreV1().Pods("a").Create(t.Context(), next, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("reported again", func() bool { return len(w.reported("n")) == 1 })
	w.changeNode("n", uses())
	w.quiet()
	if slices.Contains(w.backend.calls(), "detach vol n") {
		t.Errorf("calls %v", w.backend.calls())
	}
}
