package standalone

import (
	"slices"
	"testing"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/block/pool"
)

func content(name, driver string, uid types.UID, taken, imported string) snapv1.VolumeSnapshotContent {
	c := snapv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: snapv1.VolumeSnapshotContentSpec{
		Driver: driver, VolumeSnapshotRef: corev1.ObjectReference{Namespace: "ns", Name: name, UID: uid}}}
	if taken != "" {
		c.Status = &snapv1.VolumeSnapshotContentStatus{SnapshotHandle: &taken}
	}
	if imported != "" {
		c.Spec.Source.SnapshotHandle = &imported
	}
	return c
}

func group(handle string) groupv1.VolumeGroupSnapshotContent {
	c := groupv1.VolumeGroupSnapshotContent{Spec: groupv1.VolumeGroupSnapshotContentSpec{Driver: blockDriver}}
	if handle != "" {
		c.Status = &groupv1.VolumeGroupSnapshotContentStatus{VolumeGroupSnapshotHandle: &handle}
	}
	return c
}

// Snapshots that keep space and that nobody tells of; those that are being taken this moment are none.
func TestOrphanSnapshots(t *testing.T) {
	survey := pool.Survey{Name: "default", Snapshots: []pool.Snapshot{
		{ID: "taken", Name: "snapshot-1"}, {ID: "imported", Name: "x"}, {ID: "being-taken", Name: "snapshot-3"},
		{ID: "lost", Name: "snapshot-4", VolumeID: "v", ReservedBytes: 1 << 20}, {ID: "anothers", Name: "snapshot-5"},
		{ID: "member", Name: "m", GroupID: "g"}, {ID: "lost-member", Name: "m", GroupID: "gone"},
	}}
	contents := []snapv1.VolumeSnapshotContent{
		content("a", blockDriver, "1", "taken", ""), content("b", blockDriver, "2", "", "imported"), content("c", blockDriver, "3", "", ""),
		content("d", "other.csi", "5", "anothers", ""),
	}
	names := func(found []Orphan) (out []string) {
		for _, o := range found {
			out = append(out, o.Kind+" "+o.Name)
		}
		return out
	}
	found := orphanSnapshots(survey, contents, []groupv1.VolumeGroupSnapshotContent{group("g")})
	if got := names(found); !slices.Equal(got, []string{"snapshot default/lost", "snapshot default/anothers", "snapshot default/lost-member"}) {
		t.Errorf("got %q", got)
	}
	if found[0].Detail != "of volume v, 1.0 MiB, no VolumeSnapshotContent names it" {
		t.Errorf("got %q", found[0].Detail)
	}
	// A group that is being taken: which members are its is known when it is done.
	if got := names(orphanSnapshots(survey, contents, []groupv1.VolumeGroupSnapshotContent{group("")})); !slices.Equal(got, []string{"snapshot default/lost", "snapshot default/anothers"}) {
		t.Errorf("while a group is taken: %q", got)
	}
}

// A content whose snapshot has gone from the pool restores nothing.
func TestContentsWithoutTheirSnapshot(t *testing.T) {
	surveys := []pool.Survey{{Name: "default", Snapshots: []pool.Snapshot{{ID: "there"}}}}
	leaving := content("leaving", blockDriver, "4", "deleted", "")
	leaving.DeletionTimestamp = &metav1.Time{}
	found := contentsWithout(surveys, []snapv1.VolumeSnapshotContent{
		content("good", blockDriver, "1", "there", ""), content("bad", blockDriver, "2", "gone", ""), content("making", blockDriver, "3", "", ""), leaving,
		content("anothers", "other.csi", "5", "gone", ""),
	})
	if len(found) != 1 || found[0].Name != "bad" || found[0].Detail != "of ns/bad, its snapshot gone is in no pool" {
		t.Errorf("found %+v", found)
	}
}
