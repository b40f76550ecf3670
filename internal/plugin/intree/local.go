package intree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/plugin/fsgroup"
	"berth.io/berth/internal/plugin/intree/removal"
)

const localName = "kubernetes.io/local-volume"

// local serves PersistentVolumes that are a directory or a block device of this node. A device with volumeMode
// Filesystem is mounted once (Stage) at plugins/kubernetes.io/local-volume/mounts/<pv>; each pod gets a bind mount.
type local struct {
	*Volumes
	unstaged
}

var (
	_ plugin.Mounter      = (*local)(nil)
	_ plugin.Expander     = (*local)(nil)
	_ plugin.StagedLister = (*local)(nil)
)

func (*local) Name() string { return localName }

func (*local) Supports(v *plugin.Volume) bool { return v.PV != nil && v.PV.Spec.Local != nil }

func (*local) UniqueName(v *plugin.Volume) (v1.UniqueVolumeName, error) {
	return localUniqueName(v.PV.Name), nil
}

func localUniqueName(pv string) v1.UniqueVolumeName {
	return v1.UniqueVolumeName(localName + "/" + pv)
}

// kindOf looks at the volume's path: only directories and block devices are served.
func kindOf(v *plugin.Volume) (device bool, err error) {
	path := v.PV.Spec.Local.Path
	if err := noBackSteps(path); err != nil {
		return false, fmt.Errorf("local volume %s: %q: %w", v.PV.Name, path, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return false, fmt.Errorf("local volume %s: %w", v.PV.Name, err)
	}
	switch {
	case info.IsDir() && v.Mode() == v1.PersistentVolumeBlock:
		return false, fmt.Errorf("local volume %s: %s is a directory, and volumeMode Block needs a block device", v.PV.Name, path)
	case info.IsDir():
		return false, nil
	case isBlock(info.Mode()):
		return true, nil
	}
	return false, fmt.Errorf("local volume %s: %s is neither a directory nor a block device", v.PV.Name, path)
}

func (l *local) globalDir(pv string) string {
	return filepath.Join(l.opts.DataDir, "plugins", localName, "mounts", pv)
}

// Staged is true for every filesystem volume, also for directories: what the path is can change while nobody looks.
func (l *local) Staged(v *plugin.Volume) (bool, error) {
	return v.Mode() == v1.PersistentVolumeFilesystem, nil
}

func (l *local) Stage(ctx context.Context, r plugin.StageRequest) error {
	device, err := kindOf(r.Volume)
	if err != nil || !device || r.Volume.Mode() == v1.PersistentVolumeBlock {
		return err
	}
	spec := r.Volume.PV.Spec
	fsType := "ext4"
	if spec.Local.FSType != nil && *spec.Local.FSType != "" {
		fsType = *spec.Local.FSType
	}
	dir := l.globalDir(r.Volume.PV.Name)
	mounted, _, err := l.disk.Mounted(dir)
	if err != nil {
		return err
	}
	if mounted {
		return formatEnded(dir)
	}
	if err := l.makeTarget(dir); err != nil {
		return err
	}
	// Read-only is a property of each pod's bind mount: the next pod may want to write.
	if err := FormatAndMount(ctx, r.Volume.PV.UID, spec.Local.Path, dir, fsType, spec.MountOptions); err != nil {
		return errors.Join(fmt.Errorf("local volume %s: %w", r.Volume.PV.Name, err), removal.EmptyDirs(dir))
	}
	return nil
}

func (l *local) Unstage(_ context.Context, r plugin.UnstageRequest) error {
	name := ""
	switch {
	case r.Volume != nil && r.Volume.PV != nil:
		name = r.Volume.PV.Name
	default:
		name = filepath.Base(string(r.Name))
	}
	return l.unbind(l.globalDir(name))
}

// Publish bind-mounts the directory, or the staged filesystem; a raw device becomes a link, as in a kubelet's volumeDevices.
func (l *local) Publish(ctx context.Context, r plugin.PublishRequest) (plugin.Published, error) {
	device, err := kindOf(r.Volume)
	if err != nil {
		return plugin.Published{}, err
	}
	pv, uid := r.Volume.PV, r.Volume.Pod.UID
	if r.Volume.Mode() == v1.PersistentVolumeBlock {
		if err := l.givenAway(pv.Spec.Local.Path); err != nil {
			return plugin.Published{}, fmt.Errorf("local volume %s: %w", pv.Name, err)
		}
		return l.publishDevice(uid, pv)
	}
	source := pv.Spec.Local.Path
	if device {
		source = l.globalDir(pv.Name)
	}
	dir := l.volumeDir(uid, localName, pv.Name)
	mounted, _, err := l.disk.Mounted(dir)
	if err != nil {
		return plugin.Published{}, err
	}
	if mounted {
		return plugin.Published{Path: dir}, nil
	}
	if err := l.makeTarget(dir); err != nil {
		return plugin.Published{}, err
	}
	if err := l.disk.Bind(source, dir, r.Volume.ReadOnly); err != nil {
		return plugin.Published{}, errors.Join(fmt.Errorf("local volume %s: %w", pv.Name, err), removal.EmptyDirs(dir))
	}
	if !r.Volume.ReadOnly {
		if err := ownVolume(ctx, dir, r.FSGroup, fsgroup.Policy(r.Volume.Pod), fsgroup.ReadWrite); err != nil {
			return plugin.Published{}, errors.Join(fmt.Errorf("local volume %s: %w", pv.Name, err), l.unbind(dir))
		}
	}
	return plugin.Published{Path: dir}, nil
}

func (l *local) deviceLink(uid types.UID, specName string) string {
	return filepath.Join(l.opts.DataDir, "pods", string(uid), "volumeDevices", plugin.EscapeName(localName), specName)
}

func (l *local) publishDevice(uid types.UID, pv *v1.PersistentVolume) (plugin.Published, error) {
	link := l.deviceLink(uid, pv.Name)
	if target, err := os.Readlink(link); err == nil && target == pv.Spec.Local.Path {
		return plugin.Published{Path: link}, nil
	}
	err := boundary.Do("intree/link-device", func() error {
		if err := os.MkdirAll(filepath.Dir(link), 0o750); err != nil {
			return err
		}
		if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return os.Symlink(pv.Spec.Local.Path, link)
	})
	return plugin.Published{Path: link}, err
}

func (l *local) makeTarget(dir string) error {
	return boundary.Do("intree/make-local-target", func() error { return os.MkdirAll(dir, 0o750) })
}

func (l *local) Unpublish(_ context.Context, r plugin.UnpublishRequest) error {
	if r.Mode == v1.PersistentVolumeBlock {
		err := boundary.Do("intree/unlink-device", func() error { return os.Remove(l.deviceLink(r.PodUID, r.SpecName)) })
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	return l.unbind(l.volumeDir(r.PodUID, localName, r.SpecName))
}

// unbind unmounts dir, however often it is mounted, and removes the empty directory: never what is in it.
func (l *local) unbind(dir string) error {
	for {
		mounted, _, err := l.disk.Mounted(dir)
		if err != nil {
			return err
		}
		if !mounted {
			return removal.EmptyDirs(dir)
		}
		if err := l.disk.Unmount(dir); err != nil {
			return err
		}
	}
}

func (l *local) Reconstruct(uid types.UID, specName string, mode v1.PersistentVolumeMode) (plugin.Reconstructed, error) {
	found := plugin.Reconstructed{Name: localUniqueName(specName), SpecName: specName, Mode: mode, Path: l.volumeDir(uid, localName, specName)}
	if mode == v1.PersistentVolumeBlock {
		found.Path = l.deviceLink(uid, specName)
	} else if global := l.globalDir(specName); exists(global) {
		found.GlobalPath = global
	}
	if !exists(found.Path) {
		return plugin.Reconstructed{}, fmt.Errorf("reconstruct %s of pod %s: %s: %w", specName, uid, found.Path, os.ErrNotExist)
	}
	return found, nil
}

// GlobalPath is where a device's filesystem is mounted; a directory has nothing there.
func (l *local) GlobalPath(v *plugin.Volume) string { return l.globalDir(v.PV.Name) }

// StagedVolumes lists the mounts of devices.
func (l *local) StagedVolumes() ([]plugin.Reconstructed, error) {
	entries, err := os.ReadDir(l.globalDir(""))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var found []plugin.Reconstructed
	for _, e := range entries {
		found = append(found, plugin.Reconstructed{
			Name: localUniqueName(e.Name()), SpecName: e.Name(), Mode: v1.PersistentVolumeFilesystem, GlobalPath: l.globalDir(e.Name()),
		})
	}
	return found, nil
}
