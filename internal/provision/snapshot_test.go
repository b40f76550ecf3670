package provision

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	snapclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	snapfake "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/fake"
	snapfactory "github.com/kubernetes-csi/external-snapshotter/client/v8/informers/externalversions"
	"google.golang.org/protobuf/types/known/timestamppb"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/metadata"
	metadatafake "k8s.io/client-go/metadata/fake"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"
)

// The fakes of the snapshot clients send no bookmarks, which a reflector that streams its list waits for.
func TestMain(m *testing.M) {
	os.Setenv("KUBE_FEATURE_WatchListClient", "false")
	os.Exit(m.Run())
}

// withSnapshots starts a manager whose API has the snapshot kinds, group snapshots too.
func withSnapshots(t *testing.T, snapshots []runtime.Object, objects ...runtime.Object) (*world, *snapfake.Clientset, *record.FakeRecorder) {
	t.Helper()
	//lint:ignore SA1019 the snapshot clients come without apply configurations, and so without NewClientset
	snaps := snapfake.NewSimpleClientset(snapshots...)
	w, events := withSnapshotsOf(t, snaps, snaps, definitionsOf(t), objects...)
	w.eventually("the watches", func() bool {
		watches := 0
		for _, a := range append(snaps.Actions(), w.api.Actions()...) {
			if a.GetVerb() == "watch" {
				watches++
			}
		}
		return watches >= 13 // seven of the core API, six of snapshots
	})
	return w, snaps, events
}

// definitionsOf is an API with CustomResourceDefinitions.
func definitionsOf(t *testing.T) *metadatafake.FakeMetadataClient {
	t.Helper()
	s := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(s); err != nil {
		t.Fatal(err)
	}
	return metadatafake.NewSimpleMetadataClient(s)
}

// withSnapshotsOf starts a manager on a snapshot client, which is fake or around it, whose reactions are set.
func withSnapshotsOf(t *testing.T, fakes *snapfake.Clientset, snaps snapclient.Interface, definitions metadata.Interface, objects ...runtime.Object) (*world, *record.FakeRecorder) {
	t.Helper()
	for version, names := range snapshotResources {
		list := &metav1.APIResourceList{GroupVersion: version}
		for _, n := range names {
			list.APIResources = append(list.APIResources, metav1.APIResource{Name: n})
		}
		fakes.Resources = append(fakes.Resources, list)
	}
	api := fake.NewClientset(objects...)
	f := informers.NewSharedInformerFactory(api, 0)
	events := record.NewFakeRecorder(100)
	m, err := New(Options{Client: api, Informers: f, Snap: snaps, SnapInformers: snapfactory.NewSharedInformerFactory(snaps, 0), Definitions: definitions, Workers: 4, RPCTimeout: 2 * time.Second,
		Events: events, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	f.Start(ctx.Done())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := m.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		ended := make(chan struct{})
		go func() { wg.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Error("the manager did not end")
		}
	})
	return &world{t, api, m}, events
}

func snapshotOf(name, claim string) *snapv1.VolumeSnapshot {
	// The common controller reads versions as numbers; the fake makes none.
	return &snapv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "uid-s", ResourceVersion: "1"},
		Spec: snapv1.VolumeSnapshotSpec{Source: snapv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim}}}
}

func boundTo(driver string) func(*v1.PersistentVolumeClaim) {
	return func(c *v1.PersistentVolumeClaim) { c.Spec.VolumeName, c.Status.Phase = "pv", v1.ClaimBound }
}

func volumeFor(c *v1.PersistentVolumeClaim, driver string) *v1.PersistentVolume {
	return &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: v1.PersistentVolumeSpec{
		ClaimRef:               &v1.ObjectReference{Namespace: "ns", Name: c.Name, UID: c.UID},
		PersistentVolumeSource: v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: "h"}}},
		Status: v1.PersistentVolumeStatus{Phase: v1.VolumeBound}}
}

var data = append([]csi.ControllerServiceCapability_RPC_Type{csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT, csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
	csi.ControllerServiceCapability_RPC_MODIFY_VOLUME}, createDelete...)

// snapshotter is tiny with snapshots and group snapshots.
type snapshotting struct {
	*tiny
	csi.UnimplementedGroupControllerServer
	mu    sync.Mutex
	taken []string
}

func (d *snapshotting) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	r := &csi.GetPluginCapabilitiesResponse{}
	for _, s := range []csi.PluginCapability_Service_Type{csi.PluginCapability_Service_CONTROLLER_SERVICE, csi.PluginCapability_Service_GROUP_CONTROLLER_SERVICE} {
		r.Capabilities = append(r.Capabilities, &csi.PluginCapability{Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: s}}})
	}
	return r, nil
}

func (d *snapshotting) GroupControllerGetCapabilities(context.Context, *csi.GroupControllerGetCapabilitiesRequest) (*csi.GroupControllerGetCapabilitiesResponse, error) {
	return &csi.GroupControllerGetCapabilitiesResponse{Capabilities: []*csi.GroupControllerServiceCapability{{Type: &csi.GroupControllerServiceCapability_Rpc{
		Rpc: &csi.GroupControllerServiceCapability_RPC{Type: csi.GroupControllerServiceCapability_RPC_CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT}}}}}, nil
}

