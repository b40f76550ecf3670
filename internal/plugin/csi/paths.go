package csi

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/plugin"
)

// paths are the kubelet's, below the data directory:
//
//	plugins/kubernetes.io/csi/<driver>/<sha256(handle)>/globalmount   staging path of a filesystem; vol_data.json beside
//	plugins/kubernetes.io/csi/volumeDevices/staging/<pv>              staging path of a block volume
//	plugins/kubernetes.io/csi/volumeDevices/publish/<pv>/<pod uid>    target path of a block volume
//	plugins/kubernetes.io/csi/volumeDevices/<pv>/data/vol_data.json
//	plugins/kubernetes.io/csi/volumeDevices/<pv>/dev/<pod uid>        bind mount of the target
//	pods/<pod uid>/volumes/kubernetes.io~csi/<volume>/mount           target path of a filesystem; vol_data.json beside
//	pods/<pod uid>/volumeDevices/kubernetes.io~csi/<pv>               symlink to the target of a block volume
type paths struct{ root string }

const (
	volumeDataFile = "vol_data.json"
	globalMount    = "globalmount"
	devicesDir     = "volumeDevices"
)

func (p paths) plugin() string  { return filepath.Join(p.root, "plugins", PluginName) }
func (p paths) devices() string { return filepath.Join(p.plugin(), devicesDir) }

func (p paths) staging(driver, handle string) string {
	sum := sha256.Sum256([]byte(handle))
	return filepath.Join(p.plugin(), driver, fmt.Sprintf("%x", sum), globalMount)
}

// target is the directory that NodePublishVolume mounts at.
func (p paths) target(pod types.UID, specName string) string {
	return filepath.Join(p.root, "pods", string(pod), "volumes", plugin.EscapeName(PluginName), plugin.EscapeName(specName), "mount")
}

func (p paths) blockStaging(specName string) string {
	return filepath.Join(p.devices(), "staging", specName)
}

func (p paths) blockTarget(pod types.UID, specName string) string {
	return filepath.Join(p.devices(), "publish", specName, string(pod))
}

func (p paths) blockVolume(specName string) string {
	return filepath.Join(p.devices(), plugin.EscapeName(specName))
}

func (p paths) blockData(specName string) string {
	return filepath.Join(p.blockVolume(specName), "data")
}

func (p paths) blockMap(pod types.UID, specName string) string {
	return filepath.Join(p.blockVolume(specName), "dev", string(pod))
}

func (p paths) blockLink(pod types.UID, specName string) string {
	return filepath.Join(p.root, "pods", string(pod), devicesDir, plugin.EscapeName(PluginName), specName)
}

// blockSpecName tells whether a global path is that of a block volume, and of which.
func (p paths) blockSpecName(globalPath string) (string, bool) {
	rest, ok := strings.CutPrefix(globalPath, filepath.Join(p.devices(), "staging")+"/")
	return rest, ok && rest != ""
}
