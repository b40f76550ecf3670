package provision

import (
	"slices"
	"strconv"
	"sync"
	"testing"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	snapclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	snapfake "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/fake"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	metadatafake "k8s.io/client-go/metadata/fake"
	"k8s.io/utils/ptr"
)

// lateKinds is an API that serves kinds of snapshots from the moment on at which the test says so.
type lateKinds struct {
	snapclient.Interface
	mu     sync.Mutex
	served []string // group versions
	asked  map[string]int
}

func (l *lateKinds) Discovery() discovery.DiscoveryInterface {
	return lateDiscovery{l.Interface.Discovery(), l}
}

type lateDiscovery struct {
	discovery.DiscoveryInterface
	late *lateKinds
}

func (d lateDiscovery) ServerResourcesForGroupVersion(version string) (*metav1.APIResourceList, error) {
	d.late.mu.Lock()
	defer d.late.mu.Unlock()
	d.late.asked[version]++
	if !slices.Contains(d.late.served, version) {
		return nil, apierrors.NewNotFound(schema.GroupResource{}, version)
	}
	return d.DiscoveryInterface.ServerResourcesForGroupVersion(version)
}

func (l *lateKinds) serve(version string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.served = append(l.served, version)
}

func (l *lateKinds) times(version string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked[version]
}

// define makes the definitions of a group version, as `kubectl apply` does.
func define(t *testing.T, definitions *metadatafake.FakeMetadataClient, version string) {
	t.Helper()
	group, err := schema.ParseGroupVersion(version)
	if err != nil {
		t.Fatal(err)
	}
	api := definitions.Resource(definitionsResource).(metadatafake.MetadataClient)
	for _, r := range snapshotResources[version] {
		d := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "apiextensions.k8s.io/v1", Kind: "CustomResourceDefinition"}, ObjectMeta: metav1.ObjectMeta{Name: r + "." + group.Group}}
		if _, err := api.CreateFake(d, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// Snapshots are custom resources: the API may begin to serve them when the driver is there already (an instance that starts for
// the first time, a cluster that is given them later), single ones before groups, and a moment after their definition shows.
func TestKindsOfSnapshotsComeAfterTheDriver(t *testing.T) {
	//lint:ignore SA1019 the snapshot clients come without apply configurations, and so without NewClientset
	snaps := snapfake.NewSimpleClientset()
	numberWrites(snaps)
	late, definitions := &lateKinds{Interface: snaps, asked: map[string]int{}}, definitionsOf(t)
	a := claim("a", "d", boundTo("d"))
	w, _ := withSnapshotsOf(t, snaps, late, definitions, class("d"), a, volumeFor(a, "d"))
	d := &snapshotting{tiny: &tiny{name: "d", caps: data}}
	if err := w.m.AddDriver(t.Context(), d.serveAs(t, d)); err != nil {
		t.Fatal(err)
	}
	single, group := snapv1.SchemeGroupVersion.String(), groupv1.SchemeGroupVersion.String()
	w.eventually("the driver without snapshots", func() bool {
		s := w.m.Status()
		return len(s) == 1 && s[0].Ready && late.times(single) > 0 && late.times(group) > 0
	})
	has := func(role string) bool { return slices.Contains(w.m.Status()[0].Roles, role) }
	if has(snapshotRole) {
		t.Fatalf("the API has no snapshots, and the roles are %q", w.m.Status()[0].Roles)
	}

	taken := func(n int) {
		t.Helper()
		s := snapshotOf("s"+strconv.Itoa(n), "a")
		s.UID, s.Spec.VolumeSnapshotClassName = types.UID("uid-"+s.Name), ptr.To("c")
		if _, err := snaps.SnapshotV1().VolumeSnapshots("ns").Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.eventually("snapshot "+s.Name, func() bool {
			d.mu.Lock()
			defer d.mu.Unlock()
			return len(d.taken) >= n
		})
	}
	c := &snapv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Driver: "d", DeletionPolicy: snapv1.VolumeSnapshotContentDelete}
	if _, err := snaps.SnapshotV1().VolumeSnapshotClasses().Create(t.Context(), c, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}

	define(t, definitions, single)
	before := late.times(single)
	w.eventually("to be asked again", func() bool { return late.times(single) > before })
	late.serve(single)
	w.eventually("the snapshot role", func() bool { return has(snapshotRole) })
	if has(groupSnapshotRole) {
		t.Error("the API has no group snapshots, and the driver takes them")
	}
	taken(1)

	late.serve(group)
	define(t, definitions, group)
	w.eventually("the group snapshot role", func() bool { return has(groupSnapshotRole) })
	taken(2)
}
