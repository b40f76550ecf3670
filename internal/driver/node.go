package driver

import (
	"context"
	"path/filepath"

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
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		resp.Capabilities = append(resp.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: t}},
		})
	}
	return resp, nil
}

// NodeGetInfo implements csi.NodeServer.
func (d *Driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.o.Node, MaxVolumesPerNode: d.o.MaxVolumes, AccessibleTopology: d.topology()}, nil
}

// NodeStageVolume implements csi.NodeServer.
func (d *Driver) NodeStageVolume(ctx context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if err := needPaths(r.GetVolumeId(), r.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	u, err := usesOf([]*csi.VolumeCapability{r.GetVolumeCapability()})
	if err != nil {
		return nil, refuse(err)
	}
	err = d.o.Backend.Stage(ctx, backend.StageRequest{
		ID: r.GetVolumeId(), Path: filepath.Clean(r.GetStagingTargetPath()), Block: u.block, FSType: u.fsType,
		MountOptions: u.options,
	})
	if err != nil {
		return nil, err
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

// NodeUnstageVolume implements csi.NodeServer.
func (d *Driver) NodeUnstageVolume(ctx context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if err := needPaths(r.GetVolumeId(), r.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	if err := d.o.Backend.Unstage(ctx, r.GetVolumeId(), filepath.Clean(r.GetStagingTargetPath())); err != nil {
		return nil, err
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// NodePublishVolume implements csi.NodeServer.
func (d *Driver) NodePublishVolume(ctx context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if err := needPaths(r.GetVolumeId(), r.GetTargetPath(), r.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	u, err := usesOf([]*csi.VolumeCapability{r.GetVolumeCapability()})
	if err != nil {
		return nil, refuse(err)
	}
	err = d.o.Backend.Publish(ctx, backend.PublishRequest{
		ID: r.GetVolumeId(), StagingPath: filepath.Clean(r.GetStagingTargetPath()), Target: filepath.Clean(r.GetTargetPath()),
		Block: u.block, ReadOnly: r.GetReadonly() || u.readOnly, Exclusive: u.exclusive, MountOptions: u.options,
	})
	if err != nil {
		return nil, err
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// NodeUnpublishVolume implements csi.NodeServer.
func (d *Driver) NodeUnpublishVolume(ctx context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := needPaths(r.GetVolumeId(), r.GetTargetPath()); err != nil {
		return nil, err
	}
	if err := d.o.Backend.Unpublish(ctx, r.GetVolumeId(), filepath.Clean(r.GetTargetPath())); err != nil {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// NodeExpandVolume implements csi.NodeServer.
func (d *Driver) NodeExpandVolume(ctx context.Context, r *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	if err := needVolumePath(r); err != nil {
		return nil, err
	}
	size, err := d.o.Backend.Expand(ctx, r.GetVolumeId(), filepath.Clean(r.GetVolumePath()))
	if err != nil {
		return nil, err
	}
	if required := r.GetCapacityRange().GetRequiredBytes(); size < required {
		return nil, invalid("the volume has %d bytes, and %d are asked for: expand it with ControllerExpandVolume first", size, required)
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: size}, nil
}

// NodeGetVolumeStats implements csi.NodeServer.
func (d *Driver) NodeGetVolumeStats(ctx context.Context, r *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if err := needVolumePath(r); err != nil {
		return nil, err
	}
	s, err := d.o.Backend.Stats(ctx, r.GetVolumeId(), filepath.Clean(r.GetVolumePath()))
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

// NodeGetVolumeHealth implements csi.NodeServer.
func (d *Driver) NodeGetVolumeHealth(ctx context.Context, r *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	path := r.GetVolumePublishPath()
	if path == "" {
		path = r.GetStagingTargetPath()
	}
	if r.GetVolumeId() == "" {
		return nil, invalid("no volume id")
	}
	s, err := d.o.Backend.Stats(ctx, r.GetVolumeId(), path)
	if err != nil {
		return nil, err
	}
	health := &csi.VolumeHealth{VolumeId: r.GetVolumeId()}
	if s.Problem != "" {
		health.HealthStatuses = []*csi.VolumeHealth_VolumeHealthEntry{{
			Status: csi.VolumeHealthErrorType_INACCESSIBLE, Reason: "FilesystemFailed", Message: s.Problem,
		}}
	}
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: health}, nil
}

// needPaths makes sure that an id is there and that each path is absolute.
func needPaths(id string, paths ...string) error {
	if id == "" {
		return invalid("no volume id")
	}
	for _, p := range paths {
		if p == "" {
			return invalid("a path is missing: volume path, target path or staging target path")
		}
		if !filepath.IsAbs(p) {
			return invalid("path %q is not absolute", p)
		}
	}
	return nil
}

// needVolumePath: a path that is not absolute is the path of no volume.
func needVolumePath(r interface {
	GetVolumeId() string
	GetVolumePath() string
}) error {
	if r.GetVolumeId() != "" && r.GetVolumePath() != "" && !filepath.IsAbs(r.GetVolumePath()) {
		return status.Errorf(codes.NotFound, "nothing at %q, which is no absolute path", r.GetVolumePath())
	}
	return needPaths(r.GetVolumeId(), r.GetVolumePath())
}
