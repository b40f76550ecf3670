package driver

import (
	"context"
	"errors"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/host/filesystem"
)

// ControllerGetCapabilities implements csi.ControllerServer.
func (d *Driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	resp := &csi.ControllerGetCapabilitiesResponse{}
	served := []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES_PUBLISHED_NODES,
		csi.ControllerServiceCapability_RPC_GET_VOLUME,
		csi.ControllerServiceCapability_RPC_GET_CAPACITY,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	}
	if d.snapshots != nil {
		served = append(served, csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
			csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS, csi.ControllerServiceCapability_RPC_GET_SNAPSHOT)
	}
	for _, t := range served {
		resp.Capabilities = append(resp.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return resp, nil
}

// CreateVolume implements csi.ControllerServer.
func (d *Driver) CreateVolume(ctx context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	// CSI spec v1.12, "Size Limits": 128 bytes for a string.
	if r.GetName() == "" || len(r.GetName()) > 128 {
		return nil, invalid("a volume's name has 1 to 128 characters, not %d", len(r.GetName()))
	}
	u, err := usesOf(r.GetVolumeCapabilities())
	if err != nil {
		return nil, refuse(err)
	}
	if r.GetVolumeContentSource() != nil {
		return nil, invalid("volumes made from snapshots or other volumes are not served yet")
	}
	if len(r.GetMutableParameters()) > 0 {
		return nil, invalid("mutable parameters (VolumeAttributesClass) are not served by %s", d.o.Name)
	}
	if err := d.reachable(r.GetAccessibilityRequirements()); err != nil {
		return nil, err
	}
	if u.mount && u.fsType == "" {
		u.fsType = filesystem.Default
	}
	v, err := d.o.Backend.Create(ctx, backend.CreateRequest{
		Name: r.GetName(), RequiredBytes: r.GetCapacityRange().GetRequiredBytes(), LimitBytes: r.GetCapacityRange().GetLimitBytes(),
		FSType: u.fsType, Parameters: ownParameters(r.GetParameters()),
	})
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeResponse{Volume: d.volume(v)}, nil
}

func (d *Driver) volume(v backend.Volume) *csi.Volume {
	return &csi.Volume{VolumeId: v.ID, CapacityBytes: v.SizeBytes, AccessibleTopology: []*csi.Topology{d.topology()}}
}

func (d *Driver) topology() *csi.Topology {
	return &csi.Topology{Segments: map[string]string{TopologyKey(d.o.Name): d.o.Node}}
}

// reachable says whether this node is among those from where the volume must be reachable.
func (d *Driver) reachable(t *csi.TopologyRequirement) error {
	requisite := t.GetRequisite()
	if len(requisite) == 0 {
		return nil
	}
	var asked []string
	for _, one := range requisite {
		node, named := one.GetSegments()[TopologyKey(d.o.Name)]
		if node == d.o.Node || !named {
			return nil
		}
		asked = append(asked, node)
	}
	return status.Errorf(codes.ResourceExhausted, "the pool is on node %s, and the volume is asked for on %s", d.o.Node, strings.Join(asked, ", "))
}

func refuse(err error) error {
	var no *unserved
	if errors.As(err, &no) {
		return invalid("%s", no.reason)
	}
	return err
}

// DeleteVolume implements csi.ControllerServer.
func (d *Driver) DeleteVolume(ctx context.Context, r *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("no volume id")
	}
	if err := d.o.Backend.Delete(ctx, r.GetVolumeId()); err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeResponse{}, nil
}

// ControllerPublishVolume implements csi.ControllerServer.
func (d *Driver) ControllerPublishVolume(ctx context.Context, r *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	if r.GetVolumeId() == "" || r.GetNodeId() == "" {
		return nil, invalid("a volume id and a node id are needed")
	}
	if _, err := usesOf([]*csi.VolumeCapability{r.GetVolumeCapability()}); err != nil {
		return nil, refuse(err)
	}
	if err := d.o.Backend.Attach(ctx, r.GetVolumeId(), r.GetNodeId()); err != nil {
		return nil, err
	}
	return &csi.ControllerPublishVolumeResponse{}, nil
}