func (d *snapshotting) CreateSnapshot(_ context.Context, q *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.taken = append(d.taken, q.SourceVolumeId)
	return &csi.CreateSnapshotResponse{Snapshot: &csi.Snapshot{SnapshotId: "s-" + q.Name, SourceVolumeId: q.SourceVolumeId, ReadyToUse: true, CreationTime: timestamppb.Now()}}, nil
}

func told(events *record.FakeRecorder, text string) func() bool {
	return func() bool {
		for len(events.Events) > 0 {
			if e := <-events.Events; strings.Contains(e, text) {
				return true
			}
		}
		return false
	}
}

// A driver with group snapshots comes and goes without leaving a worker behind that nobody can wait for.
func TestDriverWithGroupSnapshotsGoes(t *testing.T) {
	w, _, _ := withSnapshots(t, nil, class("d"))
	d := &snapshotting{tiny: &tiny{name: "d", caps: data}}
	reg := d.serveAs(t, d)
	for range 2 {
		w.m.AddDriver(t.Context(), reg)
		w.eventually("its roles", func() bool {
			s := w.m.Status()
			return len(s) == 1 && s[0].Ready && slices.Contains(s[0].Roles, "group-snapshot") && slices.Contains(s[0].Roles, "modify")
		})
		gone := make(chan struct{})
		go func() { w.m.RemoveDriver("d"); close(gone) }()
		select {
		case <-gone:
		case <-time.After(30 * time.Second):
			t.Fatal("the driver did not go")
		}
	}
}

// A snapshot of a driver that cannot take any is told so, though no driver here can.
func TestSnapshotOfADriverThatCannot(t *testing.T) {
	a := claim("a", "d", boundTo("d"))
	w, snaps, events := withSnapshots(t, nil, class("d"), a, volumeFor(a, "d"))
	w.m.AddDriver(t.Context(), (&tiny{name: "d", caps: createDelete}).serve(t))
	w.eventually("the driver to be served", func() bool { return w.m.serves("d") })
	if _, err := snaps.SnapshotV1().VolumeSnapshots("ns").Create(t.Context(), snapshotOf("s", "a"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("to be told so", told(events, "cannot take snapshots"))
}

// What is left of a provisioner's hold on a snapshot goes with the snapshot, when no claim is made from it any more.
func TestLeftOverHoldOnASnapshotGoes(t *testing.T) {
	now := metav1.Now()
	held := snapshotOf("s", "gone")
	held.DeletionTimestamp, held.Finalizers = &now, []string{"another", sourceFinalizer}
	maker := claim("maker", "d")
	maker.Spec.DataSource = &v1.TypedLocalObjectReference{APIGroup: ptr.To(snapv1.GroupName), Kind: snapshotKind, Name: "s"}
	w, snaps, _ := withSnapshots(t, []runtime.Object{held}, maker)
	holds := func() bool {
		s, err := snaps.SnapshotV1().VolumeSnapshots("ns").Get(t.Context(), "s", metav1.GetOptions{})
		return err == nil && slices.Contains(s.Finalizers, sourceFinalizer)
	}
	time.Sleep(50 * time.Millisecond)
	if !holds() {
		t.Fatal("let go while a claim is made from it")
	}
	if err := w.api.CoreV1().PersistentVolumeClaims("ns").Delete(t.Context(), "maker", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("the hold to go", func() bool { return !holds() })
}

// The class that a claim wants is not there: the claim says so, and no longer when it has come.
func TestClaimSaysWhyItKeepsItsAttributes(t *testing.T) {
	a := claim("a", "d", boundTo("d"), func(c *v1.PersistentVolumeClaim) { c.Spec.VolumeAttributesClassName = ptr.To("gold") })
	w, _, events := withSnapshots(t, nil, class("d"), a, volumeFor(a, "d"))
	d := &tiny{name: "d", caps: createDelete}
	w.m.AddDriver(t.Context(), d.serve(t))
	says := func(reason string) func() bool {
		return func() bool {
			p := refusal(w.claim("a"))
			return reason == "" && p == nil || p != nil && p.Reason == reason
		}
	}
	w.eventually("the missing class", says(reasonNoClass))
	w.eventually("an event of it", told(events, "does not exist"))
	_, err := w.api.StorageV1().VolumeAttributesClasses().Create(t.Context(), &storagev1.VolumeAttributesClass{ObjectMeta: metav1.ObjectMeta{Name: "gold"}, DriverName: "d"}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.eventually("the driver that cannot", says(reasonCannot))
	back := w.claim("a")
	back.Spec.VolumeAttributesClassName = nil
	if _, err := w.api.CoreV1().PersistentVolumeClaims("ns").Update(t.Context(), back, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("the refusal to go", says(""))
}
