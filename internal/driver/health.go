package driver

import (
	"context"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"berth.io/berth/internal/backend"
)

// Reasons of a health entry: CamelCase, for machines.
const (
	reasonFilesystem = "FilesystemFailed"
	reasonVolume     = "VolumeDamaged"
	reasonStorage    = "PoolUnusable"
)

// ControllerGetVolumeHealth implements csi.ControllerServer.
func (d *Driver) ControllerGetVolumeHealth(ctx context.Context, r *csi.ControllerGetVolumeHealthRequest) (*csi.ControllerGetVolumeHealthResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	v, err := d.controller.Get(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &csi.ControllerGetVolumeHealthResponse{VolumeHealth: volumeHealth(v.ID, reasonVolume, v.Problem)}, nil
}

// ControllerListVolumeHealth implements csi.ControllerServer: the volumes that are not well.
func (d *Driver) ControllerListVolumeHealth(ctx context.Context, r *csi.ControllerListVolumeHealthRequest) (*csi.ControllerListVolumeHealthResponse, error) {
	volumes, err := d.controller.List(ctx)
	if err != nil {
		return nil, err
	}
	var ill []backend.Volume
	for _, v := range volumes {
		if v.Problem != "" {
			ill = append(ill, v)
		}
	}
	ill, next, err := pageOf(ill, volumeID, r.GetStartingToken(), r.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	resp := &csi.ControllerListVolumeHealthResponse{NextToken: next}
	for _, v := range ill {
		resp.Entries = append(resp.Entries, volumeHealth(v.ID, reasonVolume, v.Problem))
	}
	return resp, nil
}

// NodeGetVolumeHealth implements csi.NodeServer.
func (d *Driver) NodeGetVolumeHealth(ctx context.Context, r *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	path, field := r.GetVolumePublishPath(), "volume_publish_path"
	if path == "" {
		path, field = r.GetStagingTargetPath(), "staging_target_path"
	}
	if path != "" {
		if err := absolute(field, path); err != nil {
			return nil, err
		}
		path = filepath.Clean(path)
	}
	id, err := d.resolve(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	s, err := d.o.Backend.Stats(ctx, id, path)
	if err != nil {
		return nil, err
	}
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: volumeHealth(r.GetVolumeId(), reasonFilesystem, s.Problem)}, nil
}

func volumeHealth(id, reason, problem string) *csi.VolumeHealth {
	health := &csi.VolumeHealth{VolumeId: id}
	if problem != "" {
		health.HealthStatuses = []*csi.VolumeHealth_VolumeHealthEntry{{
			Status: csi.VolumeHealthErrorType_INACCESSIBLE, Reason: reason, Message: problem,
		}}
	}
	return health
}

// NodeGetStorageHealth implements csi.NodeServer.
func (d *Driver) NodeGetStorageHealth(ctx context.Context, _ *csi.NodeGetStorageHealthRequest) (*csi.NodeGetStorageHealthResponse, error) {
	resp := &csi.NodeGetStorageHealthResponse{}
	problem := ""
	if b, ok := d.o.Backend.(backend.StorageHealth); ok {
		problem = b.StorageProblem(ctx)
	}
	if _, err := d.o.Backend.Capacity(ctx); err != nil && problem == "" {
		problem = err.Error()
	}
	if problem != "" {
		resp.BackendHealth = append(resp.BackendHealth, &csi.NodeGetStorageHealthResponse_StorageBackendHealth{
			Status: csi.StorageHealthErrorType_STORAGE_UNREACHABLE, Reason: reasonStorage, Message: problem,
		})
	}
	return resp, nil
}
