package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func internal(err error) error {
	if err == nil {
		return nil
	}
	return status.Error(codes.Internal, err.Error())
}

func (d *driver) NodeStageVolume(_ context.Context, q *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if q.GetVolumeId() == "" || q.GetStagingTargetPath() == "" || q.GetVolumeCapability() == nil {
		return nil, invalid("volume id, staging path and capability are needed")
	}
	r, err := d.load("volumes", q.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if r.Block {
		return &csi.NodeStageVolumeResponse{}, nil
	}
	return &csi.NodeStageVolumeResponse{}, internal(bind(d.data("volumes", r), q.GetStagingTargetPath(), false))
}

func (d *driver) NodeUnstageVolume(_ context.Context, q *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if q.GetVolumeId() == "" || q.GetStagingTargetPath() == "" {
		return nil, invalid("volume id and staging path are needed")
	}
	r, err := d.load("volumes", q.GetVolumeId())
	if err == nil && r.Block {
		return &csi.NodeUnstageVolumeResponse{}, internal(detach(d.data("volumes", r)))
	}
	if err == nil && d.bug == bugForgets {
		files, _ := filepath.Glob(filepath.Join(d.data("volumes", r), "*"))
		for _, f := range files {
			_ = os.RemoveAll(f)
		}
	}
	return &csi.NodeUnstageVolumeResponse{}, internal(unbind(q.GetStagingTargetPath()))
}

func (d *driver) NodePublishVolume(_ context.Context, q *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if q.GetVolumeId() == "" || q.GetTargetPath() == "" || q.GetVolumeCapability() == nil {
		return nil, invalid("volume id, target path and capability are needed")
	}
	readOnly := q.GetReadonly() && d.bug != bugReadOnly
	if q.GetVolumeContext()["csi.storage.k8s.io/ephemeral"] == "true" {
		return d.publishEphemeral(q, readOnly)
	}
	r, err := d.load("volumes", q.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if err := d.admit(r, q.GetTargetPath(), q.GetVolumeCapability().GetAccessMode().GetMode()); err != nil {
		return nil, err
	}
	if r.Block {
		device, err := attach(d.data("volumes", r))
		if err != nil {
			return nil, internal(err)
		}
		f, err := os.OpenFile(q.GetTargetPath(), os.O_CREATE, 0o600)
		if err != nil {
			return nil, internal(err)
		}
		_ = f.Close()
		return &csi.NodePublishVolumeResponse{}, internal(bind(device, q.GetTargetPath(), readOnly))
	}
	if q.GetStagingTargetPath() == "" {
		return nil, status.Error(codes.FailedPrecondition, "a staging path is needed")
	}
	if err := os.MkdirAll(q.GetTargetPath(), 0o750); err != nil {
		return nil, internal(err)
	}
	if d.bug == bugNoMount {
		return &csi.NodePublishVolumeResponse{}, nil
	}
	return &csi.NodePublishVolumeResponse{}, internal(bind(q.GetStagingTargetPath(), q.GetTargetPath(), readOnly))
}

// admit notes a target before anything is mounted there, unless it would be a second one beside a single writer's.
func (d *driver) admit(r *record, target string, mode csi.VolumeCapability_AccessMode_Mode) error {
	alone := mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	kept := map[string]bool{target: alone}
	for t, single := range r.Targets {
		if is, err := mounted(t); err != nil || !is || t == target { // an interrupted publication left no mount
			continue
		}
		if alone || single {
			return status.Errorf(codes.FailedPrecondition, "volume %q is published at %s, for one writer alone", r.ID, t)
		}
		kept[t] = single
	}
	r.Targets = kept
	return d.save("volumes", r)
}

// publishEphemeral makes a volume that lives with its pod.
func (d *driver) publishEphemeral(q *csi.NodePublishVolumeRequest, readOnly bool) (*csi.NodePublishVolumeResponse, error) {
	r := &record{ID: q.GetVolumeId(), Name: q.GetVolumeId(), Size: 1 << 20}
	if _, ok := d.dir("volumes", r.ID); !ok {
		return nil, invalid("volume id")
	}
	if _, err := d.load("volumes", r.ID); err != nil {
		if err := d.fill("volumes", r, ""); err != nil {
			return nil, err
		}
		r.Source = "ephemeral/"
		if err := d.save("volumes", r); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(q.GetTargetPath(), 0o750); err != nil {
		return nil, internal(err)
	}
	return &csi.NodePublishVolumeResponse{}, internal(bind(d.data("volumes", r), q.GetTargetPath(), readOnly))
}

func (d *driver) NodeUnpublishVolume(_ context.Context, q *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if q.GetVolumeId() == "" || q.GetTargetPath() == "" {
		return nil, invalid("volume id and target path are needed")
	}
	if err := unbind(q.GetTargetPath()); err != nil {
		return nil, internal(err)
	}
	if err := os.Remove(q.GetTargetPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, internal(err)
	}
	if r, err := d.load("volumes", q.GetVolumeId()); err == nil && r.Source == "ephemeral/" {
		return &csi.NodeUnpublishVolumeResponse{}, d.drop("volumes", r.ID)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (d *driver) NodeExpandVolume(_ context.Context, q *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	if d.bug == bugLies {
		return nil, status.Error(codes.Unimplemented, "not yet")
	}
	if q.GetVolumeId() == "" || q.GetVolumePath() == "" {
		return nil, invalid("volume id and path are needed")
	}
	r, err := d.load("volumes", q.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if r.Block {
		if err := resized(d.data("volumes", r)); err != nil {
			return nil, internal(err)
		}
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: r.Size}, nil
}

func (d *driver) NodeGetVolumeStats(_ context.Context, q *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if q.GetVolumeId() == "" || q.GetVolumePath() == "" {
		return nil, invalid("volume id and path are needed")
	}
	r, err := d.load("volumes", q.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(q.GetVolumePath()); err != nil {
		return nil, status.Errorf(codes.NotFound, "there is nothing at %s", q.GetVolumePath())
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: r.Size}}}, nil
}

func mounted(path string) (bool, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	return strings.Contains(string(b), " "+path+" "), err
}

func bind(from, to string, readOnly bool) error {
	if is, err := mounted(to); is || err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "bind " + from, Path: to, Err: err}
	}
	if !readOnly {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(to, &st); err != nil {
		return err
	}
	// In a user namespace the flags that the mount has must stay.
	keep := uintptr(st.Flags) & (unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	return unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|keep, "")
}

// unbind takes every mount at path away: a publication that was interrupted may have left one below another.
func unbind(path string) error {
	for {
		is, err := mounted(path)
		if !is || err != nil {
			return err
		}
		if err := unix.Unmount(path, 0); err != nil {
			return &os.PathError{Op: "unmount", Path: path, Err: err}
		}
	}
}
