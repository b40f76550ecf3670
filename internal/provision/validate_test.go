package provision

import (
	"net/http"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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
