package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
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
		{backend.ErrSnapshotNotFound, codes.NotFound},
		{backend.ErrCannotFreeze, codes.FailedPrecondition},
		{backend.ErrInGroup, codes.InvalidArgument},
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

// A volume that was asked for with less than its filesystem needs can be restored by a claim of the same size: its snapshot has no size for
// the cluster to compare the claim with.
func TestSizeOfASnapshot(t *testing.T) {
	const mib = int64(1) << 20
	d := &Driver{o: Options{Name: "d", Node: "n"}}
	for name, tc := range map[string]struct {
		bytes  int64
		fsType string
		want   int64
	}{
		"ext4":              {20 * mib, "ext4", 20 * mib},
		"the least of ext4": {8 * mib, "ext4", 0},
		"the least of xfs":  {300 * mib, "xfs", 0},
		"raw":               {8 * mib, "", 8 * mib},
	} {
		t.Run(name, func(t *testing.T) {
			if got := d.snapshot(backend.Snapshot{SizeBytes: tc.bytes, FSType: tc.fsType}).SizeBytes; got != tc.want {
				t.Errorf("%d; want %d", got, tc.want)
			}
		})
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

func (l *listed) CheckParameters(map[string]string) error { return nil }

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

// Whatever carries secrets, in a call or in a stream, is logged without them, and so are a pod's tokens.
func TestSecretsAreNotLogged(t *testing.T) {
	secret := map[string]string{"key": "open sesame"}
	tokens := map[string]string{contextTokens: "open sesame", "size": "1Gi"}
	for _, request := range []any{
		&csi.CreateVolumeRequest{Secrets: secret}, &csi.DeleteVolumeRequest{Secrets: secret},
		&csi.ControllerPublishVolumeRequest{Secrets: secret}, &csi.ControllerUnpublishVolumeRequest{Secrets: secret},
		&csi.ValidateVolumeCapabilitiesRequest{Secrets: secret}, &csi.ControllerExpandVolumeRequest{Secrets: secret},
		&csi.ControllerModifyVolumeRequest{Secrets: secret}, &csi.ControllerGetVolumeHealthRequest{Secrets: secret},
		&csi.ControllerListVolumeHealthRequest{Secrets: secret}, &csi.CreateSnapshotRequest{Secrets: secret}, &csi.DeleteSnapshotRequest{Secrets: secret},
		&csi.ListSnapshotsRequest{Secrets: secret}, &csi.GetSnapshotRequest{Secrets: secret}, &csi.CreateVolumeGroupSnapshotRequest{Secrets: secret},
		&csi.DeleteVolumeGroupSnapshotRequest{Secrets: secret}, &csi.GetVolumeGroupSnapshotRequest{Secrets: secret},
		&csi.GetMetadataAllocatedRequest{Secrets: secret}, &csi.GetMetadataDeltaRequest{Secrets: secret}, &csi.NodeStageVolumeRequest{Secrets: secret},
		&csi.NodePublishVolumeRequest{Secrets: secret, VolumeContext: tokens}, &csi.NodeExpandVolumeRequest{Secrets: secret},
		&csi.NodeGetStorageHealthRequest{Secrets: secret},
	} {
		if out := printable(request); strings.Contains(out, "sesame") {
			t.Errorf("%T: %s", request, out)
		}
	}
	if tokens[contextTokens] != "open sesame" {
		t.Error("the request itself was changed")
	}
	if out := printable(nil); out != "null" {
		t.Errorf("no request: %s", out)
	}
}

// A backend that only keeps volumes has no more advertised, and answers no more.
func TestOnlyWhatWorksIsAdvertised(t *testing.T) {
	d := testDriver(t, &listed{})
	identity, err := d.GetPluginCapabilities(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range identity.Capabilities {
		switch c.GetService().GetType() {
		case csi.PluginCapability_Service_GROUP_CONTROLLER_SERVICE, csi.PluginCapability_Service_SNAPSHOT_METADATA_SERVICE,
			csi.PluginCapability_Service_SNAPSHOT_ACCESSIBILITY_CONSTRAINTS:
			t.Errorf("advertised: %v", c)
		}
	}
	controller, err := d.ControllerGetCapabilities(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range controller.Capabilities {
		switch c.GetRpc().GetType() {
		case csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT, csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
			csi.ControllerServiceCapability_RPC_GET_SNAPSHOT, csi.ControllerServiceCapability_RPC_CLONE_VOLUME, csi.ControllerServiceCapability_RPC_MODIFY_VOLUME:
			t.Errorf("advertised: %v", c)
		}
	}
	if _, err := d.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: "v"}); status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
	if _, err := d.ControllerModifyVolume(t.Context(), &csi.ControllerModifyVolumeRequest{VolumeId: "v"}); status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
	if err := d.checkParameters(&csi.CreateVolumeRequest{MutableParameters: map[string]string{"iops": "1"}}); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
}

// modified is a backend with one volume that can be modified.
type modified struct {
	listed
	mutable map[string]string
}

func (m *modified) Get(context.Context, string) (backend.Volume, error) {
	return backend.Volume{ID: "v", Mutable: m.mutable}, nil
}
func (m *modified) CheckMutable(map[string]string) error { return nil }
func (m *modified) Modify(_ context.Context, _ string, p map[string]string) error {
	m.mutable = p
	return nil
}

// grown is a backend with one volume of 3 MiB, in units of a MiB.
type grown struct {
	modified
	asked int64
}

func (g *grown) Get(context.Context, string) (backend.Volume, error) {
	return backend.Volume{ID: "v", SizeBytes: 3 << 20}, nil
}
func (g *grown) RoundSize(bytes int64) int64 { return (bytes + 1<<20 - 1) >> 20 << 20 }
func (g *grown) Resize(_ context.Context, _ string, bytes int64) (backend.Volume, error) {
	g.asked = bytes
	return backend.Volume{ID: "v", SizeBytes: max(3<<20, g.RoundSize(bytes))}, nil
}

// A volume is never grown beyond the limit, also not by rounding up.
func TestExpandKeepsToTheLimit(t *testing.T) {
	for name, tc := range map[string]struct {
		required, limit int64
		want            codes.Code
	}{
		"no limit":                 {5<<20 + 1, 0, codes.OK},
		"the limit has room":       {5<<20 + 1, 6 << 20, codes.OK},
		"exactly":                  {5 << 20, 5 << 20, codes.OK},
		"rounded beyond it":        {5<<20 + 1, 5<<20 + 2, codes.OutOfRange},
		"has more than the limit":  {1 << 20, 2 << 20, codes.OutOfRange},
		"has enough, within units": {3<<20 - 5, 3<<20 + 1, codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			g := &grown{}
			r, err := testDriver(t, g).ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{
				VolumeId: "v", CapacityRange: &csi.CapacityRange{RequiredBytes: tc.required, LimitBytes: tc.limit},
			})
			if status.Code(err) != tc.want || tc.want != codes.OK && g.asked != 0 {
				t.Errorf("%v, asked for %d", err, g.asked)
			}
			if tc.limit > 0 && r.GetCapacityBytes() > tc.limit {
				t.Errorf("%d bytes, the limit is %d", r.GetCapacityBytes(), tc.limit)
			}
		})
	}
}

