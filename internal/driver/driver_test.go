package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.io/berth/internal/backend"
)

func TestCodes(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want codes.Code
	}{
		{&backend.BusyError{Volume: "v", Holder: "NodeStageVolume", Step: "making ext4", Since: time.Unix(0, 0)}, codes.Aborted},
		{backend.ErrNotFound, codes.NotFound},
		{backend.ErrNodeNotFound, codes.NotFound},
		{backend.ErrExists, codes.AlreadyExists},
		{backend.ErrNoSpace, codes.ResourceExhausted},
		{backend.ErrTooLarge, codes.OutOfRange},
		{backend.ErrInvalid, codes.InvalidArgument},
		{backend.ErrInUse, codes.FailedPrecondition},
		{backend.ErrNotStaged, codes.FailedPrecondition},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{errors.New("anything else"), codes.Internal},
		{status.Error(codes.Unimplemented, "as it is"), codes.Unimplemented},
	} {
		err := statusOf(fmt.Errorf("around: %w", tc.err))
		if _, ok := tc.err.(interface{ GRPCStatus() *status.Status }); ok {
			err = statusOf(tc.err)
		}
		if status.Code(err) != tc.want {
			t.Errorf("%v: %v, want %v", tc.err, status.Code(err), tc.want)
		}
	}
	if statusOf(nil) != nil {
		t.Error("no error is an error")
	}
}

func capability(mode csi.VolumeCapability_AccessMode_Mode, fsType string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
	}
}

func TestUsesOf(t *testing.T) {
	const one, many = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	for name, tc := range map[string]struct {
		in       []*csi.VolumeCapability
		unserved bool
		invalid  bool
	}{
		"one node":                {in: []*csi.VolumeCapability{capability(one, "ext4")}},
		"none":                    {invalid: true},
		"an empty one":            {in: []*csi.VolumeCapability{{}}, invalid: true},
		"a nil one":               {in: []*csi.VolumeCapability{nil}, invalid: true},
		"no mode":                 {in: []*csi.VolumeCapability{capability(0, "")}, invalid: true},
		"two filesystems at once": {in: []*csi.VolumeCapability{capability(one, "ext4"), capability(one, "xfs")}, invalid: true},
		"many nodes":              {in: []*csi.VolumeCapability{capability(many, "")}, unserved: true},
		"another filesystem":      {in: []*csi.VolumeCapability{capability(one, "ntfs")}, unserved: true},
	} {
		_, err := usesOf("volume_capabilities", tc.in)
		var no *unserved
		if errors.As(err, &no) != tc.unserved || (status.Code(err) == codes.InvalidArgument) != tc.invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// listed is a backend that only lists.
type listed struct {
	backend.Backend
	volumes []backend.Volume
}

func (l *listed) List(context.Context) ([]backend.Volume, error) { return l.volumes, nil }

func (l *listed) Delete(context.Context, string) error { panic("bug") }

func testDriver(t *testing.T, b backend.Backend) *Driver {
	t.Helper()
	d, err := New(Options{Name: BlockName, Node: "n", Backend: b, SocketPath: filepath.Join(t.TempDir(), "s")})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A volume deleted between two pages takes no other with it.
func TestListPages(t *testing.T) {
	l := &listed{}
	for i := range 5 {
		l.volumes = append(l.volumes, backend.Volume{ID: fmt.Sprint("v", i)})
	}
	d := testDriver(t, l)
	var got []string
	token := ""
	for page := 0; ; page++ {
		r, err := d.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: 2, StartingToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range r.Entries {
			got = append(got, e.Volume.VolumeId)
		}
		if token = r.NextToken; token == "" {
			break
		}
		if page == 0 {
			l.volumes = l.volumes[2:] // those of the first page
		}
	}
	if strings.Join(got, " ") != "v0 v1 v2 v3 v4" {
		t.Errorf("%v", got)
	}
	if _, err := d.ListVolumes(t.Context(), &csi.ListVolumesRequest{StartingToken: "x"}); status.Code(err) != codes.Aborted {
		t.Error(err)
	}
	if _, err := d.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: -1}); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
}

// A bug in one call is an error of that call; secrets are in no log.
func TestInterceptor(t *testing.T) {
	d := testDriver(t, &listed{})
	var log strings.Builder
	d.o.Log = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	_, err := d.intercept(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "v", Secrets: map[string]string{"key": "open sesame"}},
		&grpc.UnaryServerInfo{FullMethod: "/csi.v1.Controller/DeleteVolume"},
		func(ctx context.Context, req any) (any, error) {
			if _, ok := ctx.Deadline(); !ok {
				t.Error("no deadline")
			}
			return d.DeleteVolume(ctx, req.(*csi.DeleteVolumeRequest))
		})
	if status.Code(err) != codes.Internal {
		t.Error(err)
	}
	if strings.Contains(log.String(), "sesame") || !strings.Contains(log.String(), "DeleteVolume") {
		t.Error(log.String())
	}
}

// A socket that a killed process left is replaced; one that is served is not.
func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x", "csi.sock")
	first, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil {
		t.Error("took a socket that is served")
	}
	first.(interface{ SetUnlinkOnClose(bool) }).SetUnlinkOnClose(false)
	first.Close()
	second, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
	if _, err := Listen("/" + strings.Repeat("long", 40)); err == nil {
		t.Error("no error for a path that is too long")
	}
}
