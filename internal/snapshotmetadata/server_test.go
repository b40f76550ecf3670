package snapshotmetadata

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	cbtv1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	cbtfake "github.com/kubernetes-csi/external-snapshot-metadata/client/clientset/versioned/fake"
	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	snapfake "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/fake"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	authnv1 "k8s.io/api/authentication/v1"
	authzv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
)

// tellingDriver is a CSI driver that tells the blocks of its one snapshot, "s-2".
type tellingDriver struct {
	csispec.UnimplementedIdentityServer
	csispec.UnimplementedSnapshotMetadataServer
	dumb    bool
	secrets map[string]string
}

func (d *tellingDriver) GetPluginCapabilities(context.Context, *csispec.GetPluginCapabilitiesRequest) (*csispec.GetPluginCapabilitiesResponse, error) {
	if d.dumb {
		return &csispec.GetPluginCapabilitiesResponse{}, nil
	}
	return &csispec.GetPluginCapabilitiesResponse{Capabilities: []*csispec.PluginCapability{{Type: &csispec.PluginCapability_Service_{
		Service: &csispec.PluginCapability_Service{Type: csispec.PluginCapability_Service_SNAPSHOT_METADATA_SERVICE}}}}}, nil
}

func (d *tellingDriver) GetMetadataAllocated(r *csispec.GetMetadataAllocatedRequest, out csispec.SnapshotMetadata_GetMetadataAllocatedServer) error {
	d.secrets = r.GetSecrets()
	if r.GetSnapshotId() != "s-2" {
		return status.Error(codes.NotFound, "no such snapshot")
	}
	for i := range int64(3) {
		if err := out.Send(&csispec.GetMetadataAllocatedResponse{BlockMetadataType: csispec.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: 1 << 20,
			BlockMetadata: []*csispec.BlockMetadata{{ByteOffset: r.GetStartingOffset() + i*8192, SizeBytes: 4096}}}); err != nil {
			return err
		}
	}
	return nil
}

func (d *tellingDriver) GetMetadataDelta(r *csispec.GetMetadataDeltaRequest, out csispec.SnapshotMetadata_GetMetadataDeltaServer) error {
	if r.GetBaseSnapshotId() != "s-1" {
		return status.Error(codes.NotFound, "no such base")
	}
	return out.Send(&csispec.GetMetadataDeltaResponse{BlockMetadataType: csispec.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: 1 << 20,
		BlockMetadata: []*csispec.BlockMetadata{{ByteOffset: 4096, SizeBytes: 4096}}})
}

// world is a server with one driver, and the API objects of one snapshot.
type world struct {
	*testing.T
	driver   *tellingDriver
	services *cbtfake.Clientset
	server   *Server
}

func ptr[T any](v T) *T { return &v }

func snapshotObjects() []runtime.Object {
	snapshot := func(name, content string, ready bool) *snapv1.VolumeSnapshot {
		return &snapv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "uid-of-it"},
			Status: &snapv1.VolumeSnapshotStatus{ReadyToUse: ptr(ready), BoundVolumeSnapshotContentName: ptr(content)}}
	}
	content := func(name, of, driver, handle string) *snapv1.VolumeSnapshotContent {
		return &snapv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:   snapv1.VolumeSnapshotContentSpec{Driver: driver, VolumeSnapshotClassName: ptr("class"), VolumeSnapshotRef: corev1.ObjectReference{Namespace: "ns", Name: of, UID: "uid-of-it"}},
			Status: &snapv1.VolumeSnapshotContentStatus{ReadyToUse: ptr(true), SnapshotHandle: ptr(handle)}}
	}
	return []runtime.Object{
		&snapv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: "class"}, Driver: "d.csi.example.com", Parameters: map[string]string{
			"csi.storage.k8s.io/snapshotter-secret-name": "key", "csi.storage.k8s.io/snapshotter-secret-namespace": "ns"}},
		snapshot("good", "c-good", true), content("c-good", "good", "d.csi.example.com", "s-2"),
		snapshot("young", "c-young", false), content("c-young", "young", "d.csi.example.com", "s-3"),
		snapshot("thief", "c-good", true),
		snapshot("other", "c-other", true), content("c-other", "other", "other.csi.example.com", "s-9"),
		snapshot("unknown", "c-unknown", true), content("c-unknown", "unknown", "d.csi.example.com", "s-77"),
	}
}

