package driver

import (
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// A field that the spec does not allow is named; what it does not measure may be of any size.
func TestCheckFields(t *testing.T) {
	long := strings.Repeat("x", maxString+1)
	many := map[string]string{}
	for _, c := range "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz" {
		many[string(c)+string(rune('0'+len(many)))] = long
	}
	flags := func(f ...string) *csi.VolumeCapability {
		return &csi.VolumeCapability{AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{MountFlags: f}}}
	}
	for name, tc := range map[string]struct {
		m    proto.Message
		want string // field; empty: allowed
	}{
		"an empty request":           {&csi.CreateVolumeRequest{}, ""},
		"the longest name":           {&csi.CreateVolumeRequest{Name: long[1:]}, ""},
		"a name too long":            {&csi.CreateVolumeRequest{Name: long}, "name"},
		"white space in a name":      {&csi.CreateVolumeRequest{Name: "a\tb\nc"}, ""},
		"a control character":        {&csi.CreateVolumeRequest{Name: "a\x7f"}, "name"},
		"a long node id":             {&csi.ControllerPublishVolumeRequest{NodeId: long}, ""},
		"a node id too long":         {&csi.ControllerPublishVolumeRequest{NodeId: long + long}, "node_id"},
		"a long path":                {&csi.NodePublishVolumeRequest{TargetPath: "/" + long}, ""},
		"a path too long":            {&csi.NodePublishVolumeRequest{TargetPath: strings.Repeat("/x", maxPath)}, "target_path"},
		"a path with a NUL":          {&csi.NodeStageVolumeRequest{StagingTargetPath: "/a\x00b"}, "staging_target_path"},
		"parameters too large":       {&csi.CreateVolumeRequest{Parameters: many}, "parameters"},
		"mutable ones, too":          {&csi.ControllerModifyVolumeRequest{MutableParameters: many}, "mutable_parameters"},
		"secrets of any size":        {&csi.CreateVolumeRequest{Secrets: many}, ""},
		"tokens in the context":      {&csi.NodePublishVolumeRequest{VolumeContext: many}, ""},
		"a token is looked at later": {&csi.ListVolumesRequest{StartingToken: long}, ""},
		"a field inside a list":      {&csi.CreateVolumeRequest{VolumeCapabilities: []*csi.VolumeCapability{flags("a\x00")}}, "volume_capabilities.mount.mount_flags"},
		"a context with commas":      {&csi.NodeStageVolumeRequest{VolumeCapability: flags(`context="system_u:object_r:container_file_t:s0:c1,c2"`)}, ""},
		"flags too long together":    {&csi.NodeStageVolumeRequest{VolumeCapability: flags(strings.Repeat("a,", maxFlags/4), strings.Repeat("b,", maxFlags/3))}, "volume_capability.mount.mount_flags"},
		"a source's id":              {&csi.CreateVolumeRequest{VolumeContentSource: &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: long}}}}, "volume_content_source.snapshot.snapshot_id"},
		"ids in a list":              {&csi.CreateVolumeGroupSnapshotRequest{SourceVolumeIds: []string{"a", long}}, "source_volume_ids"},
		"a topology":                 {&csi.GetCapacityRequest{AccessibleTopology: &csi.Topology{Segments: many}}, "accessible_topology.segments"},
	} {
		err := checkFields(tc.m)
		if tc.want == "" && err != nil || tc.want != "" && (status.Code(err) != codes.InvalidArgument || !strings.HasPrefix(status.Convert(err).Message(), tc.want+" ")) {
			t.Errorf("%s: %v, want %q named", name, err, tc.want)
		}
	}
}

func FuzzCheckFields(f *testing.F) {
	seed, _ := proto.Marshal(&csi.CreateVolumeRequest{Name: "n", Parameters: map[string]string{"k": "v"}, VolumeCapabilities: []*csi.VolumeCapability{{}}})
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		var r csi.CreateVolumeRequest
		if proto.Unmarshal(b, &r) == nil && checkFields(&r) == nil && (len(r.Name) > maxString || control(r.Name)) {
			t.Errorf("accepted %q", r.Name)
		}
	})
}

// A token continues after the entry that it names, whatever it is; what is no token is an error, and never a panic.
func FuzzPageOf(f *testing.F) {
	all := []string{"a", "b", "c", "d"}
	f.Add("after:b", int32(1))
	f.Add("", int32(0))
	f.Add("before:b", int32(-1))
	f.Fuzz(func(t *testing.T, token string, most int32) {
		page, next, err := pageOf(all, func(s string) string { return s }, token, most)
		if err != nil {
			return
		}
		if most > 0 && len(page) > int(most) {
			t.Errorf("%d entries, and %d are allowed", len(page), most)
		}
		if next != "" {
			if _, _, err := pageOf(all, func(s string) string { return s }, next, most); err != nil {
				t.Errorf("our own token %q: %v", next, err)
			}
		}
		for _, id := range page {
			if token != "" && id <= strings.TrimPrefix(token, tokenPrefix) {
				t.Errorf("%q again after %q", id, token)
			}
		}
	})
}

func TestParseGroup(t *testing.T) {
	for s, want := range map[string]int64{"": noGroup, "0": 0, "4294967294": 4294967294} {
		if got, err := parseGroup(s); err != nil || got != want {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"-1", "4294967295", "wheel", "0x10", " 1", "1.5", "99999999999999999999"} {
		if got, err := parseGroup(s); err == nil {
			t.Errorf("%q is group %d", s, got)
		}
	}
}

func FuzzParseGroup(f *testing.F) {
	f.Add("1000")
	f.Fuzz(func(t *testing.T, s string) {
		if g, err := parseGroup(s); err == nil && (g < noGroup || g >= 1<<32-1) {
			t.Errorf("%q is group %d", s, g)
		}
	})
}
