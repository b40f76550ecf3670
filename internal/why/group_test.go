package why

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	snapfake "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/fake"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/ptr"
)

func group(edit ...func(*groupv1.VolumeGroupSnapshot)) *groupv1.VolumeGroupSnapshot {
	g := &groupv1.VolumeGroupSnapshot{ObjectMeta: meta("default", "all"), Spec: groupv1.VolumeGroupSnapshotSpec{VolumeGroupSnapshotClassName: ptr.To("berth-block"),
		Source: groupv1.VolumeGroupSnapshotSource{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}}}}}
	for _, f := range edit {
		f(g)
	}
	return g
}

func groupTakenUp(g *groupv1.VolumeGroupSnapshot) {
	g.Status = &groupv1.VolumeGroupSnapshotStatus{BoundVolumeGroupSnapshotContentName: ptr.To("groupsnapcontent-all"), ReadyToUse: ptr.To(false)}
}

func groupTaken(g *groupv1.VolumeGroupSnapshot) {
	groupTakenUp(g)
	g.Status.ReadyToUse, g.Status.CreationTime = ptr.To(true), ptr.To(metav1.NewTime(at(2*time.Second)))
}

func groupLeaving(g *groupv1.VolumeGroupSnapshot) {
	g.DeletionTimestamp = ptr.To(metav1.NewTime(at(40 * time.Second)))
	g.Finalizers = []string{"groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-bound-protection"}
}

func groupContent(handle string) *groupv1.VolumeGroupSnapshotContent {
	c := &groupv1.VolumeGroupSnapshotContent{ObjectMeta: meta("", "groupsnapcontent-all"), Spec: groupv1.VolumeGroupSnapshotContentSpec{Driver: ourDriver, DeletionPolicy: snapv1.VolumeSnapshotContentDelete}}
	if handle != "" {
		c.Status = &groupv1.VolumeGroupSnapshotContentStatus{VolumeGroupSnapshotHandle: &handle}
	}
	return c
}

func groupClass(name, driver string, isDefault bool) *groupv1.VolumeGroupSnapshotClass {
	c := &groupv1.VolumeGroupSnapshotClass{ObjectMeta: meta("", name), Driver: driver}
	if isDefault {
		c.Annotations = map[string]string{defaultGroupClass: "true"}
	}
	return c
}

// member is a snapshot of the group.
func member(name string, ready bool) *snapv1.VolumeSnapshot {
	return snapshot("data", func(s *snapv1.VolumeSnapshot) {
		s.Name = name
		s.Status = &snapv1.VolumeSnapshotStatus{ReadyToUse: &ready, VolumeGroupSnapshotName: ptr.To("all")}
	})
}

func labelled(c *v1.PersistentVolumeClaim) { c.Labels = map[string]string{"app": "db"} }

func ofDriver(name string) func(*v1.PersistentVolume) {
	return func(pv *v1.PersistentVolume) { pv.Spec.CSI.Driver = name }
}

