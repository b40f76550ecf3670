package spec

import (
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth.io/berth/internal/try/proxy"
)

// call is an OK answer unless change says otherwise.
func call(method string, q, r proto.Message, change ...func(*proxy.Call)) *proxy.Call {
	c := &proxy.Call{Number: 1, From: proxy.Kubernetes, Method: method, Request: q, Response: r}
	for _, f := range change {
		f(c)
	}
	return c
}

func failed(code codes.Code, message string) func(*proxy.Call) {
	return func(c *proxy.Call) { c.Code, c.Message, c.Response = code, message, nil }
}

func create(name, id string, required, limit, have int64) *proxy.Call {
	return call("CreateVolume", &csi.CreateVolumeRequest{Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: required, LimitBytes: limit}},
		&csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: id, CapacityBytes: have}})
}

func remove(id string, change ...func(*proxy.Call)) *proxy.Call {
	return call("DeleteVolume", &csi.DeleteVolumeRequest{VolumeId: id}, &csi.DeleteVolumeResponse{}, change...)
}

func TestWhatBreaksTheSpecification(t *testing.T) {
	long := strings.Repeat("x", 129)
	source := &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: "s"}}}
	snap := func(id, of string, cut bool) *proxy.Call {
		s := &csi.Snapshot{SnapshotId: id, SourceVolumeId: of}
		if cut {
			s.CreationTime = timestamppb.Now()
		}
		return call("CreateSnapshot", &csi.CreateSnapshotRequest{Name: "n", SourceVolumeId: "v"}, &csi.CreateSnapshotResponse{Snapshot: s})
	}
	for _, c := range []struct {
		name  string
		calls []*proxy.Call
		want  []string
	}{
		{"a volume as asked", []*proxy.Call{create("a", "1", 10, 20, 15)}, nil},
		{"a volume of unknown size", []*proxy.Call{create("a", "1", 10, 20, 0)}, nil},
		{"a volume that is too small", []*proxy.Call{create("a", "1", 10, 0, 9)}, []string{"CreateVolume/capacity-below-required"}},
		{"a volume that is too large", []*proxy.Call{create("a", "1", 10, 20, 21)}, []string{"CreateVolume/capacity-above-limit"}},
		{"no volume at all", []*proxy.Call{call("CreateVolume", &csi.CreateVolumeRequest{Name: "a"}, &csi.CreateVolumeResponse{})}, []string{"CreateVolume/no-id"}},
		{"the same name twice", []*proxy.Call{create("a", "1", 1, 0, 1), create("a", "1", 1, 0, 1)}, nil},
		{"the same name with another id", []*proxy.Call{create("a", "1", 1, 0, 1), create("a", "2", 1, 0, 1)}, []string{"CreateVolume/same-name-other-id"}},
		{"the same name after its deletion", []*proxy.Call{create("a", "1", 1, 0, 1), remove("1"), create("a", "2", 1, 0, 1)}, nil},
		{"two names with one id", []*proxy.Call{create("a", "1", 1, 0, 1), create("b", "1", 1, 0, 1)}, []string{"CreateVolume/same-id-other-name"}},
		{"another id after a lost answer", []*proxy.Call{
			call("CreateVolume", &csi.CreateVolumeRequest{Name: "a"}, &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: "1"}}, func(c *proxy.Call) { c.Injected = "answer lost" }),
			create("a", "2", 1, 0, 1)}, []string{"CreateVolume/same-name-other-id"}},
		{"a source that is not answered", []*proxy.Call{call("CreateVolume", &csi.CreateVolumeRequest{Name: "a", VolumeContentSource: source},
			&csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: "1"}})}, []string{"CreateVolume/source-not-answered"}},
		{"an id over 128 bytes", []*proxy.Call{create("a", long, 1, 0, 1)}, []string{"CreateVolume/string-too-long"}},
		{"a context over 4 KiB", []*proxy.Call{call("CreateVolume", &csi.CreateVolumeRequest{Name: "a"}, &csi.CreateVolumeResponse{
			Volume: &csi.Volume{VolumeId: "1", VolumeContext: map[string]string{"k": strings.Repeat("v", 4097)}}})}, []string{"CreateVolume/map-too-large"}},
		{"a secret in the context", []*proxy.Call{call("CreateVolume", &csi.CreateVolumeRequest{Name: "a", Secrets: map[string]string{"p": "hunter2!"}},
			&csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: "1", VolumeContext: map[string]string{"k": "p=hunter2!"}}})}, []string{"CreateVolume/secret-in-answer"}},
		{"a secret in an error", []*proxy.Call{call("CreateVolume", &csi.CreateVolumeRequest{Name: "a", Secrets: map[string]string{"p": "hunter2!"}}, nil,
			failed(codes.Unauthenticated, "login with hunter2! failed"))}, []string{"CreateVolume/secret-in-error"}},
		{"an error without a message", []*proxy.Call{call("CreateVolume", &csi.CreateVolumeRequest{}, nil, failed(codes.Internal, " "))}, []string{"CreateVolume/error-without-message"}},
		{"an error without a code", []*proxy.Call{call("CreateVolume", &csi.CreateVolumeRequest{}, nil, failed(codes.Unknown, "oops"))}, []string{"CreateVolume/unknown-code"}},
		{"a promise that is not kept", []*proxy.Call{call("CreateVolume", &csi.CreateVolumeRequest{}, nil, failed(codes.Unimplemented, "later"))}, []string{"CreateVolume/advertised-but-unimplemented"}},
		{"what was never promised", []*proxy.Call{call("ListVolumes", &csi.ListVolumesRequest{}, nil, failed(codes.Unimplemented, "no"))}, nil},
		{"a deletion that is not idempotent", []*proxy.Call{create("a", "1", 1, 0, 1), remove("1"), remove("1", failed(codes.NotFound, "no 1"))}, []string{"DeleteVolume/missing-not-ok"}},
		{"a second delivery that fails", []*proxy.Call{call("NodeStageVolume", &csi.NodeStageVolumeRequest{}, nil, failed(codes.Internal, "busy"), func(c *proxy.Call) { c.Again = true })},
			[]string{"NodeStageVolume/not-idempotent"}},
		{"a second delivery that is pending", []*proxy.Call{call("NodeStageVolume", &csi.NodeStageVolumeRequest{}, nil, failed(codes.Aborted, "pending"), func(c *proxy.Call) { c.Again = true })}, nil},
		{"a volume that is forgotten", []*proxy.Call{create("a", "1", 1, 0, 1), call("NodeStageVolume", &csi.NodeStageVolumeRequest{VolumeId: "1"}, nil, failed(codes.NotFound, "no 1"))},
			[]string{"NodeStageVolume/forgotten"}},
		{"a volume that never was", []*proxy.Call{call("NodeStageVolume", &csi.NodeStageVolumeRequest{VolumeId: "1"}, nil, failed(codes.NotFound, "no 1"))}, nil},
		{"an expansion that is none", []*proxy.Call{call("ControllerExpandVolume", &csi.ControllerExpandVolumeRequest{CapacityRange: &csi.CapacityRange{RequiredBytes: 2}},
			&csi.ControllerExpandVolumeResponse{CapacityBytes: 1})}, []string{"ControllerExpandVolume/capacity-below-required"}},
		{"an expansion on the node without a size", []*proxy.Call{call("NodeExpandVolume", &csi.NodeExpandVolumeRequest{CapacityRange: &csi.CapacityRange{RequiredBytes: 2}},
			&csi.NodeExpandVolumeResponse{})}, nil},
		{"a snapshot as asked", []*proxy.Call{snap("s", "v", true)}, nil},
		{"a snapshot without its time", []*proxy.Call{snap("s", "v", false)}, []string{"CreateSnapshot/no-creation-time"}},
		{"a snapshot of another volume", []*proxy.Call{snap("s", "w", true)}, []string{"CreateSnapshot/other-source"}},
		{"a snapshot twice", []*proxy.Call{snap("s", "v", true), snap("s2", "v", true)}, []string{"CreateSnapshot/same-name-other-id"}},
		{"a page that is too long", []*proxy.Call{call("ListVolumes", &csi.ListVolumesRequest{MaxEntries: 1}, &csi.ListVolumesResponse{Entries: []*csi.ListVolumesResponse_Entry{
			{Volume: &csi.Volume{VolumeId: "1"}}, {Volume: &csi.Volume{VolumeId: "2"}}}})}, []string{"ListVolumes/more-than-max-entries"}},
		{"a name that is none", []*proxy.Call{call("GetPluginInfo", &csi.GetPluginInfoRequest{}, &csi.GetPluginInfoResponse{Name: "../../etc/passwd", VendorVersion: "1"})}, []string{"GetPluginInfo/name"}},
		{"no version", []*proxy.Call{call("GetPluginInfo", &csi.GetPluginInfoRequest{}, &csi.GetPluginInfoResponse{Name: "a.example.com"})}, []string{"GetPluginInfo/no-version"}},
		{"a node without a topology", []*proxy.Call{call("NodeGetInfo", &csi.NodeGetInfoRequest{}, &csi.NodeGetInfoResponse{NodeId: "n"})}, []string{"NodeGetInfo/no-topology"}},
		{"a node with an impossible topology", []*proxy.Call{call("NodeGetInfo", &csi.NodeGetInfoRequest{}, &csi.NodeGetInfoResponse{NodeId: "n",
			AccessibleTopology: &csi.Topology{Segments: map[string]string{"example.com/zone": "a b"}}})}, []string{"NodeGetInfo/topology-value"}},
		{"a call that found no driver", []*proxy.Call{call("CreateVolume", &csi.CreateVolumeRequest{}, nil, failed(codes.Unavailable, ""),
			func(c *proxy.Call) { c.Injected = "the driver could not be reached" })}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := New()
			k.SetCapabilities(Capabilities{Plugin: []string{Constraints, ControllerService}, Controller: []string{"CREATE_DELETE_VOLUME", "EXPAND_VOLUME", "CREATE_DELETE_SNAPSHOT"}})
			var got []string
			for _, call := range c.calls {
				for _, v := range k.Check(call) {
					got = append(got, v.Rule)
					if v.Section == "" || v.Text == "" {
						t.Errorf("%s has no section or no text", v.Rule)
					}
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("found %q, want %q", got, c.want)
			}
		})
	}
}

// A driver that does the same wrong a hundred times is told once.
func TestEachRuleIsToldOnce(t *testing.T) {
	k := New()
	if n := len(k.Check(create("a", "1", 10, 0, 9))); n != 1 {
		t.Fatalf("%d violations, want 1", n)
	}
	if v := k.Check(create("b", "2", 10, 0, 9)); len(v) != 0 {
		t.Errorf("told again: %v", v)
	}
}

func TestASecretThatIsShortIsNotLookedFor(t *testing.T) {
	k := New("a")
	if v := k.Check(create("a", "a", 1, 0, 1)); len(v) != 0 {
		t.Errorf("found %v", v)
	}
}