// ControllerUnpublishVolume implements csi.ControllerServer.
func (d *Driver) ControllerUnpublishVolume(ctx context.Context, r *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("no volume id")
	}
	if err := d.o.Backend.Detach(ctx, r.GetVolumeId(), r.GetNodeId()); err != nil {
		return nil, err
	}
	return &csi.ControllerUnpublishVolumeResponse{}, nil
}

// ValidateVolumeCapabilities implements csi.ControllerServer.
func (d *Driver) ValidateVolumeCapabilities(ctx context.Context, r *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("no volume id")
	}
	u, err := usesOf(r.GetVolumeCapabilities())
	var no *unserved
	if err != nil && !errors.As(err, &no) {
		return nil, err
	}
	v, getErr := d.o.Backend.Get(ctx, r.GetVolumeId())
	switch {
	case getErr != nil:
		return nil, getErr
	case no != nil:
		return &csi.ValidateVolumeCapabilitiesResponse{Message: no.reason}, nil
	case u.fsType != "" && v.FSType != "" && u.fsType != v.FSType:
		return &csi.ValidateVolumeCapabilitiesResponse{Message: "the volume holds " + v.FSType}, nil
	}
	if err := d.o.Backend.CheckParameters(ownParameters(r.GetParameters())); err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: r.GetVolumeContext(), VolumeCapabilities: r.GetVolumeCapabilities(), Parameters: r.GetParameters(),
	}}, nil
}

// GetCapacity implements csi.ControllerServer.
func (d *Driver) GetCapacity(ctx context.Context, r *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	if node, named := r.GetAccessibleTopology().GetSegments()[TopologyKey(d.o.Name)]; named && node != d.o.Node {
		return &csi.GetCapacityResponse{}, nil
	}
	if len(r.GetVolumeCapabilities()) > 0 {
		if _, err := usesOf(r.GetVolumeCapabilities()); err != nil {
			return &csi.GetCapacityResponse{}, nil // nothing of that kind can be made here
		}
	}
	if err := d.o.Backend.CheckParameters(ownParameters(r.GetParameters())); err != nil {
		return &csi.GetCapacityResponse{}, nil
	}
	c, err := d.o.Backend.Capacity(ctx)
	if err != nil {
		return nil, err
	}
	return &csi.GetCapacityResponse{
		AvailableCapacity: c.Available, MaximumVolumeSize: wrapperspb.Int64(c.MaximumVolume), MinimumVolumeSize: wrapperspb.Int64(c.MinimumVolume),
	}, nil
}

// ControllerExpandVolume implements csi.ControllerServer.
func (d *Driver) ControllerExpandVolume(ctx context.Context, r *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, invalid("no volume id")
	}
	if r.GetCapacityRange() == nil {
		return nil, invalid("no capacity range")
	}
	required, limit := r.GetCapacityRange().GetRequiredBytes(), r.GetCapacityRange().GetLimitBytes()
	if required < 0 || limit < 0 || limit > 0 && required > limit {
		return nil, invalid("a capacity range of %d to %d bytes", required, limit)
	}
	if limit > 0 {
		v, err := d.o.Backend.Get(ctx, r.GetVolumeId())
		if err != nil {
			return nil, err
		}
		if v.SizeBytes > limit {
			return nil, status.Errorf(codes.OutOfRange, "the volume has %d bytes already, and %d are the limit: volumes do not shrink", v.SizeBytes, limit)
		}
	}
	v, err := d.o.Backend.Resize(ctx, r.GetVolumeId(), required)
	if err != nil {
		return nil, err
	}
	// Always: the loop device has to take the new size, also for a raw block volume.
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: v.SizeBytes, NodeExpansionRequired: true}, nil
}
