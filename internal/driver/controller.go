package driver

import (
	"context"
	"errors"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ControllerGetCapabilities implements csi.ControllerServer.
func (d *Driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	resp := &csi.ControllerGetCapabilitiesResponse{}
	served := []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
		csi.ControllerServiceCapability_RPC_PUBLISH_READONLY,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES_PUBLISHED_NODES,
		csi.ControllerServiceCapability_RPC_GET_VOLUME,
		csi.ControllerServiceCapability_RPC_GET_CAPACITY,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		csi.ControllerServiceCapability_RPC_GET_VOLUME_HEALTH,
		csi.ControllerServiceCapability_RPC_LIST_VOLUME_HEALTH,
	}
	if d.snapshots != nil {
		served = append(served, csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT, csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
			csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS, csi.ControllerServiceCapability_RPC_GET_SNAPSHOT)
	}
	if d.modifier != nil {
		served = append(served, csi.ControllerServiceCapability_RPC_MODIFY_VOLUME)
	}
	for _, t := range served {
		resp.Capabilities = append(resp.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return resp, nil
}

// ControllerPublishVolume implements csi.ControllerServer.
func (d *Driver) ControllerPublishVolume(ctx context.Context, r *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	if err := required("volume_id", r.GetVolumeId(), "node_id", r.GetNodeId()); err != nil {
		return nil, err
	}
	u, err := useOf("volume_capability", r.GetVolumeCapability())
	if err != nil {
		return nil, refuse(err)
	}
	readOnly := u.readOnly || r.GetReadonly()
	release, err := d.attached.reserve(ctx, d.controller, r.GetVolumeId(), r.GetNodeId())
	if err != nil {
		return nil, err
	}
	if err := d.controller.Attach(ctx, r.GetVolumeId(), r.GetNodeId(), readOnly); err != nil {
		release()
		return nil, err
	}
	return &csi.ControllerPublishVolumeResponse{PublishContext: publishContext(readOnly)}, nil
}

// ControllerUnpublishVolume implements csi.ControllerServer.
func (d *Driver) ControllerUnpublishVolume(ctx context.Context, r *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := d.controller.Detach(ctx, r.GetVolumeId(), r.GetNodeId()); err != nil {
		return nil, err
	}
	d.attached.forget(r.GetVolumeId(), r.GetNodeId())
	return &csi.ControllerUnpublishVolumeResponse{}, nil
}

// ValidateVolumeCapabilities implements csi.ControllerServer.
func (d *Driver) ValidateVolumeCapabilities(ctx context.Context, r *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	u, err := usesOf("volume_capabilities", r.GetVolumeCapabilities())
	var no *unserved
	if err != nil && !errors.As(err, &no) {
		return nil, err
	}
	v, err := d.controller.Get(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	reason := ""
	switch {
	case no != nil:
		reason = no.reason
	case u.fsType != "" && v.FSType != "" && u.fsType != v.FSType:
		reason = "the volume holds " + v.FSType
	}
	if err := d.checkParameters(r); err != nil && reason == "" {
		reason = err.Error()
	}
	if reason != "" {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: reason}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: r.GetVolumeContext(), VolumeCapabilities: r.GetVolumeCapabilities(), Parameters: r.GetParameters(),
		MutableParameters: r.GetMutableParameters(),
	}}, nil
}

// checkParameters refuses what a volume cannot have.
func (d *Driver) checkParameters(r interface {
	GetParameters() map[string]string
	GetMutableParameters() map[string]string
}) error {
	if err := d.controller.CheckParameters(ownParameters(r.GetParameters())); err != nil {
		return err
	}
	mutable := ownParameters(r.GetMutableParameters())
	if d.modifier == nil && len(mutable) > 0 {
		return invalid("mutable_parameters: %s does not modify volumes", d.o.Name)
	}
	if d.modifier == nil {
		return nil
	}
	return d.modifier.CheckMutable(mutable)
}

// unimplemented is the answer to a call for something that the backend does not do, and that is not advertised.
func (d *Driver) unimplemented(what string) error {
	return status.Errorf(codes.Unimplemented, "%s does not serve %s", d.o.Name, what)
}
