//go:build component

package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/backend"
)

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func request(name string, bytes int64, nodes ...string) backend.CreateRequest {
	return backend.CreateRequest{Name: name, RequiredBytes: bytes, FSType: "ext4", Place: backend.Place{Requisite: nodes}}
}

// The life of a volume on one of two nodes, and what each call leaves in the API.
func TestLife(t *testing.T) {
	w := startWorld(t)
	a := w.serve(t, nodeA, newDir(t), 4<<30)
	z := w.serve(t, nodeB, newDir(t), 4<<30)
	b := w.control(t)
	offers(t, b, nodeA)
	offers(t, b, nodeB)
	ctx := within(t, time.Minute)

	v, err := b.Create(ctx, request("one", 100*mib, nodeB))
	if err != nil || v.Node != nodeB || v.SizeBytes != 100*mib || v.FSType != "ext4" {
		t.Fatalf("%+v, %v", v, err)
	}
	if _, err := z.backend.Get(ctx, v.ID); err != nil {
		t.Errorf("not in the pool of its node: %v", err)
	}
	if again, err := b.Create(ctx, request("one", 100*mib, nodeB)); err != nil || again.ID != v.ID {
		t.Errorf("again: %+v, %v", again, err)
	}
	for what, r := range map[string]backend.CreateRequest{"larger": request("one", 200*mib, nodeB), "elsewhere": request("one", 100*mib, nodeA)} {
		if _, err := b.Create(ctx, r); !errors.Is(err, backend.ErrExists) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := b.Attach(ctx, v.ID, nodeA, false); !errors.Is(err, backend.ErrNodeNotFound) || !strings.Contains(err.Error(), nodeB) {
		t.Errorf("attached to a node that it is not on: %v", err)
	}
	if err := b.Attach(ctx, v.ID, nodeB, false); err != nil {
		t.Fatal(err)
	}
	if err := b.Attach(ctx, v.ID, nodeB, true); !errors.Is(err, backend.ErrExists) {
		t.Errorf("attached twice, differently: %v", err)
	}
	if err := b.Delete(ctx, v.ID); !errors.Is(err, backend.ErrInUse) {
		t.Errorf("deleted while attached: %v", err)
	}
	if o, err := w.objects.Volumes.Get(ctx, v.ID, metav1.GetOptions{}); err != nil || o.DeletionTimestamp != nil {
		t.Errorf("a refused deletion has begun: %v, %v", o.DeletionTimestamp, err)
	}
	if v, err = b.Resize(ctx, v.ID, 200*mib); err != nil || v.SizeBytes != 200*mib {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := b.Resize(ctx, v.ID, 100<<30); !errors.Is(err, backend.ErrTooLarge) && !errors.Is(err, backend.ErrNoSpace) {
		t.Errorf("grown beyond the pool: %v", err)
	}
	if o, err := w.objects.Volumes.Get(ctx, v.ID, metav1.GetOptions{}); err != nil || o.Spec.SizeBytes != 200*mib {
		t.Errorf("a size that cannot be had still stands in the spec: %d, %v", o.Spec.SizeBytes, err)
	}
	if v, err = b.Resize(ctx, v.ID, 300*mib); err != nil || v.SizeBytes != 300*mib {
		t.Errorf("after a refusal: %+v, %v", v, err)
	}
	if err := b.Modify(ctx, v.ID, map[string]string{"readAheadKiB": "256"}); err != nil {
		t.Error(err)
	}
	if err := b.Modify(ctx, v.ID, map[string]string{"scheduler": "no-such"}); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("a scheduler that the node's kernel has not: %v", err)
	}
	if v, err := b.Get(ctx, v.ID); err != nil || len(v.Mutable) != 1 || v.Mutable["readAheadKiB"] != "256" {
		t.Errorf("%+v, %v", v, err)
	}
	s, err := b.CreateSnapshot(ctx, backend.SnapshotRequest{Name: "snap", VolumeID: v.ID})
	if err != nil || s.Node != nodeB || s.SizeBytes != 300*mib || time.Since(s.Taken) > time.Minute {
		t.Fatalf("%+v, %v", s, err)
	}
	r := request("copy", 300*mib)
	r.Source.SnapshotID = s.ID
	if c, err := b.Create(ctx, r); err != nil || c.Node != nodeB {
		t.Errorf("a copy is not where its source is: %+v, %v", c, err)
	}
	r = request("copy elsewhere", 300*mib, nodeA)
	r.Source.SnapshotID = s.ID
	if _, err := b.Create(ctx, r); !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), nodeA) || !strings.Contains(err.Error(), nodeB) {
		t.Errorf("a copy on another node: %v", err)
	}
	other, err := b.Create(ctx, request("other", 100*mib, nodeA))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.CreateGroupSnapshot(ctx, backend.GroupSnapshotRequest{Name: "both", VolumeIDs: []string{v.ID, other.ID}}); !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), nodeA) {
		t.Errorf("a group on two nodes: %v", err)
	}
	g, err := b.CreateGroupSnapshot(ctx, backend.GroupSnapshotRequest{Name: "group", VolumeIDs: []string{v.ID, backend.VolumeID("copy")}})
	if err != nil || len(g.Snapshots) != 2 {
		t.Fatalf("%+v, %v", g, err)
	}
	if err := b.DeleteSnapshot(ctx, g.Snapshots[0].ID); !errors.Is(err, backend.ErrInGroup) {
		t.Errorf("one of a group deleted: %v", err)
	}
	if err := b.DeleteGroupSnapshot(ctx, g.ID); err != nil {
		t.Error(err)
	}
	if err := b.Detach(ctx, v.ID, nodeB); err != nil {
		t.Error(err)
	}
	if err := b.DeleteSnapshot(ctx, s.ID); err != nil {
		t.Error(err)
	}
	for _, id := range []string{v.ID, other.ID, backend.VolumeID("copy"), "vol-never-was", "../../etc"} {
		if err := b.Delete(ctx, id); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	if left := append(a.pool.List(), z.pool.List()...); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if left := append(a.pool.Snapshots(), z.pool.Snapshots()...); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A node that is full refuses, its object goes, and the volume is made where there is room.
func TestFullNodeHandsOn(t *testing.T) {
	w := startWorld(t)
	a := w.serve(t, nodeA, newDir(t), 1<<30)
	w.serve(t, nodeB, newDir(t), 4<<30)
	b := w.control(t)
	offers(t, b, nodeA)
	offers(t, b, nodeB)
	ctx := within(t, time.Minute)
	free := a.pool.Capacity().Available
	// Behind the controller's back: what its BlockPool says is old for a moment.
	if _, err := a.backend.Create(ctx, backend.CreateRequest{Name: "stranger", RequiredBytes: free}); err != nil {
		t.Fatal(err)
	}
	r := request("moves on", 200*mib)
	r.Place = backend.Place{Requisite: []string{nodeA, nodeB}, Preferred: []string{nodeA, nodeB}}
	v, err := b.Create(ctx, r)
	if err != nil || v.Node != nodeB {
		t.Errorf("%+v, %v", v, err)
	}
	_, err = b.Create(ctx, request("only there", 200*mib, nodeA))
	if !errors.Is(err, backend.ErrNoSpace) {
		t.Errorf("a full node: %v", err)
	}
	if _, err := w.objects.Volumes.Get(ctx, backend.VolumeID("only there"), metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a refused volume has an object: %v", err)
	}
	eventually(t, 10*time.Second, func() error {
		p, err := w.objects.Pools.Get(ctx, nodeA, metav1.GetOptions{})
		if err != nil || p.Status.Orphans != 1 || len(p.Status.OrphanNames) != 1 || p.Status.OrphanNames[0] != "volume/"+backend.VolumeID("stranger") {
			return fmt.Errorf("the stranger is not told of: %+v, %v", p.Status, err)
		}
		return nil
	})
	if _, err := a.backend.Get(ctx, backend.VolumeID("stranger")); err != nil {
		t.Errorf("the stranger was touched: %v", err)
	}
}

// A node's agent is away: a call says for what it waits, leaves its intent, and the same call later finds the work done.
func TestAwayAndBack(t *testing.T) {
	w := startWorld(t)
	dir := newDir(t)
	a := w.serve(t, nodeA, dir, 4<<30)
	b := w.control(t)
	offers(t, b, nodeA)
	a.stop()
	_, err := b.Create(within(t, 2*time.Second), request("late", 100*mib))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "node "+nodeA+" to make volume") {
		t.Errorf("it does not say for what it waits: %v", err)
	}
	w.setReady(t, nodeA, corev1.ConditionUnknown)
	began := time.Now()
	eventually(t, 10*time.Second, func() error {
		began = time.Now()
		_, err = b.Create(within(t, 20*time.Second), request("late", 100*mib))
		if err == nil || !strings.Contains(err.Error(), "is not ready since") || !strings.Contains(err.Error(), "the test says so") {
			return fmt.Errorf("%w", err)
		}
		return nil
	})
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("waited %s for a node that is known to be away", took)
	}
	w.setReady(t, nodeA, corev1.ConditionTrue)
	eventually(t, 10*time.Second, func() error {
		if _, err := b.Create(within(t, 2*time.Second), request("late", 100*mib)); err == nil || strings.Contains(err.Error(), "is not ready") {
			return fmt.Errorf("the node is ready again: %w", err)
		}
		return nil
	})
	time.AfterFunc(2*time.Second, func() { w.setReady(t, nodeA, corev1.ConditionUnknown) })
	began = time.Now()
	if _, err := b.Create(within(t, 20*time.Second), request("late", 100*mib)); err == nil || !strings.Contains(err.Error(), "is not ready since") {
		t.Errorf("the node went away while a caller waited: %v", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("waited %s for a node that went away meanwhile", took)
	}
	w.setReady(t, nodeA, corev1.ConditionTrue)
	a = w.serve(t, nodeA, dir, 4<<30)
	ctx := within(t, 20*time.Second)
	v, err := b.Create(ctx, request("late", 100*mib))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(ctx, v.ID); err != nil || len(a.pool.List()) != 0 {
		t.Errorf("%v, %v", err, a.pool.List())
	}
}

