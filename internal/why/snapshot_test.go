package why

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	snapfake "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/fake"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/ptr"
)

const ourDriver = "block.csi.berth.io"

func snapshot(claim string, edit ...func(*snapv1.VolumeSnapshot)) *snapv1.VolumeSnapshot {
	s := &snapv1.VolumeSnapshot{ObjectMeta: meta("default", "before"), Spec: snapv1.VolumeSnapshotSpec{VolumeSnapshotClassName: ptr.To("berth-block")}}
	if claim != "" {
		s.Spec.Source.PersistentVolumeClaimName = &claim
	}
	for _, f := range edit {
		f(s)
	}
	return s
}

func takenAt(d time.Duration) func(*snapv1.VolumeSnapshot) {
	return func(s *snapv1.VolumeSnapshot) {
		s.Status = &snapv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: ptr.To("snapcontent-before"), ReadyToUse: ptr.To(true),
			CreationTime: ptr.To(metav1.NewTime(at(d))), RestoreSize: ptr.To(resource.MustParse("1Gi"))}
	}
}

func beingTaken(s *snapv1.VolumeSnapshot) {
	s.Status = &snapv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: ptr.To("snapcontent-before"), ReadyToUse: ptr.To(false)}
}

func snapshotLeaving(s *snapv1.VolumeSnapshot) {
	s.DeletionTimestamp = ptr.To(metav1.NewTime(at(40 * time.Second)))
	s.Finalizers = []string{"snapshot.storage.kubernetes.io/volumesnapshot-bound-protection"}
}

func snapshotContent(handle string) *snapv1.VolumeSnapshotContent {
	c := &snapv1.VolumeSnapshotContent{ObjectMeta: meta("", "snapcontent-before"), Spec: snapv1.VolumeSnapshotContentSpec{Driver: ourDriver, DeletionPolicy: snapv1.VolumeSnapshotContentDelete}}
	if handle != "" {
		c.Status = &snapv1.VolumeSnapshotContentStatus{SnapshotHandle: &handle}
	}
	return c
}

func snapshotClass(name, driver string, isDefault bool) *snapv1.VolumeSnapshotClass {
	c := &snapv1.VolumeSnapshotClass{ObjectMeta: meta("", name), Driver: driver}
	if isDefault {
		c.Annotations = map[string]string{"snapshot.storage.kubernetes.io/is-default-class": "true"}
	}
	return c
}

