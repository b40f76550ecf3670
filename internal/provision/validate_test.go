package provision

import (
	"net/http"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func TestValidate(t *testing.T) {
	ask := &csi.CreateVolumeRequest{CapacityRange: &csi.CapacityRange{RequiredBytes: 10, LimitBytes: 20}}
	long := make([]byte, 129)
	for i := range long {
		long[i] = 'x'
	}
	for name, c := range map[string]struct {
		req, reply any
		ok         bool
	}{
		"a volume":                  {ask, &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: "v", CapacityBytes: 10}}, true},
		"size unknown":              {ask, &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: "v"}}, true},
		"no volume":                 {ask, &csi.CreateVolumeResponse{}, false},
		"no id":                     {ask, &csi.CreateVolumeResponse{Volume: &csi.Volume{}}, false},
		"id too long":               {ask, &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: string(long)}}, false},
		"negative size":             {ask, &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: "v", CapacityBytes: -1}}, false},
		"above the limit":           {ask, &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: "v", CapacityBytes: 21}}, false},
		"expanded":                  {&csi.ControllerExpandVolumeRequest{CapacityRange: &csi.CapacityRange{RequiredBytes: 5}}, &csi.ControllerExpandVolumeResponse{CapacityBytes: 5}, true},
		"expanded to less":          {&csi.ControllerExpandVolumeRequest{CapacityRange: &csi.CapacityRange{RequiredBytes: 5}}, &csi.ControllerExpandVolumeResponse{CapacityBytes: 4}, false},
		"negative capacity":         {&csi.GetCapacityRequest{}, &csi.GetCapacityResponse{AvailableCapacity: -1}, false},
		"snapshot without an id":    {&csi.CreateSnapshotRequest{}, &csi.CreateSnapshotResponse{}, false},
		"a snapshot":                {&csi.CreateSnapshotRequest{}, &csi.CreateSnapshotResponse{Snapshot: snap("s", "v")}, true},
		"snapshot of no time":       {&csi.CreateSnapshotRequest{}, &csi.CreateSnapshotResponse{Snapshot: &csi.Snapshot{SnapshotId: "s"}}, false},
		"snapshot below zero":       {&csi.CreateSnapshotRequest{}, &csi.CreateSnapshotResponse{Snapshot: &csi.Snapshot{SnapshotId: "s", SizeBytes: -1, CreationTime: timestamppb.Now()}}, false},
		"a list of nothing":         {&csi.ListSnapshotsRequest{}, &csi.ListSnapshotsResponse{}, true},
		"a list with a hole":        {&csi.ListSnapshotsRequest{}, &csi.ListSnapshotsResponse{Entries: []*csi.ListSnapshotsResponse_Entry{{}}}, false},
		"a group":                   {groupOf("a", "b"), group("g", snap("1", "b"), snap("2", "a")), true},
		"no group":                  {groupOf("a"), &csi.CreateVolumeGroupSnapshotResponse{}, false},
		"group without an id":       {groupOf("a"), group("", snap("1", "a")), false},
		"group with a volume less":  {groupOf("a", "b"), group("g", snap("1", "a")), false},
		"group with one twice":      {groupOf("a", "b"), group("g", snap("1", "a"), snap("2", "a")), false},
		"group with a hole":         {groupOf("a"), group("g", nil), false},
		"group status of nothing":   {&csi.GetVolumeGroupSnapshotRequest{}, &csi.GetVolumeGroupSnapshotResponse{}, false},
		"an answer of another kind": {&csi.ProbeRequest{}, &csi.ProbeResponse{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			err := validate(c.req, c.reply)
			if (err == nil) != c.ok {
				t.Fatalf("got %v", err)
			}
			if err != nil && status.Code(err) != codes.Aborted {
				t.Errorf("code %v would be taken for final", status.Code(err))
			}
		})
	}
}

func snap(id, volume string) *csi.Snapshot {
	return &csi.Snapshot{SnapshotId: id, SourceVolumeId: volume, CreationTime: timestamppb.Now()}
}

func groupOf(volumes ...string) *csi.CreateVolumeGroupSnapshotRequest {
	return &csi.CreateVolumeGroupSnapshotRequest{SourceVolumeIds: volumes}
}

func group(id string, snaps ...*csi.Snapshot) *csi.CreateVolumeGroupSnapshotResponse {
	return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: &csi.VolumeGroupSnapshot{GroupSnapshotId: id, Snapshots: snaps, CreationTime: timestamppb.Now()}}
}

// Every write goes through, whatever its boundary.
func TestWritesPassTheTransport(t *testing.T) {
	for _, path := range []string{"/api/v1/persistentvolumes", "/api/v1/persistentvolumes/x", "/api/v1/namespaces/n/persistentvolumeclaims/c",
		"/apis/storage.k8s.io/v1/volumeattachments/a", "/apis/storage.k8s.io/v1/volumeattachments/a/status",
		"/apis/storage.k8s.io/v1/namespaces/n/csistoragecapacities", "/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents", "/api/v1/namespaces/n/events", "/else"} {
		for _, verb := range []string{http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodDelete} {
			sent := 0
			if err := bound(verb, path, func() error { sent++; return nil }); err != nil || sent != 1 {
				t.Errorf("%s %s: sent %d times, %v", verb, path, sent, err)
			}
		}
	}
}
