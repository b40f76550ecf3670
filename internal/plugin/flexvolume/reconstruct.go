package flexvolume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/host/mountpoint"
	"berth.io/berth/internal/plugin"
)

// member is the plugin as one driver has it: what it reads back and takes away is that driver's, whether or not it is there.
type member struct {
	*Plugin
	driver string
}

// Of is the plugin of one driver's volumes.
func (p *Plugin) Of(driver string) plugin.Plugin { return member{p, driver} }

// Driver is the one driver, also when nothing else is left of the volume.
func (m member) Driver(*plugin.Volume) string { return m.driver }

// Unpublish takes the driver's volume away.
func (m member) Unpublish(ctx context.Context, r plugin.UnpublishRequest) error {
	return m.unpublish(ctx, m.driver, r)
}

// Reconstruct reads back the driver's volume.
func (m member) Reconstruct(pod types.UID, specName string, mode v1.PersistentVolumeMode) (plugin.Reconstructed, error) {
	return m.reconstruct(pod, m.driver, specName, mode)
}

// Reconstruct reads back a volume of whichever driver has one of that name in the pod.
func (p *Plugin) Reconstruct(pod types.UID, specName string, mode v1.PersistentVolumeMode) (plugin.Reconstructed, error) {
	name, err := p.findPublished(pod, specName)
	if err != nil {
		return plugin.Reconstructed{}, err
	}
	return p.reconstruct(pod, name, specName, mode)
}

// reconstruct reads the record. A directory without one was made by a kubelet, which keeps none: then it is a PersistentVolume's if
// something is staged under that name, and else, as upstream guesses, the pod's own.
func (p *Plugin) reconstruct(pod types.UID, name, specName string, mode v1.PersistentVolumeMode) (plugin.Reconstructed, error) {
	if mode == v1.PersistentVolumeBlock {
		return plugin.Reconstructed{}, errors.New("FlexVolume drivers serve no raw devices")
	}
	if err := errors.Join(checkDriver(name), checkElement(plugin.EscapeName(specName)), checkElement(string(pod))); err != nil {
		return plugin.Reconstructed{}, err
	}
	found := plugin.Reconstructed{SpecName: specName, Mode: mode, Path: p.paths.target(pod, name, specName), Driver: name}
	r, err := loadRecord(p.paths.publishedRecord(pod, name, specName))
	switch {
	case err == nil:
		found.Name, found.Attachable = r.Name, r.Attachable
	case errors.Is(err, fs.ErrNotExist):
		found.Name = uniqueName(name, string(pod)+separator+specName)
		if isThere(p.paths.global(name, specName)) {
			found.Name, found.Attachable = uniqueName(name, specName), true
		}
	default:
		return plugin.Reconstructed{}, err
	}
	if driver, k, ok := splitUniqueName(found.Name); !ok || driver != name {
		return plugin.Reconstructed{}, fmt.Errorf("the record of volume %s of pod %s names another: %s", specName, pod, found.Name)
	} else if found.Attachable {
		found.GlobalPath = p.paths.global(driver, k)
	}
	return found, nil
}

// isThere says whether there is a file at path. What is mounted there is not asked: its server may be gone.
func isThere(path string) bool {
	if mounted, err := mountpoint.Is(path); mounted || err != nil {
		return mounted
	}
	_, err := os.Lstat(path)
	return err == nil
}

// driverOfPublished finds the driver of a volume in a pod: by the volume, or by the directory that it is in.
func (p *Plugin) driverOfPublished(r plugin.UnpublishRequest) (string, error) {
	if r.Volume == nil {
		return p.findPublished(r.PodUID, r.SpecName)
	}
	name := p.Driver(r.Volume)
	return name, checkDriver(name)
}

// findPublished looks through the pod's directories; a pod has few drivers.
func (p *Plugin) findPublished(pod types.UID, specName string) (string, error) {
	if err := checkElement(string(pod)); err != nil {
		return "", err
	}
	list, err := os.ReadDir(p.paths.volumes(pod))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	var found []string
	for _, d := range list {
		name, err := driverOfDir(d.Name())
		if err != nil {
			continue
		}
		if isThere(p.paths.target(pod, name, specName)) {
			found = append(found, name)
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("volume %s of pod %s: it is not known which FlexVolume driver's it is (%s)", specName, pod, strings.Join(found, ", "))
	}
	return found[0], nil
}
