package proxy

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// fake is a driver that counts what reaches it.
type fake struct {
	csi.UnimplementedControllerServer
	csi.UnimplementedSnapshotMetadataServer
	mu      sync.Mutex
	creates int
	hang    chan struct{} // CreateVolume waits for it, or for its caller
}

func (f *fake) CreateVolume(ctx context.Context, q *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	f.mu.Lock()
	f.creates++
	f.mu.Unlock()
	if f.hang != nil {
		select {
		case <-f.hang:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: q.GetName(), VolumeContext: map[string]string{"k": "v"}}}, nil
}

func (f *fake) DeleteVolume(context.Context, *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	return nil, status.Error(codes.Internal, "on fire")
}

func (f *fake) GetMetadataAllocated(_ *csi.GetMetadataAllocatedRequest, s csi.SnapshotMetadata_GetMetadataAllocatedServer) error {
	for i := range 3 {
		if err := s.Send(&csi.GetMetadataAllocatedResponse{VolumeCapacityBytes: int64(i)}); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.creates
}

// rig is a driver, a proxy before it, and a client of each kind.
type rig struct {
	*fake
	proxy *Proxy
	conn  *grpc.ClientConn

	mu    sync.Mutex
	calls []*Call
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{fake: &fake{}}
	l, err := net.Listen("unix", filepath.Join(dir, "d"))
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	csi.RegisterControllerServer(s, r.fake)
	csi.RegisterSnapshotMetadataServer(s, r.fake)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	r.proxy = New(func(c *Call) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.calls = append(r.calls, c)
	})
	u, err := r.proxy.Upstream(filepath.Join(dir, "d"))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.proxy.Serve(filepath.Join(dir, "p"), Kubernetes, u); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.proxy.Close)
	if r.conn, err = grpc.NewClient("unix://"+filepath.Join(dir, "p"), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.conn.Close() })
	return r
}

func (r *rig) create(ctx context.Context, t *testing.T, name string) (*csi.CreateVolumeResponse, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return csi.NewControllerClient(r.conn).CreateVolume(ctx, &csi.CreateVolumeRequest{Name: name, Secrets: map[string]string{"password": "hunter2"}})
}

// seen are the calls, once there are as many as asked for.
func (r *rig) seen(t *testing.T, n int) []*Call {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		r.mu.Lock()
		calls := slices.Clone(r.calls)
		r.mu.Unlock()
		if len(calls) >= n {
			return calls
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d calls were recorded, want %d", len(calls), n)
		}
	}
}

func TestCallsGoThroughAndAreRecordedWithoutSecrets(t *testing.T) {
	r := newRig(t)
	v, err := r.create(t.Context(), t, "a")
	if err != nil || v.GetVolume().GetVolumeContext()["k"] != "v" {
		t.Fatalf("%v, %v", v, err)
	}
	c := r.seen(t, 1)[0]
	if c.Method != "CreateVolume" || c.Service != "csi.v1.Controller" || c.From != Kubernetes || c.Code != codes.OK || c.Number != 1 {
		t.Errorf("recorded %+v", c)
	}
	if text := string(JSON(c.Request)); strings.Contains(text, "hunter2") || !strings.Contains(text, "stripped") {
		t.Errorf("the request is shown as %s", text)
	}
	if s := Secrets(c.Request); !slices.Equal(s, []string{"hunter2"}) {
		t.Errorf("its secrets are %q", s)
	}
}

func TestErrorsAndUnknownMethodsPassUnchanged(t *testing.T) {
	r := newRig(t)
	_, err := csi.NewControllerClient(r.conn).DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "a"})
	if status.Code(err) != codes.Internal || status.Convert(err).Message() != "on fire" {
		t.Errorf("DeleteVolume: %v", err)
	}
	err = r.conn.Invoke(t.Context(), "/vendor.example.com.Extra/Do", &csi.ProbeRequest{}, &csi.ProbeResponse{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("an RPC of the vendor's own: %v", err)
	}
	if c := r.seen(t, 2)[1]; c.Request != nil || c.Method != "Do" {
		t.Errorf("recorded %+v", c)
	}
}

func TestStreamsPass(t *testing.T) {
	r := newRig(t)
	s, err := csi.NewSnapshotMetadataClient(r.conn).GetMetadataAllocated(t.Context(), &csi.GetMetadataAllocatedRequest{SnapshotId: "s"})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; err == nil; n++ {
		_, err = s.Recv()
	}
	if n != 4 { // three messages and the end
		t.Errorf("%d receives, the last: %v", n, err)
	}
}

func TestFaults(t *testing.T) {
	for _, c := range []struct {
		kind  Kind
		code  codes.Code
		asked int // how often the driver is asked
	}{
		{Lost, codes.Unavailable, 1},
		{Late, codes.DeadlineExceeded, 1},
		{Twice, codes.OK, 2},
		{Cut, codes.Unavailable, 1},
		{Kill, codes.Unavailable, 1},
	} {
		t.Run(string(c.kind), func(t *testing.T) {
			r := newRig(t)
			killed := 0
			r.proxy.Inject(&Rule{Kind: c.kind, Method: "CreateVolume", Kill: func() { killed++ }})
			if _, err := r.create(t.Context(), t, "a"); status.Code(err) != c.code {
				t.Errorf("the caller sees %v, want %s", err, c.code)
			}
			if left := r.proxy.Disarm(); len(left) > 0 {
				t.Errorf("did not fire: %q", left)
			}
			r.seen(t, c.asked)
			// A request that was cut may or may not have reached the driver.
			if n := r.count(); n != c.asked && c.kind != Cut {
				t.Errorf("the driver was asked %d times, want %d", n, c.asked)
			}
			if (killed == 1) != (c.kind == Kill) {
				t.Errorf("killed %d times", killed)
			}
			if _, err := r.create(t.Context(), t, "b"); err != nil {
				t.Errorf("the next call: %v", err)
			}
		})
	}
}

// A fault waits for its method, and one that never comes is told.
func TestFaultsWaitForTheirMethod(t *testing.T) {
	r := newRig(t)
	r.proxy.Inject(&Rule{Kind: Lost, Method: "NodeStageVolume"})
	if _, err := r.create(t.Context(), t, "a"); err != nil {
		t.Error(err)
	}
	if left := r.proxy.Disarm(); !slices.Equal(left, []string{"NodeStageVolume"}) {
		t.Errorf("left %q", left)
	}
}

func TestACutReachesADriverThatHangs(t *testing.T) {
	r := newRig(t)
	r.hang = make(chan struct{})
	defer close(r.hang)
	r.proxy.Inject(&Rule{Kind: Cut, Method: "CreateVolume", Killing: 10 * time.Millisecond})
	if _, err := r.create(t.Context(), t, "a"); status.Code(err) != codes.Unavailable {
		t.Errorf("the caller sees %v", err)
	}
}

func TestADriverThatIsNotThereIsUnavailable(t *testing.T) {
	p := New(func(*Call) {})
	defer p.Close()
	dir := t.TempDir()
	u, err := p.Upstream(filepath.Join(dir, "nobody"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Serve(filepath.Join(dir, "p"), Kubernetes, u); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix://"+filepath.Join(dir, "p"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := csi.NewIdentityClient(conn).Probe(t.Context(), &csi.ProbeRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("Probe: %v", err)
	}
}