func start(t *testing.T, driver *tellingDriver) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "sm") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "csi.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	csispec.RegisterIdentityServer(g, driver)
	csispec.RegisterSnapshotMetadataServer(g, driver)
	go g.Serve(l)
	t.Cleanup(g.Stop)

	client := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "key"}, Data: map[string][]byte{"password": []byte("hush")}})
	// Tokens are "USER for AUDIENCE".
	client.PrependReactor("create", "tokenreviews", func(a k8stesting.Action) (bool, runtime.Object, error) {
		r := a.(k8stesting.CreateAction).GetObject().(*authnv1.TokenReview).DeepCopy()
		user, audience, ok := strings.Cut(r.Spec.Token, " for ")
		if user == "broken" {
			return true, nil, errors.New("etcd is asleep")
		}
		if ok && slices.Contains(r.Spec.Audiences, audience) {
			r.Status = authnv1.TokenReviewStatus{Authenticated: true, User: authnv1.UserInfo{Username: user}, Audiences: []string{audience}}
		} else if audience == "nobody-in-particular" {
			r.Status = authnv1.TokenReviewStatus{Authenticated: true, User: authnv1.UserInfo{Username: user}}
		}
		return true, r, nil
	})
	client.PrependReactor("create", "subjectaccessreviews", func(a k8stesting.Action) (bool, runtime.Object, error) {
		r := a.(k8stesting.CreateAction).GetObject().(*authzv1.SubjectAccessReview).DeepCopy()
		ra := r.Spec.ResourceAttributes
		r.Status.Allowed = r.Spec.User == "backup" && ra.Namespace == "ns" && ra.Verb == "get" && ra.Resource == "volumesnapshots"
		return true, r, nil
	})
	w := &world{T: t, driver: driver, services: cbtfake.NewSimpleClientset()}
	//lint:ignore SA1019 the snapshot clients come without apply configurations, and so without NewClientset
	w.server, err = New(Options{Client: client, Snap: snapfake.NewSimpleClientset(snapshotObjects()...), Services: w.services})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	w.server.AddDriver("d.csi.example.com", socket)
	return w
}

func (w *world) eventually(what string, ok func() bool) {
	w.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	w.Fatal("never: " + what)
}

func (w *world) object() *cbtv1.SnapshotMetadataService {
	o, err := w.services.CbtV1beta1().SnapshotMetadataServices().Get(w.Context(), "d.csi.example.com", metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return o
}

// client goes by the object alone, as a backup program does.
func (w *world) client() api.SnapshotMetadataClient {
	w.Helper()
	w.eventually("driver served", func() bool { return len(w.server.audiences()) == 1 })
	o := w.object()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(o.Spec.CACert) {
		w.Fatalf("no certificate in %q", o.Spec.CACert)
	}
	conn, err := grpc.NewClient(o.Spec.Address, grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(pool, "")))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { conn.Close() })
	return api.NewSnapshotMetadataClient(conn)
}

const goodToken = "backup for d.csi.example.com"

func TestAllocated(t *testing.T) {
	w := start(t, &tellingDriver{})
	stream, err := w.client().GetMetadataAllocated(t.Context(), &api.GetMetadataAllocatedRequest{SecurityToken: goodToken, Namespace: "ns", SnapshotName: "good", StartingOffset: 4096})
	if err != nil {
		t.Fatal(err)
	}
	var offsets []int64
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if m.VolumeCapacityBytes != 1<<20 || m.BlockMetadataType != api.BlockMetadataType_VARIABLE_LENGTH {
			t.Errorf("message %v", m)
		}
		for _, b := range m.BlockMetadata {
			offsets = append(offsets, b.ByteOffset)
		}
	}
	if !slices.Equal(offsets, []int64{4096, 12288, 20480}) {
		t.Errorf("offsets %v", offsets)
	}
	if w.driver.secrets["password"] != "hush" {
		t.Error("the driver did not get the secret of the snapshot's class")
	}
}