// A node is gone for good: what is on it can be detached and deleted, once somebody says so, or its Node object is gone.
func TestLostNode(t *testing.T) {
	w := startWorld(t)
	b := w.control(t)
	dirs := map[string]string{nodeA: newDir(t), nodeB: newDir(t)}
	ids, snaps := map[string]string{}, map[string]string{}
	for node, dir := range dirs {
		s := w.serve(t, node, dir, 2<<30)
		offers(t, b, node)
		ctx := within(t, 30*time.Second)
		v, err := b.Create(ctx, request("on "+node, 100*mib, node))
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Attach(ctx, v.ID, node, false); err != nil {
			t.Fatal(err)
		}
		snap, err := b.CreateSnapshot(ctx, backend.SnapshotRequest{Name: "of " + node, VolumeID: v.ID})
		if err != nil {
			t.Fatal(err)
		}
		ids[node], snaps[node] = v.ID, snap.ID
		s.stop()
		w.setReady(t, node, corev1.ConditionUnknown)
	}
	for _, node := range []string{nodeA, nodeB} {
		if err := b.Detach(within(t, 2*time.Second), ids[node], node); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("detached from a node that may come back: %v", err)
		}
		if err := b.DeleteSnapshot(within(t, 2*time.Second), snaps[node]); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("deleted on a node that may come back: %v", err)
		}
	}
	// One is said to be lost; the annotation of another node's name means nothing.
	note := func(value string) {
		patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, api.AnnotationNodeLost, value)
		if _, err := w.objects.Pools.Patch(t.Context(), nodeA, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	note(nodeB)
	if err := b.Detach(within(t, 2*time.Second), ids[nodeA], nodeA); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("another node's name counts: %v", err)
	}
	note(nodeA)
	// Of the other one there is no Node any more.
	if err := w.kube.CoreV1().Nodes().Delete(t.Context(), nodeB, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{nodeA, nodeB} {
		eventually(t, 15*time.Second, func() error { return b.Detach(within(t, 2*time.Second), ids[node], node) })
		if v, err := b.Get(t.Context(), ids[node]); err != nil || len(v.Nodes) > 0 || v.Problem == "" {
			t.Errorf("%+v, %v", v, err)
		}
		ctx := within(t, 10*time.Second)
		if err := errors.Join(b.DeleteSnapshot(ctx, snaps[node]), b.Delete(ctx, ids[node])); err != nil {
			t.Error(err)
		}
	}
	// It comes back all the same: its data are told of, and left alone.
	w.addNode(t, nodeB)
	back := w.serve(t, nodeB, dirs[nodeB], 2<<30)
	eventually(t, 10*time.Second, func() error {
		p, err := w.objects.Pools.Get(t.Context(), nodeB, metav1.GetOptions{})
		if err != nil || !slices.Contains(p.Status.OrphanNames, "volume/"+ids[nodeB]) || !slices.Contains(p.Status.OrphanNames, "snapshot/"+snaps[nodeB]) {
			return fmt.Errorf("%+v, %v", p.Status.OrphanNames, err)
		}
		return nil
	})
	if len(back.pool.List()) != 1 {
		t.Errorf("data were taken away: %v", back.pool.List())
	}
}