// Only what is named goes to the backend, which leaves the rest: what was read before could be old by then.
func TestModifyLeavesTheRest(t *testing.T) {
	m := &modified{mutable: map[string]string{"a": "1", "b": "2"}}
	d := testDriver(t, m)
	if _, err := d.ControllerModifyVolume(t.Context(), &csi.ControllerModifyVolumeRequest{VolumeId: "v", MutableParameters: map[string]string{"b": "3"}}); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(m.mutable) != "map[b:3]" {
		t.Errorf("%v", m.mutable)
	}
	if _, err := d.ControllerModifyVolume(t.Context(), &csi.ControllerModifyVolumeRequest{VolumeId: "v"}); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
}

// From a segment that is not this node's, or that we do not know, nothing of this node is reachable.
func TestReachable(t *testing.T) {
	d := testDriver(t, &listed{})
	for name, tc := range map[string]struct {
		segments map[string]string
		want     bool
	}{
		"none":          {nil, true},
		"this node":     {map[string]string{TopologyKey(BlockName): "n"}, true},
		"another node":  {map[string]string{TopologyKey(BlockName): "m"}, false},
		"another key":   {map[string]string{"topology.kubernetes.io/zone": "a"}, false},
		"one too many":  {map[string]string{TopologyKey(BlockName): "n", "rack": "1"}, false},
		"an empty name": {map[string]string{TopologyKey(BlockName): ""}, false},
	} {
		want := codes.OK
		if !tc.want {
			want = codes.ResourceExhausted
		}
		_, err := d.reachable(&csi.TopologyRequirement{Requisite: []*csi.Topology{{Segments: tc.segments}}})
		if status.Code(err) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A driver whose volumes are on several nodes leaves the choice to its backend, and refuses what no node can be.
func TestReachablePlaces(t *testing.T) {
	d, err := New(Options{Name: BlockName, Controller: &placing{}})
	if err != nil {
		t.Fatal(err)
	}
	at := func(nodes ...string) (all []*csi.Topology) {
		for _, n := range nodes {
			all = append(all, &csi.Topology{Segments: map[string]string{TopologyKey(BlockName): n}})
		}
		return all
	}
	elsewhere := &csi.Topology{Segments: map[string]string{"topology.kubernetes.io/zone": "a"}}
	for name, tc := range map[string]struct {
		asked *csi.TopologyRequirement
		want  backend.Place
		code  codes.Code
	}{
		"nothing":                    {nil, backend.Place{}, codes.OK},
		"one of two, b rather":       {&csi.TopologyRequirement{Requisite: at("a", "b"), Preferred: at("b", "a")}, backend.Place{Requisite: []string{"a", "b"}, Preferred: []string{"b", "a"}}, codes.OK},
		"b rather, and anywhere":     {&csi.TopologyRequirement{Preferred: at("b")}, backend.Place{Preferred: []string{"b"}}, codes.OK},
		"a zone, which we know not":  {&csi.TopologyRequirement{Requisite: []*csi.Topology{elsewhere}}, backend.Place{}, codes.ResourceExhausted},
		"a zone, or b":               {&csi.TopologyRequirement{Requisite: append(at("b"), elsewhere)}, backend.Place{Requisite: []string{"b"}}, codes.OK},
		"an empty segment: anywhere": {&csi.TopologyRequirement{Requisite: append(at("b"), &csi.Topology{})}, backend.Place{}, codes.OK},
	} {
		got, err := d.reachable(tc.asked)
		if status.Code(err) != tc.code || err == nil && !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// placing is a backend of several nodes, as far as requests are read.
type placing struct{ backend.Controller }

func (placing) CapacityOf(context.Context, string) (backend.Capacity, error) {
	return backend.Capacity{}, nil
}

// Ranges are gathered into messages, the first a small one; what ends before the start is left out, and nothing goes
// beyond the end.
func TestBatch(t *testing.T) {
	var sizes []int
	var all []*csi.BlockMetadata
	send := func(_ int64, ranges []*csi.BlockMetadata) error {
		sizes = append(sizes, len(ranges))
		all = append(all, ranges...)
		return nil
	}
	b, err := newBatch(1000, 10, 0, send)
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(100) {
		if err := b.add(backend.Range{Offset: i * 11, Length: 10}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.end(); err != nil {
		t.Fatal(err)
	}
	last := all[len(all)-1]
	if len(sizes) != 2 || sizes[0] != firstRanges || all[0].ByteOffset != 11 || last.ByteOffset+last.SizeBytes != 1000 {
		t.Errorf("messages of %v, from %v to %v", sizes, all[0], last)
	}
	sizes = nil
	if b, _ = newBatch(1000, 1000, 5, send); b.end() != nil || len(sizes) != 1 || sizes[0] != 0 {
		t.Errorf("nothing: messages of %v", sizes)
	}
}
