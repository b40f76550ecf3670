package driver

import (
	"context"
	"path/filepath"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.io/berth/internal/backend"
)

// NodeGetCapabilities implements csi.NodeServer.
func (d *Driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	resp := &csi.NodeGetCapabilitiesResponse{}
	for _, t := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
		csi.NodeServiceCapability_RPC_GET_STORAGE_HEALTH,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP,
	} {
		resp.Capabilities = append(resp.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: t}},
		})
	}
	return resp, nil
}

// NodeGetInfo implements csi.NodeServer.
func (d *Driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.o.Node, MaxVolumesPerNode: d.o.MaxVolumes, AccessibleTopology: d.topology("")}, nil
}

// NodeStageVolume implements csi.NodeServer.
func (d *Driver) NodeStageVolume(ctx context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := absolute("staging_target_path", r.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	u, err := useOf("volume_capability", r.GetVolumeCapability())
	if err != nil {
		return nil, refuse(err)
	}
	options := u.options
	if u.mount && (u.readOnly || attachedReadOnly(r.GetPublishContext())) {
		options = append(slices.Clone(options), "ro")
	}
	err = d.o.Backend.Stage(ctx, backend.StageRequest{
		ID: r.GetVolumeId(), Path: filepath.Clean(r.GetStagingTargetPath()), Block: u.block, FSType: u.fsType,
		MountOptions: options,
	})
	if err != nil {
		return nil, err
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

// NodeUnstageVolume implements csi.NodeServer.
func (d *Driver) NodeUnstageVolume(ctx context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := absolute("staging_target_path", r.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	if err := d.o.Backend.Unstage(ctx, r.GetVolumeId(), filepath.Clean(r.GetStagingTargetPath())); err != nil {
		return nil, err
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// NodePublishVolume implements csi.NodeServer. An inline volume of a pod is made here.
func (d *Driver) NodePublishVolume(ctx context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := absolute("target_path", r.GetTargetPath()); err != nil {
		return nil, err
	}
	u, err := useOf("volume_capability", r.GetVolumeCapability())
	if err != nil {
		return nil, refuse(err)
	}
	u.readOnly = u.readOnly || r.GetReadonly() || attachedReadOnly(r.GetPublishContext())
	if isInline(r.GetVolumeContext()) {
		err = d.publishInline(ctx, r, u)
	} else {
		err = d.publishStaged(ctx, r, u)
	}
	if err != nil {
		return nil, err
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

func (d *Driver) publishStaged(ctx context.Context, r *csi.NodePublishVolumeRequest, u use) error {
	if r.GetStagingTargetPath() == "" {
		// NodePublishVolume Errors: "Staging target path not set".
		return status.Error(codes.FailedPrecondition, "staging_target_path is missing: the volume is to be staged first")
	}
	if err := absolute("staging_target_path", r.GetStagingTargetPath()); err != nil {
		return err
	}
	return d.publish(ctx, u, backend.PublishRequest{
		ID: r.GetVolumeId(), StagingPath: filepath.Clean(r.GetStagingTargetPath()), Target: filepath.Clean(r.GetTargetPath()),
	})
}

// publish completes the request with how the volume is to be used.
func (d *Driver) publish(ctx context.Context, u use, r backend.PublishRequest) error {
	u.readOnly = u.readOnly || slices.Contains(u.options, "ro")
	r.Block, r.ReadOnly, r.Exclusive, r.MountOptions = u.block, u.readOnly, u.exclusive, u.options
	if err := d.o.Backend.Publish(ctx, r); err != nil {
		return err
	}
	group, err := parseGroup(u.group)
	if err != nil || group == noGroup || u.readOnly {
		return err
	}
	return giveToGroup(ctx, r.Target, group)
}

// NodeUnpublishVolume implements csi.NodeServer. An inline volume goes with its place.
func (d *Driver) NodeUnpublishVolume(ctx context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := absolute("target_path", r.GetTargetPath()); err != nil {
		return nil, err
	}
	var err error
	if target := filepath.Clean(r.GetTargetPath()); d.inline.has(r.GetVolumeId()) {
		err = d.unpublishInline(ctx, r.GetVolumeId(), target)
	} else {
		err = d.o.Backend.Unpublish(ctx, r.GetVolumeId(), target)
	}
	if err != nil {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// NodeExpandVolume implements csi.NodeServer.
func (d *Driver) NodeExpandVolume(ctx context.Context, r *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	if err := needVolumePath(r); err != nil {
		return nil, err
	}
	if err := checkRange(r.GetCapacityRange()); err != nil {
		return nil, err
	}
	if c := r.GetVolumeCapability(); c != nil {
		if _, err := useOf("volume_capability", c); err != nil {
			return nil, refuse(err)
		}
	}
	size, err := d.o.Backend.Expand(ctx, r.GetVolumeId(), filepath.Clean(r.GetVolumePath()))
	if err != nil {
		return nil, err
	}
	if least := r.GetCapacityRange().GetRequiredBytes(); size < least {
		return nil, status.Errorf(codes.OutOfRange, "capacity_range.required_bytes is %d, and the volume has %d: expand it with ControllerExpandVolume first", least, size)
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: size}, nil
}

// NodeGetVolumeStats implements csi.NodeServer.
func (d *Driver) NodeGetVolumeStats(ctx context.Context, r *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if err := needVolumePath(r); err != nil {
		return nil, err
	}
	id, err := d.resolve(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	s, err := d.o.Backend.Stats(ctx, id, filepath.Clean(r.GetVolumePath()))
	if err != nil {
		return nil, err
	}
	resp := &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{{
		Unit: csi.VolumeUsage_BYTES, Total: s.TotalBytes, Used: s.UsedBytes, Available: s.AvailableBytes,
	}}}
	if s.Inodes > 0 {
		resp.Usage = append(resp.Usage, &csi.VolumeUsage{Unit: csi.VolumeUsage_INODES, Total: s.Inodes, Used: s.InodesUsed, Available: s.InodesFree})
	}
	return resp, nil
}

// needVolumePath: a path that is not absolute is the path of no volume.
func needVolumePath(r interface {
	GetVolumeId() string
	GetVolumePath() string
}) error {
	if err := required("volume_id", r.GetVolumeId(), "volume_path", r.GetVolumePath()); err != nil {
		return err
	}
	if !filepath.IsAbs(r.GetVolumePath()) {
		return status.Errorf(codes.NotFound, "nothing at volume_path %q, which is no absolute path", r.GetVolumePath())
	}
	return nil
}