// TestSnapshotText compares what a person reads about a snapshot with testdata/snapshot-NAME.txt.
func TestSnapshotText(t *testing.T) {
	dataThere := slices.Clip(cluster(claim("data", "berth-block", bound), volume("data")))
	ours := snapshotClass("berth-block", ourDriver, true)
	restored := claim("copy", "berth-block", func(c *v1.PersistentVolumeClaim) {
		c.Spec.DataSource = &v1.TypedLocalObjectReference{APIGroup: ptr.To("snapshot.storage.k8s.io"), Kind: "VolumeSnapshot", Name: "before"}
	})
	for name, c := range map[string]struct {
		objects   []runtime.Object
		snapshots []runtime.Object
		cause     string
		waits     bool
	}{
		"ready": {append(dataThere, event("VolumeSnapshot", "before", v1.EventTypeNormal, "SnapshotReady", "Snapshot default/before is ready to use.", 3*time.Second, 1)),
			[]runtime.Object{ours, snapshot("data", takenAt(2*time.Second)), snapshotContent("snap-1")}, "", false},
		"refused-by-the-driver": {append(dataThere, event("VolumeSnapshot", "before", v1.EventTypeWarning, "SnapshotContentCreationFailed", "old news", time.Second, 1)),
			[]runtime.Object{ours, snapshot("data", beingTaken, func(s *snapv1.VolumeSnapshot) {
				s.Status.Error = &snapv1.VolumeSnapshotError{Message: ptr.To("failed to take snapshot of the volume h-data: rpc error: code = ResourceExhausted desc = the pool has no room"), Time: ptr.To(metav1.NewTime(at(5 * time.Second)))}
			}), snapshotContent("")}, "pool-full", true},
		"driver-is-at-it":     {dataThere, []runtime.Object{ours, snapshot("data", beingTaken), snapshotContent("")}, "", true},
		"driver-is-gone":      {withoutDrivers(cluster(claim("data", "berth-block", bound), volume("data"))), []runtime.Object{ours, snapshot("data", beingTaken), snapshotContent("")}, "driver-unknown", true},
		"no-claim":            {cluster(), []runtime.Object{ours, snapshot("data")}, "claim-missing", true},
		"claim-not-bound":     {cluster(claim("data", "berth-block")), []runtime.Object{ours, snapshot("data")}, "claim-not-bound", true},
		"unknown-class":       {dataThere, []runtime.Object{snapshotClass("other", ourDriver, false), snapshot("data")}, "unknown-snapshot-class", true},
		"class-of-another":    {dataThere, []runtime.Object{snapshotClass("berth-block", "other.csi", true), snapshot("data")}, "snapshot-class-of-another", true},
		"no-default":          {dataThere, []runtime.Object{snapshotClass("mine", ourDriver, false), snapshot("data", func(s *snapv1.VolumeSnapshot) { s.Spec.VolumeSnapshotClassName = nil })}, "no-default-snapshot-class", true},
		"no-csi":              {cluster(claim("data", "berth-block", bound), volume("data", onHost(v1.VolumeBound, v1.PersistentVolumeReclaimRetain))), []runtime.Object{ours, snapshot("data")}, "no-snapshots-of-these", true},
		"content-missing":     {cluster(), []runtime.Object{ours, snapshot("", func(s *snapv1.VolumeSnapshot) { s.Spec.Source.VolumeSnapshotContentName = ptr.To("imported") })}, "content-missing", true},
		"deleted-while-used":  {append(dataThere, restored), []runtime.Object{ours, snapshot("data", takenAt(2*time.Second), snapshotLeaving), snapshotContent("snap-1")}, "snapshot-in-use", true},
		"deleted-by-driver":   {dataThere, []runtime.Object{ours, snapshot("data", takenAt(2*time.Second), snapshotLeaving), snapshotContent("snap-1")}, "", true},
		"deleted-with-groups": {dataThere, []runtime.Object{ours, snapshot("", takenAt(2*time.Second), snapshotLeaving, func(s *snapv1.VolumeSnapshot) { s.Status.VolumeGroupSnapshotName = ptr.To("all") }), snapshotContent("snap-1")}, "snapshot-of-group", true},
	} {
		t.Run(name, func(t *testing.T) {
			//lint:ignore SA1019 NewClientset is not generated for snapshots
			s := Sources{Client: fake.NewClientset(c.objects...), Snapshots: snapfake.NewSimpleClientset(c.snapshots...), Now: at(time.Minute)}
			readAs(t, s, "vs/before", "snapshot-"+name, c.cause, c.waits)
		})
	}
}

// A snapshot that is not there: near names are suggested.
func TestUnknownSnapshot(t *testing.T) {
	elsewhere := snapshot("data", func(s *snapv1.VolumeSnapshot) { s.Namespace, s.Name = "shop", "befor" })
	//lint:ignore SA1019 NewClientset is not generated for snapshots
	s := Sources{Client: fake.NewClientset(), Snapshots: snapfake.NewSimpleClientset(snapshot("data"), elsewhere)}
	_, err := Explain(t.Context(), s, Target{Kind: Snapshot, Namespace: "default", Name: "befor"})
	var unknown *ErrUnknown
	if !errors.As(err, &unknown) || !strings.Contains(err.Error(), "did you mean -n shop volumesnapshot/befor or volumesnapshot/before?") {
		t.Errorf("got %v", err)
	}
}
