//go:build component

package cluster_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/backend"
)

// Who deletes the objects with kubectl, or their definitions, deletes no data: volumes and snapshots go on, say so, and go when the
// controller is asked to delete them.
func TestDeletedByHand(t *testing.T) {
	w := startWorld(t)
	dir := newDir(t)
	a := w.serve(t, nodeA, dir, 4<<30)
	b := w.control(t)
	offers(t, b, nodeA)
	ctx := within(t, time.Minute)
	v, err := b.Create(ctx, request("one", 100*mib, nodeA))
	if err != nil {
		t.Fatal(err)
	}
	other, err := b.Create(ctx, request("two", 100*mib, nodeA))
	if err != nil {
		t.Fatal(err)
	}
	s, err := b.CreateSnapshot(ctx, backend.SnapshotRequest{Name: "snap", VolumeID: v.ID})
	if err != nil {
		t.Fatal(err)
	}
	g, err := b.CreateGroupSnapshot(ctx, backend.GroupSnapshotRequest{Name: "group", VolumeIDs: []string{v.ID, other.ID}})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.objects.Volumes.Delete(ctx, v.ID, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	snapshots := []string{s.ID, g.Snapshots[0].ID, g.Snapshots[1].ID}
	for _, id := range snapshots {
		if err := w.objects.Snapshots.Delete(ctx, id, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	told := func() error {
		if v, err := b.Get(ctx, v.ID); err != nil || !strings.Contains(v.Problem, api.AnnotationDeleteData) {
			return fmt.Errorf("%+v, %v", v, err)
		}
		for _, id := range snapshots {
			if o, err := w.objects.Snapshots.Get(ctx, id, metav1.GetOptions{}); err != nil || !o.Status.ReadyToUse || !strings.Contains(o.Status.Problem, api.AnnotationDeleteData) {
				return fmt.Errorf("%+v, %v", o, err)
			}
		}
		return nil
	}
	eventually(t, 10*time.Second, told)
	a.stop() // a new agent sees them as "being deleted" from its first moment
	a = w.serve(t, nodeA, dir, 4<<30)
	eventually(t, 10*time.Second, told)
	if n, m := len(a.pool.List()), len(a.pool.Snapshots()); n != 2 || m != 3 {
		t.Fatalf("%d volumes and %d snapshots are left, of 2 and 3", n, m)
	}

	// All goes on with it.
	if again, err := b.Create(ctx, request("one", 100*mib, nodeA)); err != nil || again.ID != v.ID {
		t.Errorf("asked for again: %+v, %v", again, err)
	}
	if err := b.Attach(ctx, v.ID, nodeA, false); err != nil {
		t.Error(err)
	}
	if err := b.Delete(ctx, v.ID); !errors.Is(err, backend.ErrInUse) {
		t.Errorf("deleted while attached: %v", err)
	}
	if v, err := b.Resize(ctx, v.ID, 200*mib); err != nil || v.SizeBytes != 200*mib {
		t.Errorf("%+v, %v", v, err)
	}
	if err := b.Detach(ctx, v.ID, nodeA); err != nil {
		t.Error(err)
	}
	r := request("copy", 100*mib)
	r.Source.SnapshotID = s.ID
	if _, err := b.Create(ctx, r); err != nil {
		t.Errorf("restored: %v", err)
	}
	if again, err := b.CreateSnapshot(ctx, backend.SnapshotRequest{Name: "snap", VolumeID: v.ID}); err != nil || !again.Taken.Equal(s.Taken) {
		t.Errorf("asked for again: %+v, %v", again, err)
	}
	if err := b.DeleteSnapshot(ctx, g.Snapshots[0].ID); !errors.Is(err, backend.ErrInGroup) {
		t.Errorf("one of a group deleted: %v", err)
	}

	// The word for another object is none for this one; the own one is, whoever gives it.
	mark := func(name string) error {
		_, err := w.objects.Volumes.Patch(ctx, v.ID, types.MergePatchType, []byte(`{"metadata":{"annotations":{"`+api.AnnotationDeleteData+`":"`+name+`"}}}`), metav1.PatchOptions{})
		return err
	}
	if err := mark(other.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Resize(ctx, v.ID, 300*mib); err != nil { // the agent has seen the object since
		t.Error(err)
	}
	if err := mark(v.ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		if _, err := a.pool.Get(v.ID); err == nil {
			return errors.New("there yet")
		}
		return nil
	})

	// And the controller gives it.
	if err := b.DeleteSnapshot(ctx, s.ID); err != nil {
		t.Error(err)
	}
	if err := b.DeleteGroupSnapshot(ctx, g.ID); err != nil {
		t.Error(err)
	}
	for _, id := range []string{v.ID, other.ID, backend.VolumeID("copy")} {
		if err := b.Delete(ctx, id); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	if n, m := len(a.pool.List()), len(a.pool.Snapshots()); n != 0 || m != 0 {
		t.Errorf("%d volumes and %d snapshots are left", n, m)
	}
}

// The way back that docs/kubernetes.md has, for definitions that are being deleted: the objects are saved, let go, and made anew.
func TestObjectsAreMadeAnew(t *testing.T) {
	w := startWorld(t)
	dir := newDir(t)
	a := w.serve(t, nodeA, dir, 4<<30)
	b := w.control(t)
	offers(t, b, nodeA)
	ctx := within(t, time.Minute)
	v, err := b.Create(ctx, request("one", 100*mib, nodeA))
	if err != nil {
		t.Fatal(err)
	}
	s, err := b.CreateSnapshot(ctx, backend.SnapshotRequest{Name: "snap", VolumeID: v.ID})
	if err != nil {
		t.Fatal(err)
	}
	r := request("copy", 200*mib)
	r.Source.SnapshotID = s.ID
	c, err := b.Create(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Attach(ctx, c.ID, nodeA, false); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Resize(ctx, v.ID, 150*mib); err != nil {
		t.Fatal(err)
	}
	disks := func() (all []uint64) {
		for _, id := range []string{v.ID, c.ID} {
			all = append(all, inode(t, a.pool.Disk(id)))
		}
		taken, err := a.pool.Snapshot(s.ID)
		if err != nil {
			t.Fatal(err)
		}
		return append(all, inode(t, a.pool.SnapshotDisk(taken)))
	}
	before := disks()

	volumes, err := w.objects.Volumes.List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	snapshots, err := w.objects.Snapshots.List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	away := []byte(`{"metadata":{"finalizers":null}}`)
	for _, o := range volumes.Items {
		if err := w.objects.Volumes.Delete(ctx, o.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.objects.Volumes.Patch(ctx, o.Name, types.MergePatchType, away, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range snapshots.Items {
		if err := w.objects.Snapshots.Delete(ctx, o.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.objects.Snapshots.Patch(ctx, o.Name, types.MergePatchType, away, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	anew := func(o metav1.Object) {
		o.SetUID("")
		o.SetResourceVersion("")
		o.SetDeletionTimestamp(nil)
		o.SetDeletionGracePeriodSeconds(nil)
	}
	a.stop()
	for _, o := range volumes.Items { // the copy perhaps before its source
		anew(&o)
		o.Status = api.BlockVolumeStatus{}
		if _, err := w.objects.Volumes.Create(ctx, &o, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range snapshots.Items {
		anew(&o)
		o.Status = api.BlockSnapshotStatus{}
		if _, err := w.objects.Snapshots.Create(ctx, &o, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	// Once more by hand, before the agent could say that it has the data: they are kept all the same.
	if err := w.objects.Volumes.Delete(ctx, v.ID, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := w.objects.Snapshots.Delete(ctx, s.ID, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	a = w.serve(t, nodeA, dir, 4<<30)
	eventually(t, 20*time.Second, func() error {
		for _, id := range []string{v.ID, c.ID} {
			if o, err := w.objects.Volumes.Get(ctx, id, metav1.GetOptions{}); err != nil || o.Status.Phase != api.PhaseReady || (o.Status.Problem == "") != (id == c.ID) || len(o.Status.Errors) > 0 {
				return fmt.Errorf("%+v, %v", o, err)
			}
		}
		if o, err := w.objects.Snapshots.Get(ctx, s.ID, metav1.GetOptions{}); err != nil || !o.Status.ReadyToUse || !o.Status.CreationTime.Time.Equal(s.Taken.Truncate(time.Microsecond)) {
			return fmt.Errorf("%+v, %v", o, err)
		}
		return nil
	})
	if after := disks(); !slices.Equal(before, after) {
		t.Errorf("other files than before: %d, %d", before, after)
	}
	if got, err := b.Get(ctx, c.ID); err != nil || !slices.Equal(got.Nodes, []string{nodeA}) {
		t.Errorf("no longer attached: %+v, %v", got, err)
	}
	if got, err := b.Get(ctx, v.ID); err != nil || got.SizeBytes != 150*mib {
		t.Errorf("another size: %+v, %v", got, err)
	}
	if err := b.Detach(ctx, c.ID, nodeA); err != nil {
		t.Error(err)
	}
	if err := b.DeleteSnapshot(ctx, s.ID); err != nil {
		t.Error(err)
	}
	for _, id := range []string{v.ID, c.ID} {
		if err := b.Delete(ctx, id); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}
