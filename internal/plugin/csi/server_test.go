package csi

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"berth.io/berth/internal/plugin"
)

// nodeServer is a CSI node service over a unix socket that keeps directories and files instead of mounts.
type nodeServer struct {
	csipb.UnimplementedNodeServer
	socket string
	server *grpc.Server

	mu    sync.Mutex
	caps  []csipb.NodeServiceCapability_RPC_Type
	calls []string
	last  map[string]proto.Message
	fails map[string]error
	hangs map[string]bool
	// stats and health are what the driver says of its volumes.
	stats  *csipb.NodeGetVolumeStatsResponse
	health []*csipb.VolumeHealth_VolumeHealthEntry
}

var allCapabilities = []csipb.NodeServiceCapability_RPC_Type{
	csipb.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
	csipb.NodeServiceCapability_RPC_EXPAND_VOLUME,
}

func serve(t *testing.T, caps ...csipb.NodeServiceCapability_RPC_Type) *nodeServer {
	t.Helper()
	dir, err := os.MkdirTemp("", "csi") // a socket's path is short: t.TempDir() may be too long
	if err != nil {
		t.Fatal(err)
	}
	s := &nodeServer{socket: filepath.Join(dir, "s"), caps: caps, last: map[string]proto.Message{}, fails: map[string]error{}, hangs: map[string]bool{}}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s.listen(t)
	return s
}

func (s *nodeServer) listen(t *testing.T) {
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	s.server = grpc.NewServer(grpc.UnaryInterceptor(s.intercept))
	csipb.RegisterNodeServer(s.server, s)
	go func(server *grpc.Server) { _ = server.Serve(l) }(s.server)
	t.Cleanup(s.server.Stop)
}

func (s *nodeServer) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	method := filepath.Base(info.FullMethod)
	s.mu.Lock()
	if method != "NodeGetCapabilities" || len(s.calls) == 0 {
		s.calls = append(s.calls, method)
	}
	s.last[method] = req.(proto.Message)
	fail, hang := s.fails[method], s.hangs[method]
	s.mu.Unlock()
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if fail != nil {
		return nil, fail
	}
	return handler(ctx, req)
}

func (s *nodeServer) fail(method string, code codes.Code) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if code == codes.OK {
		delete(s.fails, method)
		return
	}
	s.fails[method] = status.Error(code, "because")
}

func (s *nodeServer) called() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

func (s *nodeServer) NodeGetCapabilities(context.Context, *csipb.NodeGetCapabilitiesRequest) (*csipb.NodeGetCapabilitiesResponse, error) {
	r := &csipb.NodeGetCapabilitiesResponse{}
	for _, c := range s.caps {
		r.Capabilities = append(r.Capabilities, &csipb.NodeServiceCapability{
			Type: &csipb.NodeServiceCapability_Rpc{Rpc: &csipb.NodeServiceCapability_RPC{Type: c}},
		})
	}
	return r, nil
}

func (s *nodeServer) NodeStageVolume(_ context.Context, r *csipb.NodeStageVolumeRequest) (*csipb.NodeStageVolumeResponse, error) {
	_, err := os.Stat(r.StagingTargetPath)
	return &csipb.NodeStageVolumeResponse{}, err
}

func (s *nodeServer) NodeUnstageVolume(context.Context, *csipb.NodeUnstageVolumeRequest) (*csipb.NodeUnstageVolumeResponse, error) {
	return &csipb.NodeUnstageVolumeResponse{}, nil
}

func (s *nodeServer) NodePublishVolume(_ context.Context, r *csipb.NodePublishVolumeRequest) (*csipb.NodePublishVolumeResponse, error) {
	if r.VolumeCapability.GetBlock() != nil {
		return &csipb.NodePublishVolumeResponse{}, os.WriteFile(r.TargetPath, []byte("device"), 0o600)
	}
	return &csipb.NodePublishVolumeResponse{}, os.MkdirAll(r.TargetPath, 0o750)
}

func (s *nodeServer) NodeUnpublishVolume(_ context.Context, r *csipb.NodeUnpublishVolumeRequest) (*csipb.NodeUnpublishVolumeResponse, error) {
	return &csipb.NodeUnpublishVolumeResponse{}, os.RemoveAll(r.TargetPath)
}

func (s *nodeServer) NodeExpandVolume(context.Context, *csipb.NodeExpandVolumeRequest) (*csipb.NodeExpandVolumeResponse, error) {
	return &csipb.NodeExpandVolumeResponse{}, nil
}

func (s *nodeServer) NodeGetVolumeStats(context.Context, *csipb.NodeGetVolumeStatsRequest) (*csipb.NodeGetVolumeStatsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats, nil
}

func (s *nodeServer) NodeGetVolumeHealth(_ context.Context, r *csipb.NodeGetVolumeHealthRequest) (*csipb.NodeGetVolumeHealthResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &csipb.NodeGetVolumeHealthResponse{VolumeHealth: &csipb.VolumeHealth{VolumeId: r.VolumeId, HealthStatuses: s.health}}, nil
}

const (
	testDriver = "test.example.com"
	testNode   = "node-1"
)

// newPlugin makes a plugin whose API has the objects; informers are synced.
func newPlugin(t *testing.T, s *nodeServer, o DriversOptions, objects ...runtime.Object) (*Plugin, *fake.Clientset) {
	t.Helper()
	client := fake.NewClientset(objects...)
	factory := informers.NewSharedInformerFactory(client, 0)
	o.Log = slog.New(slog.DiscardHandler)
	drivers := NewDrivers(o)
	t.Cleanup(drivers.Close)
	if s != nil {
		if err := drivers.Register(testDriver, s.socket, "1.0.0"); err != nil {
			t.Fatal(err)
		}
	}
	p, err := New(Options{Client: client, Informers: factory, Drivers: drivers, DataDir: t.TempDir(), Node: testNode, Log: o.Log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	t.Cleanup(func() { cancel(); factory.Shutdown() })
	return p, client
}

func csiDriver(change ...func(*storagev1.CSIDriverSpec)) *storagev1.CSIDriver {
	d := &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: testDriver}}
	no, policy := false, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy
	d.Spec.AttachRequired, d.Spec.FSGroupPolicy = &no, &policy
	d.Spec.VolumeLifecycleModes = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}
	for _, f := range change {
		f(&d.Spec)
	}
	return d
}

// testVolume is pv-1 in pod-1.
func testVolume(change ...func(*plugin.Volume)) *plugin.Volume {
	v := &plugin.Volume{
		Name: "data",
		Pod: &v1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "pod-1", Namespace: "default", UID: "pod-uid"},
			Spec:       v1.PodSpec{ServiceAccountName: "sa"},
		},
		PV: &v1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "pv-1"},
			Spec: v1.PersistentVolumeSpec{
				AccessModes:  []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
				MountOptions: []string{"noatime"},
				PersistentVolumeSource: v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{
					Driver: testDriver, VolumeHandle: "handle/1", FSType: "ext4", VolumeAttributes: map[string]string{"a": "b"},
				}},
			},
		},
	}
	for _, f := range change {
		f(v)
	}
	return v
}

func asBlock(v *plugin.Volume) {
	mode := v1.PersistentVolumeBlock
	v.PV.Spec.VolumeMode = &mode
}
