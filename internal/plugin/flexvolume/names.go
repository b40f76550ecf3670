package flexvolume

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/flexvolume/drivername"
	"berth.io/berth/internal/plugin"
)

// PluginName stands in paths; in unique volume names stands the driver's, as upstream has it.
const PluginName = "kubernetes.io/flexvolume"

// DefaultDir is where a kubelet looks for drivers.
const DefaultDir = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/"

// checkDriver refuses what is not VENDOR/DRIVER.
func checkDriver(name string) error {
	vendor, driver, ok := strings.Cut(name, "/")
	switch {
	case !ok:
		return fmt.Errorf("%.100q names no vendor: want VENDOR/DRIVER, which is the file VENDOR~DRIVER/DRIVER below the drivers' directory", name)
	case !drivername.IsPart(vendor) || !drivername.IsPart(driver):
		return fmt.Errorf("%.100q is not VENDOR/DRIVER, each of at most 63 letters, digits, dots, hyphens and underscores", name)
	case vendor == drivername.ReservedVendor:
		return fmt.Errorf("%q: the vendor %s is that of the built-in plugins", name, drivername.ReservedVendor)
	}
	return nil
}

// driverOfDir is the name of the driver in a directory called VENDOR~DRIVER.
func driverOfDir(dir string) (string, error) {
	vendor, driver, ok := strings.Cut(dir, "~")
	if !ok {
		return "", errors.New("its name has no vendor: a driver is in a directory called VENDOR~DRIVER, with the file DRIVER in it")
	}
	name := vendor + "/" + driver
	return name, checkDriver(name)
}

// separator stands in the keys of inline volumes between pod and volume. No PersistentVolume can have it in its name, so an
// inline volume is never taken for one, nor for that of another pod (upstream shares what has the same name).
const separator = "^"

// key names a volume among those of its driver, in paths and in the unique name: a PersistentVolume's name, or POD^VOLUME.
func key(v *plugin.Volume) (string, error) {
	k := v.SpecName()
	if v.PV == nil {
		if v.Pod == nil {
			return "", fmt.Errorf("inline volume %s: its pod is not known", v.Name)
		}
		k = string(v.Pod.UID) + separator + v.Name
	}
	return k, checkElement(k)
}

// checkElement refuses what could leave its directory.
func checkElement(s string) error {
	if s == "" || s == "." || s == ".." || len(s) > 255 || strings.ContainsAny(s, "/\x00") {
		return fmt.Errorf("%.100q can't be the name of a directory", s)
	}
	return nil
}

func uniqueName(driver, key string) v1.UniqueVolumeName {
	return v1.UniqueVolumeName(driver + "/" + key)
}

// splitUniqueName undoes uniqueName.
func splitUniqueName(name v1.UniqueVolumeName) (driver, key string, ok bool) {
	parts := strings.SplitN(string(name), "/", 3)
	if len(parts) != 3 || checkElement(parts[2]) != nil {
		return "", "", false
	}
	driver = parts[0] + "/" + parts[1]
	return driver, parts[2], checkDriver(driver) == nil
}

// specNameOf is the name by which a driver knows the volume of a key.
func specNameOf(key string) string {
	if _, name, inline := strings.Cut(key, separator); inline {
		return name
	}
	return key
}

// nameLimit is that of a file's name. A record has its suffix beside the key, and while it is written a dot and another suffix.
const nameLimit = 255 - len("."+recordSuffix+newSuffix)

// recordName is the file name of a key's record. A PersistentVolume's name may be too long for one: then its beginning and a hash of
// the whole are, behind a separator. The record itself tells whose it is.
func recordName(key string) string {
	if len(key) > nameLimit {
		sum := fmt.Sprintf("%x", sha256.Sum256([]byte(key)))
		key = key[:nameLimit-len(separator)-len(sum)] + separator + sum
	}
	return key + recordSuffix
}

// keyOf is the key of a record in the file.
func keyOf(file string) string {
	base := filepath.Base(file)
	if r, err := loadRecord(file); err == nil {
		if _, k, ok := splitUniqueName(r.Name); ok && recordName(k) == base {
			return k
		}
	}
	k := strings.TrimSuffix(base, recordSuffix)
	if i := strings.LastIndex(k, separator); i >= 0 && len(k)-i-1 == 2*sha256.Size {
		return "" // a hash; no pod's volume has so long a name
	}
	return k
}

// paths are the kubelet's, below the data directory, and records beside them:
//
//	pods/<pod uid>/volumes/<vendor~driver>/<volume>                          what the pod sees
//	pods/<pod uid>/plugins/<vendor~driver>/<volume>.json                     record of it
//	plugins/kubernetes.io/flexvolume/<vendor>/<driver>/mounts/<key>          mountdevice
//	plugins/kubernetes.io/flexvolume/<vendor>/<driver>/staged/<key>.json     record of it
//	plugins/kubernetes.io/flexvolume/<vendor>/<driver>/attached/<node>/<key>.json
type paths struct{ root string }

func (p paths) plugin() string { return filepath.Join(p.root, "plugins", PluginName) }

// glob finds what is below the plugin's directory; the data directory's own name is no pattern.
func (p paths) glob(pattern string) []string {
	found, _ := fs.Glob(os.DirFS(p.plugin()), pattern) // the patterns are constants
	for i := range found {
		found[i] = filepath.Join(p.plugin(), found[i])
	}
	return found
}

func (p paths) driver(name string) string { return filepath.Join(p.plugin(), name) }

func (p paths) global(driver, key string) string {
	return filepath.Join(p.driver(driver), "mounts", key)
}

func (p paths) stagedRecord(driver, key string) string {
	return filepath.Join(p.driver(driver), "staged", recordName(key))
}

func (p paths) attachedRecord(driver, node, key string) string {
	return filepath.Join(p.driver(driver), "attached", node, recordName(key))
}

// splitGlobal tells which volume a global path is of.
func (p paths) splitGlobal(path string) (driver, key string, ok bool) {
	rel, err := filepath.Rel(p.plugin(), path)
	if err != nil {
		return "", "", false
	}
	parts := strings.Split(rel, "/")
	if len(parts) != 4 || parts[2] != "mounts" || checkElement(parts[3]) != nil {
		return "", "", false
	}
	driver = parts[0] + "/" + parts[1]
	return driver, parts[3], checkDriver(driver) == nil
}

func (p paths) volumes(pod types.UID) string {
	return filepath.Join(p.root, "pods", string(pod), "volumes")
}

func (p paths) target(pod types.UID, driver, specName string) string {
	return filepath.Join(p.volumes(pod), plugin.EscapeName(driver), plugin.EscapeName(specName))
}

func (p paths) publishedRecord(pod types.UID, driver, specName string) string {
	return filepath.Join(p.root, "pods", string(pod), "plugins", plugin.EscapeName(driver), recordName(plugin.EscapeName(specName)))
}
