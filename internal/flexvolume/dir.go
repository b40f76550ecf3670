package flexvolume

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// Dir is a directory that the host names for a mount. Root is the kubelet's (or Berth's) data directory, whose own path is
// trusted, links included; Below is what is under it, which never leads through a link.
type Dir struct {
	Root, Below    string
	Vendor, Driver string
	// Volume is the last element: the PersistentVolume's or volume's name, for a device what getvolumename answered.
	Volume string
}

// Path is the directory's whole path.
func (d Dir) Path() string { return filepath.Join(d.Root, d.Below) }

// pathLimit is the kernel's PATH_MAX without its NUL, in bytes.
const pathLimit = 4095

// ParseMountDir takes the argument of mount and unmount apart: <root>/pods/<uid>/volumes/<vendor~driver>/<name>. Nothing
// else tells a driver where its host's volumes are, and any other path would be a mount over something of the system's.
func ParseMountDir(path string) (Dir, error) {
	parts, err := elements(path)
	if err != nil {
		return Dir{}, err
	}
	n := len(parts)
	if n < 5 || parts[n-5] != "pods" || parts[n-3] != "volumes" {
		return Dir{}, fmt.Errorf("the directory %s is not of the form …/pods/<uid>/volumes/<vendor~driver>/<name>", cut(path))
	}
	vendor, driver, both := strings.Cut(parts[n-2], "~")
	if !both {
		return Dir{}, fmt.Errorf("the directory %s names no driver as <vendor~driver>", cut(path))
	}
	return dir(parts, n-5, vendor, driver), nil
}

// ParseDeviceDir takes the argument of mountdevice, unmountdevice, expandvolume and expandfs apart:
// <root>/plugins/kubernetes.io/flexvolume/<vendor>/<driver>/mounts/<name>.
func ParseDeviceDir(path string) (Dir, error) {
	parts, err := elements(path)
	if err != nil {
		return Dir{}, err
	}
	n := len(parts)
	if n < 7 || parts[n-7] != "plugins" || parts[n-6] != "kubernetes.io" || parts[n-5] != "flexvolume" || parts[n-2] != "mounts" {
		return Dir{}, fmt.Errorf("the directory %s is not of the form …/plugins/kubernetes.io/flexvolume/<vendor>/<driver>/mounts/<name>", cut(path))
	}
	return dir(parts, n-7, parts[n-4], parts[n-3]), nil
}

func dir(parts []string, root int, vendor, driver string) Dir {
	return Dir{
		Root: "/" + filepath.Join(parts[:root]...), Below: filepath.Join(parts[root:]...),
		Vendor: vendor, Driver: driver, Volume: parts[len(parts)-1],
	}
}

// elements splits an absolute path that says what it means: no empty, `.` or `..` element, no control character.
func elements(path string) ([]string, error) {
	switch {
	case path == "":
		return nil, errors.New("the directory is empty")
	case len(path) > pathLimit:
		return nil, fmt.Errorf("the directory has %d bytes; a path has at most %d", len(path), pathLimit)
	case strings.ContainsFunc(path, control):
		return nil, fmt.Errorf("the directory %s contains a control character", cut(path))
	case path[0] != '/':
		return nil, fmt.Errorf("the directory %s is not an absolute path", cut(path))
	}
	parts := strings.Split(strings.TrimSuffix(path[1:], "/"), "/")
	for _, p := range parts {
		if p == "" || p == "." || p == ".." {
			return nil, fmt.Errorf("the directory %s has an element %q", cut(path), p)
		}
		if len(p) > 255 {
			return nil, fmt.Errorf("the directory %s has an element of %d bytes; a name has at most 255", cut(path), len(p))
		}
	}
	return parts, nil
}

func control(r rune) bool { return r < ' ' || r == 0x7f }

// cut is a path in a message.
func cut(path string) string {
	if len(path) > 200 {
		return fmt.Sprintf("%q…", path[:200])
	}
	return fmt.Sprintf("%q", path)
}