// TestGroupText compares what a person reads about a group snapshot with testdata/group-NAME.txt.
func TestGroupText(t *testing.T) {
	there := cluster(claim("data", "berth-block", bound, labelled), volume("data"), claim("wal", "berth-block", bound, labelled), volume("wal"), claim("other", "berth-block", bound), volume("other"))
	ours := groupClass("berth-block", ourDriver, true)
	restored := claim("copy", "berth-block", func(c *v1.PersistentVolumeClaim) {
		c.Spec.DataSource = &v1.TypedLocalObjectReference{APIGroup: ptr.To("snapshot.storage.k8s.io"), Kind: "VolumeSnapshot", Name: "all-1"}
	})
	for name, c := range map[string]struct {
		objects   []runtime.Object
		snapshots []runtime.Object
		cause     string
		waits     bool
	}{
		"ready":       {there, []runtime.Object{ours, group(groupTaken), groupContent("group-1"), member("all-1", true), member("all-2", true), snapshot("data", takenAt(time.Second))}, "", false},
		"being-taken": {there, []runtime.Object{ours, group(groupTakenUp), groupContent("")}, "", true},
		"refused-by-the-driver": {there, []runtime.Object{ours, group(groupTakenUp, func(g *groupv1.VolumeGroupSnapshot) {
			g.Status.Error = &snapv1.VolumeSnapshotError{Message: ptr.To("failed to take group snapshot: rpc error: code = ResourceExhausted desc = the pool has no room"), Time: ptr.To(metav1.NewTime(at(5 * time.Second)))}
		}), groupContent("")}, "pool-full", true},
		"driver-is-gone":   {withoutDrivers(cluster(claim("data", "berth-block", bound, labelled), volume("data"))), []runtime.Object{ours, group()}, "driver-unknown", true},
		"no-claims":        {cluster(claim("data", "berth-block", bound), volume("data")), []runtime.Object{ours, group()}, "no-claims-selected", true},
		"claim-not-bound":  {cluster(claim("data", "berth-block", labelled)), []runtime.Object{ours, group()}, "claim-not-bound", true},
		"several-drivers":  {cluster(claim("data", "berth-block", bound, labelled), volume("data"), claim("wal", "x", bound, labelled), volume("wal", ofDriver("other.csi"))), []runtime.Object{ours, group()}, "group-of-several-drivers", true},
		"no-csi":           {cluster(claim("data", "berth-block", bound, labelled), volume("data", onHost(v1.VolumeBound, v1.PersistentVolumeReclaimRetain))), []runtime.Object{ours, group()}, "no-snapshots-of-these", true},
		"unknown-class":    {there, []runtime.Object{groupClass("other", ourDriver, false), group()}, "unknown-snapshot-class", true},
		"class-of-another": {there, []runtime.Object{groupClass("berth-block", "other.csi", true), group()}, "snapshot-class-of-another", true},
		"no-default":       {there, []runtime.Object{groupClass("mine", ourDriver, false), group(func(g *groupv1.VolumeGroupSnapshot) { g.Spec.VolumeGroupSnapshotClassName = nil })}, "no-default-snapshot-class", true},
		"content-missing": {there, []runtime.Object{ours, group(func(g *groupv1.VolumeGroupSnapshot) {
			g.Spec.Source = groupv1.VolumeGroupSnapshotSource{VolumeGroupSnapshotContentName: ptr.To("imported")}
		})}, "content-missing", true},
		"not-taken-up":       {there, []runtime.Object{ours, group()}, "", true},
		"deleted-by-driver":  {there, []runtime.Object{ours, group(groupTaken, groupLeaving), groupContent("group-1")}, "", true},
		"deleted-while-used": {append(there[:len(there):len(there)], restored), []runtime.Object{ours, group(groupTaken, groupLeaving), groupContent("group-1"), member("all-1", true)}, "snapshot-in-use", true},
	} {
		t.Run(name, func(t *testing.T) {
			//lint:ignore SA1019 NewClientset is not generated for snapshots
			s := Sources{Client: fake.NewClientset(c.objects...), Snapshots: snapfake.NewSimpleClientset(c.snapshots...), Now: at(time.Minute)}
			readAs(t, s, "vgs/all", "group-"+name, c.cause, c.waits)
		})
	}
}

// readAs asks, and compares what a person reads with testdata/NAME.txt.
func readAs(t *testing.T, s Sources, arg, name, cause string, waits bool) {
	t.Helper()
	target, err := ParseTarget("default", arg)
	if err != nil {
		t.Fatal(err)
	}
	j, err := Explain(t.Context(), s, target)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := j.WriteText(&b, TextOptions{Location: time.UTC}); err != nil {
		t.Fatal(err)
	}
	golden(t, name, b.Bytes())
	got := ""
	if j.Problem != nil {
		got = j.Problem.Cause
	}
	if got != cause || (j.Waiting != nil) != waits {
		t.Errorf("cause %q, waits %v; want %q, %v", got, j.Waiting != nil, cause, waits)
	}
}

// A group that is not there: near names are suggested, with its kind.
func TestUnknownGroup(t *testing.T) {
	//lint:ignore SA1019 NewClientset is not generated for snapshots
	s := Sources{Client: fake.NewClientset(), Snapshots: snapfake.NewSimpleClientset(group())}
	_, err := Explain(t.Context(), s, Target{Kind: Group, Namespace: "default", Name: "al"})
	var unknown *ErrUnknown
	if !errors.As(err, &unknown) || !strings.Contains(err.Error(), "did you mean volumegroupsnapshot/all?") {
		t.Errorf("got %v", err)
	}
}