// The API server is gone for a while. Calls say so; what is attached stays; and when it is back everything goes on, with what happened
// on the node meanwhile.
func TestAPIServerAway(t *testing.T) {
	w := startWorld(t)
	a := w.serve(t, nodeA, newDir(t), 4<<30)
	b := w.control(t)
	offers(t, b, nodeA)
	v, err := b.Create(within(t, 20*time.Second), request("before", 100*mib))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Attach(within(t, 20*time.Second), v.ID, nodeA, false); err != nil {
		t.Fatal(err)
	}
	w.server.Kill()
	if _, err := b.Create(within(t, 3*time.Second), request("meanwhile", 100*mib)); err == nil {
		t.Error("made without an API server")
	}
	if _, err := a.backend.Create(t.Context(), backend.CreateRequest{Name: "stranger", RequiredBytes: 100 * mib}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(15 * time.Second)
	if have, err := a.backend.Get(t.Context(), v.ID); err != nil || len(have.Nodes) != 1 {
		t.Errorf("what was attached is not any more: %+v, %v", have, err)
	}
	w.server.Restart(t)
	// client-go waits longer and longer for its next look, a minute at the most.
	const back = 2 * time.Minute
	eventually(t, back, func() error { _, err := b.Create(within(t, 10*time.Second), request("meanwhile", 100*mib)); return err })
	eventually(t, back, func() error {
		p, err := w.objects.Pools.Get(t.Context(), nodeA, metav1.GetOptions{})
		if err != nil || p.Status.Volumes != 3 || p.Status.Orphans != 1 {
			return fmt.Errorf("%+v, %v", p.Status, err)
		}
		return nil
	})
	ctx := within(t, 30*time.Second)
	if err := errors.Join(b.Detach(ctx, v.ID, nodeA), b.Delete(ctx, v.ID), b.Delete(ctx, backend.VolumeID("meanwhile"))); err != nil {
		t.Error(err)
	}
}

// Data that are gone are told of, and never made anew, empty.
func TestVanishedData(t *testing.T) {
	w := startWorld(t)
	dir := newDir(t)
	a := w.serve(t, nodeA, dir, 2<<30)
	b := w.control(t)
	offers(t, b, nodeA)
	ctx := within(t, 40*time.Second)
	v, err := b.Create(ctx, request("lost", 100*mib))
	if err != nil {
		t.Fatal(err)
	}
	a.stopAgent()
	if err := a.backend.Delete(ctx, v.ID); err != nil {
		t.Fatal(err)
	}
	a.stop()
	a = w.serve(t, nodeA, dir, 2<<30)
	eventually(t, 10*time.Second, func() error {
		if v, err := b.Get(ctx, v.ID); err != nil || !strings.Contains(v.Problem, "its data are not in the pool") {
			return fmt.Errorf("%+v, %v", v, err)
		}
		return nil
	})
	if left := a.pool.List(); len(left) != 0 {
		t.Errorf("made anew: %v", left)
	}
	if err := b.Delete(ctx, v.ID); err != nil {
		t.Error(err)
	}
}

// What the API refuses of an object, whoever writes it.
func TestDefinitions(t *testing.T) {
	w := startWorld(t)
	ctx := within(t, time.Minute)
	good := func() *api.BlockVolume {
		return &api.BlockVolume{ObjectMeta: metav1.ObjectMeta{Name: "v"}, Spec: api.BlockVolumeSpec{Node: nodeA, Name: "n", SizeBytes: 100, FSType: "ext4", Parameters: map[string]api.Parameter{"access": "local"}}}
	}
	for name, change := range map[string]func(*api.BlockVolume){
		"an id with dots":        func(v *api.BlockVolume) { v.Name = "a..b" },
		"an id with one dot":     func(v *api.BlockVolume) { v.Name = "a.b" },
		"an id that is too long": func(v *api.BlockVolume) { v.Name = strings.Repeat("a", 64) },
		"no node":                func(v *api.BlockVolume) { v.Spec.Node = "" },
		"no name":                func(v *api.BlockVolume) { v.Spec.Name = "" },
		"a negative size":        func(v *api.BlockVolume) { v.Spec.SizeBytes = -1 },
		"another filesystem":     func(v *api.BlockVolume) { v.Spec.FSType = "zfs" },
		"no source":              func(v *api.BlockVolume) { v.Spec.Source = &api.BlockVolumeSource{} },
		"two sources":            func(v *api.BlockVolume) { v.Spec.Source = &api.BlockVolumeSource{Volume: "a", Snapshot: "b"} },
		"a source with a path":   func(v *api.BlockVolume) { v.Spec.Source = &api.BlockVolumeSource{Volume: "../a"} },
	} {
		v := good()
		change(v)
		if _, err := w.objects.Volumes.Create(ctx, v, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.objects.Volumes.Create(ctx, good(), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	status := []byte(`{"status":{"phase":"Ready","sizeBytes":150}}`)
	if _, err := w.objects.Volumes.Patch(ctx, "v", types.MergePatchType, status, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, patch string
		refused     bool
	}{
		{"another node", `{"spec":{"node":"elsewhere"}}`, true},
		{"another name", `{"spec":{"name":"other"}}`, true},
		{"another filesystem", `{"spec":{"fsType":"xfs"}}`, true},
		{"no filesystem", `{"spec":{"fsType":null}}`, true},
		{"other parameters", `{"spec":{"parameters":{"access":"x"}}}`, true},
		{"more parameters", `{"spec":{"parameters":{"b":"x"}}}`, true},
		{"a source", `{"spec":{"source":{"volume":"a"}}}`, true},
		{"a limit", `{"spec":{"limitBytes":5}}`, true},
		{"smaller", `{"spec":{"sizeBytes":99}}`, true},
		{"larger", `{"spec":{"sizeBytes":300}}`, false},
		{"smaller than it is", `{"spec":{"sizeBytes":149}}`, true},
		{"taken back to what it is", `{"spec":{"sizeBytes":150}}`, false},
		{"mutable parameters", `{"spec":{"mutable":{"readAheadKiB":"128"}}}`, false},
		{"attached", `{"spec":{"attachedTo":{"node":"node-a"}}}`, false},
		{"detached", `{"spec":{"attachedTo":null}}`, false},
		{"a status by the way, which is not taken", `{"status":{"phase":"Failed"}}`, false},
	} {
		o, err := w.objects.Volumes.Patch(ctx, "v", types.MergePatchType, []byte(tc.patch), metav1.PatchOptions{})
		if apierrors.IsInvalid(err) != tc.refused || !tc.refused && err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if err == nil && o.Status.Phase != api.PhaseReady {
			t.Errorf("%s: the status became %+v", tc.name, o.Status)
		}
	}
	snapshot := &api.BlockSnapshot{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: api.BlockSnapshotSpec{Node: nodeA, Volume: "v", Name: "n", Group: &api.BlockSnapshotGroup{ID: "g", Members: []api.BlockSnapshotMember{{Snapshot: "other", Volume: "v"}}}}}
	if _, err := w.objects.Snapshots.Create(ctx, snapshot, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("a snapshot that its group does not name: %v", err)
	}
	snapshot.Spec.Group.Members[0].Snapshot = "s"
	if _, err := w.objects.Snapshots.Create(ctx, snapshot, metav1.CreateOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := w.objects.Snapshots.Patch(ctx, "s", types.MergePatchType, []byte(`{"spec":{"volume":"w"}}`), metav1.PatchOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("a snapshot was changed: %v", err)
	}
	pool := &api.BlockPool{ObjectMeta: metav1.ObjectMeta{Name: "wrong"}, Spec: api.BlockPoolSpec{Node: nodeB}}
	if _, err := w.objects.Pools.Create(ctx, pool, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("a pool with another name than its node: %v", err)
	}
	pool.Name = nodeB
	if _, err := w.objects.Pools.Create(ctx, pool, metav1.CreateOptions{}); err != nil {
		t.Error(err)
	}
}