func TestDelta(t *testing.T) {
	w := start(t, &tellingDriver{})
	stream, err := w.client().GetMetadataDelta(t.Context(), &api.GetMetadataDeltaRequest{SecurityToken: goodToken, Namespace: "ns", BaseSnapshotId: "s-1", TargetSnapshotName: "good"})
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.Recv()
	if err != nil || len(m.BlockMetadata) != 1 || m.BlockMetadata[0].ByteOffset != 4096 {
		t.Errorf("message %v, %v", m, err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("end: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	w := start(t, &tellingDriver{})
	client := w.client()
	good := func() *api.GetMetadataAllocatedRequest {
		return &api.GetMetadataAllocatedRequest{SecurityToken: goodToken, Namespace: "ns", SnapshotName: "good"}
	}
	for name, c := range map[string]struct {
		change func(*api.GetMetadataAllocatedRequest)
		code   codes.Code
		says   string
	}{
		"no token":                    {func(r *api.GetMetadataAllocatedRequest) { r.SecurityToken = "" }, codes.InvalidArgument, "security_token"},
		"no namespace":                {func(r *api.GetMetadataAllocatedRequest) { r.Namespace = "" }, codes.InvalidArgument, "namespace"},
		"a path for a namespace":      {func(r *api.GetMetadataAllocatedRequest) { r.Namespace = "../kube-system" }, codes.InvalidArgument, "namespace"},
		"no name":                     {func(r *api.GetMetadataAllocatedRequest) { r.SnapshotName = "" }, codes.InvalidArgument, "snapshot_name"},
		"negative offset":             {func(r *api.GetMetadataAllocatedRequest) { r.StartingOffset = -1 }, codes.InvalidArgument, "starting_offset"},
		"negative count":              {func(r *api.GetMetadataAllocatedRequest) { r.MaxResults = -1 }, codes.InvalidArgument, "max_results"},
		"token of another audience":   {func(r *api.GetMetadataAllocatedRequest) { r.SecurityToken = "backup for elsewhere" }, codes.Unauthenticated, "audience"},
		"token without audience":      {func(r *api.GetMetadataAllocatedRequest) { r.SecurityToken = "backup for nobody-in-particular" }, codes.Unauthenticated, "audience"},
		"token that is none":          {func(r *api.GetMetadataAllocatedRequest) { r.SecurityToken = "x" }, codes.Unauthenticated, "token"},
		"API server in trouble":       {func(r *api.GetMetadataAllocatedRequest) { r.SecurityToken = "broken for d" }, codes.Internal, "etcd"},
		"no right to the namespace":   {func(r *api.GetMetadataAllocatedRequest) { r.Namespace = "elsewhere" }, codes.PermissionDenied, "backup may not get volumesnapshots"},
		"user without rights":         {func(r *api.GetMetadataAllocatedRequest) { r.SecurityToken = "guest for d.csi.example.com" }, codes.PermissionDenied, "guest"},
		"no such snapshot":            {func(r *api.GetMetadataAllocatedRequest) { r.SnapshotName = "gone" }, codes.NotFound, "ns/gone"},
		"snapshot not ready":          {func(r *api.GetMetadataAllocatedRequest) { r.SnapshotName = "young" }, codes.Unavailable, "not ready"},
		"content of another snapshot": {func(r *api.GetMetadataAllocatedRequest) { r.SnapshotName = "thief" }, codes.FailedPrecondition, "ns/good"},
		"snapshot of another driver":  {func(r *api.GetMetadataAllocatedRequest) { r.SnapshotName = "other" }, codes.InvalidArgument, "other.csi.example.com"},
		"the driver knows no such id": {func(r *api.GetMetadataAllocatedRequest) { r.SnapshotName = "unknown" }, codes.NotFound, "the driver: no such snapshot"},
	} {
		t.Run(name, func(t *testing.T) {
			r := good()
			c.change(r)
			stream, err := client.GetMetadataAllocated(t.Context(), r)
			if err == nil {
				_, err = stream.Recv()
			}
			if status.Code(err) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v; want %s with %q", err, c.code, c.says)
			}
			if strings.Contains(err.Error(), goodToken) {
				t.Error("the token is in the answer")
			}
		})
	}
	for _, id := range []string{"", strings.Repeat("x", 129)} {
		stream, err := client.GetMetadataDelta(t.Context(), &api.GetMetadataDeltaRequest{SecurityToken: goodToken, Namespace: "ns", TargetSnapshotName: "good", BaseSnapshotId: id})
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("base of %d bytes: %v", len(id), err)
		}
	}
}

// TestDriverGoes: who asks is told, the object stays; when the driver is back all is as before.
func TestDriverGoes(t *testing.T) {
	w := start(t, &tellingDriver{})
	client := w.client()
	w.server.RemoveDriver("d.csi.example.com")
	stream, err := client.GetMetadataAllocated(t.Context(), &api.GetMetadataAllocatedRequest{SecurityToken: goodToken, Namespace: "ns", SnapshotName: "good"})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("without the driver: %v", err)
	}
	if w.object() == nil {
		t.Error("the object went with the driver")
	}
}

// TestObjectOfAnEarlierProcess: its address and certificate are replaced.
func TestObjectOfAnEarlierProcess(t *testing.T) {
	w := start(t, &tellingDriver{})
	w.client()
	before := w.object()
	stale := before.DeepCopy()
	stale.Spec.Address, stale.Spec.CACert = "127.0.0.1:1", []byte("old")
	if _, err := w.services.CbtV1beta1().SnapshotMetadataServices().Update(t.Context(), stale, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := w.server.publish(t.Context(), "d.csi.example.com"); err != nil {
		t.Fatal(err)
	}
	if got := w.object(); got.Spec.Address != before.Spec.Address || string(got.Spec.CACert) != string(before.Spec.CACert) {
		t.Errorf("object %+v", got.Spec)
	}
}

// TestDriverWithoutTheService has no object, and nobody is let in for it.
func TestDriverWithoutTheService(t *testing.T) {
	w := start(t, &tellingDriver{dumb: true})
	w.eventually("asked", func() bool {
		w.server.mu.Lock()
		defer w.server.mu.Unlock()
		return w.server.ctx != nil
	})
	w.server.mu.Lock()
	d := w.server.drivers["d.csi.example.com"]
	w.server.mu.Unlock()
	if err := w.server.introduce(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if w.object() != nil || len(w.server.audiences()) != 0 {
		t.Error("a driver without the service is served")
	}
}
