package csi

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/plugin"
)

// Reconstruct reads back a published volume from its vol_data.json. specName is the directory's name.
func (p *Plugin) Reconstruct(pod types.UID, specName string, mode v1.PersistentVolumeMode) (plugin.Reconstructed, error) {
	specName = plugin.UnescapeName(specName)
	if mode == v1.PersistentVolumeBlock {
		data, err := loadVolumeData(p.paths.blockData(specName))
		if err != nil {
			return plugin.Reconstructed{}, err
		}
		r := p.reconstructed(data, mode)
		r.Path = p.paths.blockLink(pod, specName)
		return r, nil
	}
	target := p.paths.target(pod, specName)
	data, err := loadVolumeData(filepath.Dir(target))
	if err != nil {
		return plugin.Reconstructed{}, err
	}
	r := p.reconstructed(data, mode)
	r.SpecName, r.Path = specName, target
	if data.VolumeLifecycleMode == string(storagev1.VolumeLifecycleEphemeral) {
		r.Name = v1.UniqueVolumeName(fmt.Sprintf("%s/%s-%s", PluginName, pod, specName))
		r.GlobalPath, r.Attachable = "", false
	}
	return r, nil
}

// StagedVolumes lists the volume data beside the staging paths. Directories without (a crash came before it was written, or after it was
// removed) are listed without a name.
func (p *Plugin) StagedVolumes() ([]plugin.Reconstructed, error) {
	var found []plugin.Reconstructed
	var errs []error
	add := func(dataDir, staging, specName string, mode v1.PersistentVolumeMode) {
		data, err := loadVolumeData(dataDir)
		switch {
		case errors.Is(err, os.ErrNotExist):
			found = append(found, plugin.Reconstructed{SpecName: specName, Mode: mode, GlobalPath: staging})
		case err != nil:
			errs = append(errs, err)
		default:
			r := p.reconstructed(data, mode)
			r.GlobalPath = staging
			found = append(found, r)
		}
	}
	names := func(dir string) []string {
		names, err := subdirectories(dir)
		if err != nil {
			errs = append(errs, err)
		}
		return names
	}
	for _, driver := range names(p.paths.plugin()) {
		if driver == devicesDir {
			continue
		}
		for _, volume := range names(filepath.Join(p.paths.plugin(), driver)) {
			dir := filepath.Join(p.paths.plugin(), driver, volume)
			add(dir, filepath.Join(dir, globalMount), volume, v1.PersistentVolumeFilesystem)
		}
	}
	for _, escaped := range names(p.paths.devices()) {
		if name := plugin.UnescapeName(escaped); name != "staging" && name != "publish" {
			add(p.paths.blockData(name), p.paths.blockStaging(name), name, v1.PersistentVolumeBlock)
		}
	}
	return found, errors.Join(errs...)
}

// subdirectories lists the directories in dir by name; a missing dir has none. A pattern (filepath.Glob) would not do: the
// data directory may be called anything.
func subdirectories(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (p *Plugin) reconstructed(d volumeData, mode v1.PersistentVolumeMode) plugin.Reconstructed {
	r := plugin.Reconstructed{
		Name:     uniqueName(d.DriverName, d.VolumeHandle),
		SpecName: d.SpecVolID,
		Mode:     mode,
		Driver:   d.DriverName,
	}
	object, err := p.csiDriver(d.DriverName)
	r.Attachable = err != nil || attachRequired(object)
	if mode == v1.PersistentVolumeBlock {
		r.GlobalPath = p.paths.blockStaging(d.SpecVolID)
	} else {
		r.GlobalPath = p.paths.staging(d.DriverName, d.VolumeHandle)
	}
	return r
}
