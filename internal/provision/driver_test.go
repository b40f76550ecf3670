package provision

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
)

// tiny is a CSI driver over a real socket whose controller calls can be replaced by the test.
type tiny struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	name         string
	caps         []csi.ControllerServiceCapability_RPC_Type
	noController bool

	create    func(context.Context, *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error)
	publish   func(context.Context, *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error)
	unpublish func(context.Context, *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error)

	mu      sync.Mutex
	free    int64
	creates []string
	deletes []string
	holds   []string
}

func (d *tiny) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: d.name, VendorVersion: "1"}, nil
}

func (d *tiny) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	if d.noController {
		return &csi.GetPluginCapabilitiesResponse{}, nil
	}
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{{Type: &csi.PluginCapability_Service_{
		Service: &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE}}}}}, nil
}

func (d *tiny) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	out := &csi.ControllerGetCapabilitiesResponse{}
	for _, c := range d.caps {
		out.Capabilities = append(out.Capabilities, &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{
			Rpc: &csi.ControllerServiceCapability_RPC{Type: c}}})
	}
	return out, nil
}

func (d *tiny) CreateVolume(ctx context.Context, q *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	d.mu.Lock()
	d.creates = append(d.creates, q.Name)
	create := d.create
	d.mu.Unlock()
	if create != nil {
		return create(ctx, q)
	}
	return volume(q), nil
}

func volume(q *csi.CreateVolumeRequest) *csi.CreateVolumeResponse {
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: "id-" + q.Name, CapacityBytes: q.CapacityRange.RequiredBytes}}
}

func (d *tiny) DeleteVolume(_ context.Context, q *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.deletes = append(d.deletes, q.VolumeId)
	return &csi.DeleteVolumeResponse{}, nil
}

func (d *tiny) ControllerPublishVolume(ctx context.Context, q *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	if d.publish != nil {
		return d.publish(ctx, q)
	}
	return &csi.ControllerPublishVolumeResponse{}, nil
}

func (d *tiny) ControllerUnpublishVolume(ctx context.Context, q *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	if d.unpublish != nil {
		return d.unpublish(ctx, q)
	}
	return &csi.ControllerUnpublishVolumeResponse{}, nil
}

func (d *tiny) GetCapacity(context.Context, *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &csi.GetCapacityResponse{AvailableCapacity: d.free}, nil
}

// ListVolumes answers in pages of two.
func (d *tiny) ListVolumes(_ context.Context, q *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	from, _ := strconv.Atoi(q.StartingToken)
	out := &csi.ListVolumesResponse{}
	for i := from; i < len(d.holds) && i < from+2; i++ {
		out.Entries = append(out.Entries, &csi.ListVolumesResponse_Entry{Volume: &csi.Volume{VolumeId: d.holds[i]}})
	}
	if from+2 < len(d.holds) {
		out.NextToken = strconv.Itoa(from + 2)
	}
	return out, nil
}

func (d *tiny) calls() (creates, deletes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.creates), len(d.deletes)
}

// serve listens until the test ends and returns the driver as it registers.
func (d *tiny) serve(t *testing.T) Driver {
	t.Helper()
	return d.serveAs(t, d)
}

// serveAs serves what has more than tiny, and its other calls from tiny.
func (d *tiny) serveAs(t *testing.T, all interface {
	csi.IdentityServer
	csi.ControllerServer
}) Driver {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "csi.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	csi.RegisterIdentityServer(s, all)
	csi.RegisterControllerServer(s, all)
	if g, ok := all.(csi.GroupControllerServer); ok {
		csi.RegisterGroupControllerServer(s, g)
	}
	go func() {
		if err := s.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	}()
	t.Cleanup(s.Stop)
	return Driver{Name: d.name, Endpoint: socket}
}

var createDelete = []csi.ControllerServiceCapability_RPC_Type{csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME}

// world is a manager over a fake API.
type world struct {
	*testing.T
	api *fake.Clientset
	m   *Manager
}

func start(t *testing.T, objects ...runtime.Object) *world {
	t.Helper()
	return startOn(t, fake.NewClientset(objects...))
}

// startOn is start on an API whose reactions are set: that must happen before anything asks it.
func startOn(t *testing.T, api *fake.Clientset) *world {
	t.Helper()
	return run(t, api, func(*Options) {})
}

// startWith is start with other options.
func startWith(t *testing.T, change func(*Options), objects ...runtime.Object) *world {
	t.Helper()
	return run(t, fake.NewClientset(objects...), change)
}

func run(t *testing.T, api *fake.Clientset, change func(*Options)) *world {
	t.Helper()
	f := informers.NewSharedInformerFactory(api, 0)
	o := Options{Client: api, Informers: f, Workers: 4, RPCTimeout: 2 * time.Second, Namespace: "berth-system",
		Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	change(&o)
	m, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	f.Start(ctx.Done())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Error("Run did not end")
		}
	})
	return &world{t, api, m}
}

// eventually waits for a fact; the test fails when it does not come true.
func (w *world) eventually(what string, fact func() bool) {
	w.Helper()
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if fact() {
			return
		}
	}
	w.Fatalf("never: %s", what)
}

func (w *world) claim(name string) *v1.PersistentVolumeClaim {
	c, err := w.api.CoreV1().PersistentVolumeClaims("ns").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		w.Fatal(err)
	}
	return c
}

func (w *world) volume(name string) *v1.PersistentVolume {
	pv, err := w.api.CoreV1().PersistentVolumes().Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return pv
}

func class(driver string) *storagev1.StorageClass {
	policy, mode := v1.PersistentVolumeReclaimDelete, storagev1.VolumeBindingImmediate
	return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: driver, UID: types.UID("class-" + driver)}, Provisioner: driver, ReclaimPolicy: &policy, VolumeBindingMode: &mode}
}

func claim(name, driver string, change ...func(*v1.PersistentVolumeClaim)) *v1.PersistentVolumeClaim {
	c := &v1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name), Annotations: map[string]string{annProvisioner: driver}},
		Spec: v1.PersistentVolumeClaimSpec{StorageClassName: &driver, AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
			Resources: v1.VolumeResourceRequirements{Requests: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}}},
		Status: v1.PersistentVolumeClaimStatus{Phase: v1.ClaimPending},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func deleted(c *v1.PersistentVolumeClaim) { now := metav1.Now(); c.DeletionTimestamp = &now }

func intended(c *v1.PersistentVolumeClaim) { c.Finalizers = append(c.Finalizers, Finalizer) }
