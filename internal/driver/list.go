package driver

import (
	"context"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.io/berth/internal/backend"
)

// A page's token names the last volume of the page before, so that volumes made or deleted between two pages neither
// repeat nor hide others.
const tokenPrefix = "after:"

// ListVolumes implements csi.ControllerServer.
func (d *Driver) ListVolumes(ctx context.Context, r *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	if r.GetMaxEntries() < 0 {
		return nil, invalid("max_entries is %d", r.GetMaxEntries())
	}
	volumes, err := d.o.Backend.List(ctx)
	if err != nil {
		return nil, err
	}
	if token := r.GetStartingToken(); token != "" {
		last, ok := strings.CutPrefix(token, tokenPrefix)
		if !ok {
			return nil, status.Errorf(codes.Aborted, "starting_token %q is not from this driver: list from the beginning", token)
		}
		from, found := slices.BinarySearchFunc(volumes, last, func(v backend.Volume, id string) int { return strings.Compare(v.ID, id) })
		if found {
			from++
		}
		volumes = volumes[from:]
	}
	resp := &csi.ListVolumesResponse{}
	if n := int(r.GetMaxEntries()); n > 0 && n < len(volumes) {
		volumes = volumes[:n]
		resp.NextToken = tokenPrefix + volumes[n-1].ID
	}
	for _, v := range volumes {
		resp.Entries = append(resp.Entries, &csi.ListVolumesResponse_Entry{
			Volume: d.volume(v), Status: &csi.ListVolumesResponse_VolumeStatus{PublishedNodeIds: v.Nodes},
		})
	}
	return resp, nil
}

// ControllerGetVolume implements csi.ControllerServer.
func (d *Driver) ControllerGetVolume(ctx context.Context, r *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("no volume id")
	}
	v, err := d.o.Backend.Get(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &csi.ControllerGetVolumeResponse{
		Volume: d.volume(v), Status: &csi.ControllerGetVolumeResponse_VolumeStatus{PublishedNodeIds: v.Nodes},
	}, nil
}
