package csi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin"
)

// Staged is true for every PersistentVolume: whether its driver stages is known only once the driver is registered, and
// Stage and Unstage do nothing for one that does not (upstream CanDeviceMount).
func (p *Plugin) Staged(v *plugin.Volume) (bool, error) { return persistent(v) != nil, nil }

// GlobalPath is the volume's staging path.
func (p *Plugin) GlobalPath(v *plugin.Volume) string {
	src := persistent(v)
	switch {
	case src == nil:
		return ""
	case v.Mode() == v1.PersistentVolumeBlock:
		return p.paths.blockStaging(v.SpecName())
	}
	return p.paths.staging(src.Driver, src.VolumeHandle)
}

// Stage calls NodeStageVolume.
func (p *Plugin) Stage(ctx context.Context, r plugin.StageRequest) error {
	src := persistent(r.Volume)
	if src == nil {
		return fmt.Errorf("stage %s: it has no PersistentVolume with a csi source", r.Volume.SpecName())
	}
	d, err := p.drivers.get(src.Driver)
	if err != nil {
		return err
	}
	caps, err := d.capabilities(ctx)
	if err != nil {
		return err
	}
	block := r.Volume.Mode() == v1.PersistentVolumeBlock
	path := p.GlobalPath(r.Volume)
	if !caps.stage {
		return nil
	}
	publishContext, err := p.publishContext(ctx, src.Driver, src.VolumeHandle, true)
	if err != nil {
		return err
	}
	secrets, err := p.secret(ctx, "nodeStageSecretRef", src.NodeStageSecretRef)
	if err != nil {
		return err
	}
	var fsGroup *int64
	if caps.mountGroup {
		fsGroup = r.FSGroup
	}
	data := p.volumeData(r.Volume)
	options := r.Volume.PV.Spec.MountOptions
	if !block {
		if options, data.SELinuxMountContext, err = p.seLinuxOptions(r.Volume, options); err != nil {
			return err
		}
	}
	dataDir := filepath.Dir(path)
	if block {
		dataDir = p.paths.blockData(r.Volume.SpecName())
	}
	if err := data.save(dataDir); err != nil {
		return err
	}
	if err := boundary.Do("csi/make-staging-dir", func() error { return os.MkdirAll(path, 0o750) }); err != nil {
		return fmt.Errorf("make staging directory: %w", err)
	}
	err = boundary.Do("csi/node-stage-volume", func() error {
		return d.call(ctx, "NodeStageVolume", func(ctx context.Context) error {
			_, err := d.node.NodeStageVolume(ctx, &csipb.NodeStageVolumeRequest{
				VolumeId:          src.VolumeHandle,
				PublishContext:    publishContext,
				StagingTargetPath: path,
				VolumeCapability:  capability(caps, r.Volume, src.FSType, options, fsGroup),
				Secrets:           secrets,
				VolumeContext:     src.VolumeAttributes,
			})
			return err
		})
	})
	if err != nil && !r.Again && !errors.Is(err, plugin.ErrUncertain) {
		if cleanErr := p.removeStaged(path); cleanErr != nil {
			p.log.Warn("what a failed NodeStageVolume left can't be removed", "path", path, "err", cleanErr)
		}
	}
	return err
}

// Unstage calls NodeUnstageVolume and removes the staging path. It needs the disk alone.
func (p *Plugin) Unstage(ctx context.Context, r plugin.UnstageRequest) error {
	path := r.GlobalPath
	if path == "" && r.Volume != nil {
		path = p.GlobalPath(r.Volume)
	}
	if path == "" {
		return fmt.Errorf("unstage %s: its staging path is not known", r.Name)
	}
	dataDir := filepath.Dir(path)
	if specName, block := p.paths.blockSpecName(path); block {
		dataDir = p.paths.blockData(specName)
	}
	data, err := loadVolumeData(dataDir)
	if errors.Is(err, os.ErrNotExist) {
		return p.removeStaged(path) // never staged, or all done but the directories
	}
	if err != nil {
		return err
	}
	d, err := p.drivers.get(data.DriverName)
	if err != nil {
		return err
	}
	caps, err := d.capabilities(ctx)
	if err != nil {
		return err
	}
	if caps.stage {
		err := boundary.Do("csi/node-unstage-volume", func() error {
			return d.call(ctx, "NodeUnstageVolume", func(ctx context.Context) error {
				_, err := d.node.NodeUnstageVolume(ctx, &csipb.NodeUnstageVolumeRequest{
					VolumeId:          data.VolumeHandle,
					StagingTargetPath: path,
				})
				return err
			})
		})
		if err != nil {
			return err
		}
	}
	return p.removeStaged(path)
}

func (p *Plugin) removeStaged(path string) error {
	if specName, block := p.paths.blockSpecName(path); block {
		return p.removeBlockVolume(specName)
	}
	return removeMountDir(path)
}

// capability describes how the volume is used. The file system group goes in only for drivers that asked for it.
func capability(c capabilities, v *plugin.Volume, fsType string, options []string, fsGroup *int64) *csipb.VolumeCapability {
	out := &csipb.VolumeCapability{AccessMode: &csipb.VolumeCapability_AccessMode{Mode: c.accessMode(accessMode(v))}}
	if v.Mode() == v1.PersistentVolumeBlock {
		out.AccessType = &csipb.VolumeCapability_Block{Block: &csipb.VolumeCapability_BlockVolume{}}
		return out
	}
	mount := &csipb.VolumeCapability_MountVolume{FsType: fsType, MountFlags: options}
	if fsGroup != nil {
		mount.VolumeMountGroup = strconv.FormatInt(*fsGroup, 10)
	}
	out.AccessType = &csipb.VolumeCapability_Mount{Mount: mount}
	return out
}
