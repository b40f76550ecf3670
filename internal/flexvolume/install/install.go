// Package install puts the FlexVolume drivers' program into a node's volume plugin directory, lists what is there, and takes it away.
//
// A kubelet (and Berth's own host) watches that directory and calls what it finds at once. So a driver appears whole: it is written
// under a name that begins with a dot, which hosts ignore, and renamed.
package install

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/flexvolume/block"
	"berth.io/berth/internal/flexvolume/drivername"
	"berth.io/berth/internal/host/fsmount"
)

// Program is the file name of the drivers' program, beside `berth`.
const Program = "berth-flexvolume"

// programPath is what the program's own description calls it.
const programPath = "berth.io/berth/cmd/" + Program

// DefaultVendor is that of Berth's own examples.
const DefaultVendor = "berth"

// Drivers are those that the program serves. cmd/berth-flexvolume tests that it does.
var Drivers = []string{"block", "cifs", "lvm", "nfs"}

// Errors.
var (
	ErrForeign = errors.New("it is not Berth's")
	ErrInUse   = errors.New("volumes of it are mounted")
)

// Installed is one driver in the directory.
type Installed struct {
	Vendor  string `json:"vendor"`
	Driver  string `json:"driver"`
	Path    string `json:"path"`
	Ours    bool   `json:"ours"`
	Version string `json:"version,omitempty"` // "" where it is not ours, or does not run here
}

// Options say where.
type Options struct {
	Dir, Vendor string
	Drivers     []string // empty: all
	Force       bool     // also over what is not ours, and under mounted volumes
}

func (o *Options) check() error {
	if !filepath.IsAbs(o.Dir) {
		return fmt.Errorf("the plugin directory %q is not an absolute path", o.Dir)
	}
	if err := checkVendor(o.Vendor); err != nil {
		return err
	}
	for _, d := range o.Drivers {
		if !slices.Contains(Drivers, d) {
			return fmt.Errorf("no driver is called %q: there are %s", d, strings.Join(Drivers, ", "))
		}
	}
	if len(o.Drivers) == 0 {
		o.Drivers = Drivers
	}
	return nil
}

// checkVendor refuses what would be another directory, or two names, or what no host would load.
func checkVendor(vendor string) error {
	if !drivername.IsPart(vendor) {
		return fmt.Errorf("the vendor %.80q is not 1 to 63 letters, digits, dots, dashes and underscores with a letter or digit at both ends", vendor)
	}
	if vendor == drivername.ReservedVendor {
		return fmt.Errorf("the vendor %s is that of the built-in plugins: hosts load no driver of it", vendor)
	}
	return nil
}

func (o *Options) path(driver string) string {
	return filepath.Join(o.Dir, o.Vendor+"~"+driver, driver)
}

// Change is what was done for one driver.
type Change struct {
	Installed
	Before string // the version that was there, "" for none
	Same   bool   // nothing had to be done
}

// Install puts program into the directory for each driver. One that is there already is replaced in one step; the same is left
// alone, so that hosts need not call it anew. ErrForeign: something else has that name.
func Install(ctx context.Context, program string, o Options) ([]Change, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if !ours(program) {
		return nil, fmt.Errorf("%s is not the drivers' program (%s): build it, or name it", program, Program)
	}
	version, err := Version(ctx, program)
	if err != nil {
		return nil, err
	}
	var changes []Change
	for _, driver := range o.Drivers {
		path := o.path(driver)
		change := Change{Installed: Installed{Vendor: o.Vendor, Driver: driver, Path: path, Ours: true, Version: version}}
		if _, err := os.Lstat(path); err == nil {
			if !ours(path) && !o.Force {
				return changes, fmt.Errorf("%s: %w: it is left alone; --force replaces it", path, ErrForeign)
			}
			change.Before, _ = Version(ctx, path)
			change.Same = same(program, path)
		}
		if !change.Same {
			if err := put(program, path); err != nil {
				return changes, fmt.Errorf("install %s: %w", path, err)
			}
		}
		changes = append(changes, change)
	}
	return changes, nil
}

