package driver

import (
	"context"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/host/filesystem"
)

// CreateVolume implements csi.ControllerServer.
func (d *Driver) CreateVolume(ctx context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	request, err := d.createRequest(r)
	if err != nil {
		return nil, err
	}
	v, err := d.controller.Create(ctx, request)
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeResponse{Volume: d.volume(v)}, nil
}

// createRequest reads a request for a volume. What depends on the storage is left to the backend.
func (d *Driver) createRequest(r *csi.CreateVolumeRequest) (backend.CreateRequest, error) {
	none := backend.CreateRequest{}
	if err := required("name", r.GetName()); err != nil {
		return none, err
	}
	if strings.HasPrefix(r.GetName(), inlinePrefix) {
		return none, invalid("name %q: names that begin with %q are those of inline volumes", r.GetName(), inlinePrefix)
	}
	u, err := usesOf("volume_capabilities", r.GetVolumeCapabilities())
	if err != nil {
		return none, refuse(err)
	}
	source, err := sourceOf(r.GetVolumeContentSource())
	if err != nil {
		return none, err
	}
	place, err := d.reachable(r.GetAccessibilityRequirements())
	if err != nil {
		return none, err
	}
	if source != (backend.Source{}) && d.snapshots == nil {
		return none, invalid("volume_content_source: %s does not copy volumes", d.o.Name)
	}
	if err := d.checkParameters(r); err != nil {
		return none, err
	}
	bytes := r.GetCapacityRange()
	if err := checkRange(bytes); err != nil {
		return none, err
	}
	request := backend.CreateRequest{
		Name: r.GetName(), RequiredBytes: bytes.GetRequiredBytes(), LimitBytes: bytes.GetLimitBytes(),
		FSType: u.fsType, Parameters: ownParameters(r.GetParameters()), Mutable: ownParameters(r.GetMutableParameters()), Source: source, Place: place,
	}
	if u.mount && u.fsType == "" {
		request.FSType, request.FSTypeIsDefault = filesystem.Default, true
	}
	return request, nil
}

// sourceOf is where the content of a new volume comes from; zero when it is to be empty.
func sourceOf(s *csi.VolumeContentSource) (backend.Source, error) {
	switch {
	case s == nil:
		return backend.Source{}, nil
	case s.GetSnapshot() != nil:
		return backend.Source{SnapshotID: s.GetSnapshot().GetSnapshotId()},
			required("volume_content_source.snapshot.snapshot_id", s.GetSnapshot().GetSnapshotId())
	case s.GetVolume() != nil:
		return backend.Source{VolumeID: s.GetVolume().GetVolumeId()},
			required("volume_content_source.volume.volume_id", s.GetVolume().GetVolumeId())
	}
	return backend.Source{}, invalid("volume_content_source is neither a snapshot nor a volume")
}

// checkRange refuses a capacity range that no volume can have.
func checkRange(r *csi.CapacityRange) error {
	least, most := r.GetRequiredBytes(), r.GetLimitBytes()
	switch {
	case least < 0:
		return invalid("capacity_range.required_bytes is %d: it must not be negative", least)
	case most < 0:
		return invalid("capacity_range.limit_bytes is %d: it must not be negative", most)
	case most > 0 && least > most:
		return invalid("capacity_range: %d bytes are required, and %d are the limit", least, most)
	}
	return nil
}

func (d *Driver) volume(v backend.Volume) *csi.Volume {
	out := &csi.Volume{VolumeId: v.ID, CapacityBytes: v.SizeBytes, AccessibleTopology: []*csi.Topology{d.topology(v.Node)}}
	switch {
	case v.Source.SnapshotID != "":
		out.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: v.Source.SnapshotID},
		}}
	case v.Source.VolumeID != "":
		out.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: v.Source.VolumeID},
		}}
	}
	return out
}

// DeleteVolume implements csi.ControllerServer.
func (d *Driver) DeleteVolume(ctx context.Context, r *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := d.controller.Delete(ctx, r.GetVolumeId()); err != nil {
		return nil, err
	}
	d.attached.forget(r.GetVolumeId(), "")
	return &csi.DeleteVolumeResponse{}, nil
}

// ControllerModifyVolume implements csi.ControllerServer. Parameters that are not named stay as they are.
func (d *Driver) ControllerModifyVolume(ctx context.Context, r *csi.ControllerModifyVolumeRequest) (*csi.ControllerModifyVolumeResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	if d.modifier == nil {
		return nil, d.unimplemented("the modification of volumes")
	}
	v, err := d.controller.Get(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if len(r.GetMutableParameters()) == 0 {
		return nil, invalid("mutable_parameters is missing")
	}
	if err := d.modifier.Modify(ctx, v.ID, ownParameters(r.GetMutableParameters())); err != nil {
		return nil, err
	}
	return &csi.ControllerModifyVolumeResponse{}, nil
}

// ControllerExpandVolume implements csi.ControllerServer.
func (d *Driver) ControllerExpandVolume(ctx context.Context, r *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	if r.GetCapacityRange() == nil {
		return nil, invalid("capacity_range is missing")
	}
	if err := checkRange(r.GetCapacityRange()); err != nil {
		return nil, err
	}
	if c := r.GetVolumeCapability(); c != nil {
		if _, err := useOf("volume_capability", c); err != nil {
			return nil, refuse(err)
		}
	}
	least, limit := r.GetCapacityRange().GetRequiredBytes(), r.GetCapacityRange().GetLimitBytes()
	if limit > 0 {
		v, err := d.controller.Get(ctx, r.GetVolumeId())
		if err != nil {
			return nil, err
		}
		if v.SizeBytes > limit {
			return nil, status.Errorf(codes.OutOfRange, "capacity_range.limit_bytes is %d, and the volume has %d already: volumes do not shrink", limit, v.SizeBytes)
		}
		if units, ok := d.controller.(backend.Rounder); ok && units.RoundSize(least) > limit && least > v.SizeBytes {
			return nil, status.Errorf(codes.OutOfRange, "capacity_range.limit_bytes is %d, and a volume of %d bytes or more would have %d: ask for as much, or less", limit, least, units.RoundSize(least))
		}
	}
	v, err := d.controller.Resize(ctx, r.GetVolumeId(), least)
	if err != nil {
		return nil, err
	}
	// Always: the loop device has to take the new size, also for a raw block volume.
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: v.SizeBytes, NodeExpansionRequired: true}, nil
}