// put copies program to path by way of a name that no host looks at.
func put(program, path string) error {
	dir := filepath.Dir(path)
	if err := boundary.Do("flexinstall/make-directory", func() error { return os.MkdirAll(dir, 0o755) }); err != nil {
		return err
	}
	held, err := os.Open(dir) // one at a time: the name in between is fixed, so that a killed one leaves no more than that
	if err != nil {
		return err
	}
	defer held.Close()
	if err := unix.Flock(int(held.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another process installs there: %w", err)
	}
	from, err := os.Open(program)
	if err != nil {
		return err
	}
	defer from.Close()
	beside := filepath.Join(dir, ".new")
	return boundary.Do("flexinstall/install", func() error {
		if err := os.Remove(beside); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		to, err := os.OpenFile(beside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
		if err != nil {
			return err
		}
		_, err = io.Copy(to, from)
		err = errors.Join(err, to.Chmod(0o755), to.Sync(), to.Close())
		if err == nil {
			err = os.Rename(beside, path)
		}
		if err != nil {
			_ = os.Remove(beside)
			return err
		}
		return held.Sync()
	})
}

// Uninstall removes the drivers of a vendor that are Berth's, and their directories where nothing else is in them. ErrInUse: volumes
// of one are mounted, and only the driver can unmount them.
func Uninstall(ctx context.Context, o Options) ([]Installed, error) {
	named := len(o.Drivers) > 0
	if err := o.check(); err != nil {
		return nil, err
	}
	var removed []Installed
	for _, driver := range o.Drivers {
		path := o.path(driver)
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if !ours(path) && !o.Force {
			if !named {
				continue
			}
			return removed, fmt.Errorf("%s: %w: it is left alone; --force removes it", path, ErrForeign)
		}
		used, err := mounted(o.Vendor, driver)
		if err != nil {
			return removed, err
		}
		if len(used) > 0 && !o.Force {
			some := strings.Join(used[:min(3, len(used))], ", ")
			return removed, fmt.Errorf("%s/%s: %w (%s): stop the pods first; --force removes it all the same", o.Vendor, driver, ErrInUse, some)
		}
		version, _ := Version(ctx, path)
		err = boundary.Do("flexinstall/remove", func() error {
			if err := os.Remove(path); err != nil {
				return err
			}
			for _, beside := range []string{".new", block.SocketFile} {
				_ = os.Remove(filepath.Join(filepath.Dir(path), beside))
			}
			_ = os.Remove(filepath.Dir(path)) // unless something else is in it
			return nil
		})
		if err != nil {
			return removed, err
		}
		removed = append(removed, Installed{Vendor: o.Vendor, Driver: driver, Path: path, Ours: true, Version: version})
	}
	return removed, nil
}

// mounted answers where hosts have mounted volumes of a driver: for pods, and devices for all pods.
func mounted(vendor, driver string) ([]string, error) {
	pods, err1 := fsmount.MountedBelow("/volumes/" + vendor + "~" + driver + "/")
	devices, err2 := fsmount.MountedBelow("/flexvolume/" + vendor + "/" + driver + "/mounts/")
	return append(pods, devices...), errors.Join(err1, err2)
}

// List answers the drivers in the directory, Berth's and others'. vendor "" means all. A directory that is not there has none.
func List(ctx context.Context, dir, vendor string) ([]Installed, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	all := []Installed{}
	for _, e := range entries {
		v, driver, both := strings.Cut(e.Name(), "~")
		if strings.HasPrefix(e.Name(), ".") || !both || vendor != "" && v != vendor {
			continue
		}
		path := filepath.Join(dir, e.Name(), driver)
		if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
			continue
		}
		i := Installed{Vendor: v, Driver: driver, Path: path, Ours: ours(path)}
		if i.Ours {
			i.Version, _ = Version(ctx, path)
		}
		all = append(all, i)
	}
	return all, nil
}

// ours says whether a file is the drivers' program, without executing it.
func ours(path string) bool {
	info, err := buildinfo.ReadFile(path)
	return err == nil && info.Path == programPath
}

const versionDeadline = 5 * time.Second

// Version asks the program, which must be Berth's, for its version.
func Version(ctx context.Context, path string) (string, error) {
	if !ours(path) {
		return "", fmt.Errorf("%s: %w", path, ErrForeign)
	}
	out, err := execute(ctx, versionDeadline, path, "--version")
	if err != nil {
		return "", err
	}
	var answer struct{ Status, Message string }
	if err := json.Unmarshal(out, &answer); err != nil || answer.Status != "Success" {
		return "", fmt.Errorf("%s --version: %.200q", path, out)
	}
	return answer.Message, nil
}

func same(a, b string) bool {
	x, err1 := os.ReadFile(a)
	y, err2 := os.ReadFile(b)
	st, err3 := os.Stat(b)
	return err1 == nil && err2 == nil && err3 == nil && bytes.Equal(x, y) && st.Mode().Perm() == 0o755
}
