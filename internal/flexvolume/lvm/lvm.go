// Package lvm is the FlexVolume driver of logical volumes of a volume group on the node. Its options: volumegroup and volumeID, the
// volume's name; optionally size, with which it is made where there is none, thinpool and mountOptions
// (docs/flexvolume-drivers.md).
//
// A volume group is the node's own: attach and detach have nothing to do, the volume is activated, and made, when the node waits for
// the attachment.
package lvm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/flexvolume"
	"berth.io/berth/internal/host/fsmount"
)

type driver struct{}

// New makes the driver.
func New() flexvolume.Driver { return driver{} }

// Init: all of it. Attached, since there is a device and it is mounted once for all pods.
func (driver) Init(context.Context) (flexvolume.Capabilities, error) {
	return flexvolume.Capabilities{Attach: true, SELinuxRelabel: true, SupportsMetrics: true, FSGroup: true, RequiresFSResize: true}, nil
}

// volume is what the options ask for.
type volume struct {
	fsmount.LogicalVolume
	wanted     *fsmount.Wanted // nil: it must exist
	filesystem *fsmount.Filesystem
}

func parse(o *flexvolume.Options) (*volume, error) {
	if err := o.Only("volumegroup", "volumeID", "size", "thinpool", "mountOptions"); err != nil {
		return nil, err
	}
	var v volume
	var err error
	if v.LogicalVolume, err = fsmount.ParseLogicalVolume(o.User["volumegroup"], o.User["volumeID"]); err != nil {
		return nil, err
	}
	pool := o.User["thinpool"]
	if pool != "" {
		if pool, err = fsmount.ParsePool(pool); err != nil {
			return nil, err
		}
	}
	if size := o.User["size"]; size != "" {
		bytes, err := fsmount.ParseSize(size)
		if err != nil {
			return nil, err
		}
		v.wanted = &fsmount.Wanted{Bytes: bytes, Pool: pool}
	}
	v.filesystem, err = fsmount.ParseFilesystem(o.FSType, o.User["mountOptions"], o.ReadOnly)
	return &v, err
}

// GetVolumeName answers the device-mapper name, in which group and volume cannot be mistaken.
func (driver) GetVolumeName(_ context.Context, o *flexvolume.Options) (string, error) {
	v, err := parse(o)
	if err != nil {
		return "", err
	}
	return v.Mapping(), nil
}

// Attach answers the path that the device will have. It touches nothing: it may run on a machine without the group.
func (driver) Attach(_ context.Context, o *flexvolume.Options, _ string) (string, error) {
	v, err := parse(o)
	if err != nil {
		return "", err
	}
	return v.DevicePath(), nil
}

func (driver) WaitForAttach(ctx context.Context, device string, o *flexvolume.Options) (string, error) {
	v, err := parse(o)
	if err != nil {
		return "", err
	}
	if err := v.is(device); err != nil {
		return "", err
	}
	return v.ready(ctx)
}

// IsAttached says no only where the group is here and the volume is gone from it.
func (driver) IsAttached(ctx context.Context, o *flexvolume.Options, _ string) (bool, error) {
	v, err := parse(o)
	if err != nil {
		return false, err
	}
	if _, active := v.Device(); active {
		return true, nil
	}
	_, err = v.Find(ctx)
	switch {
	case errors.Is(err, fsmount.ErrNoVolume):
		return false, nil
	case errors.Is(err, fsmount.ErrNoGroup): // this is the controller's machine
		return true, nil
	}
	return err == nil, err
}

func (driver) Detach(context.Context, string, string) error { return nil }

func (driver) MountDevice(ctx context.Context, dir flexvolume.Dir, device string, o *flexvolume.Options) error {
	v, err := parse(o)
	if err != nil {
		return err
	}
	if err := v.is(device); err != nil {
		return err
	}
	return v.mount(ctx, dir, true)
}

// Mount binds what MountDevice mounted. Where the host has no such step, the volume is mounted here.
func (driver) Mount(ctx context.Context, dir flexvolume.Dir, o *flexvolume.Options) error {
	v, err := parse(o)
	if err != nil {
		return err
	}
	d, err := v.open(ctx)
	if err != nil {
		return err
	}
	defer d.Close()
	global, err := mounted(d, dir)
	if err != nil {
		return err
	}
	if global == nil {
		_ = d.Close() // who else has it open is looked at
		return v.mount(ctx, dir, false)
	}
	defer global.Close()
	return d.Bind(ctx, global, v.filesystem.ReadOnly, dir.Root, dir.Below)
}

// mounted finds where the host has the device mounted for the pods of dir's driver, whatever the host calls the volume there; nil where
// it has not.
func mounted(d *fsmount.Device, dir flexvolume.Dir) (*fsmount.Target, error) {
	root, err := filepath.EvalSymlinks(dir.Root)
	if err != nil {
		return nil, err
	}
	mounts, err := fsmount.MountsOf(d.Major, d.Minor)
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		at, err := flexvolume.ParseDeviceDir(m.Path)
		if err != nil || at.Root != root || at.Vendor != dir.Vendor || at.Driver != dir.Driver || m.Root != "/" {
			continue
		}
		t, err := fsmount.Open(at.Root, at.Below)
		if err != nil {
			return nil, err
		}
		if err := d.At(t); err != nil { // something else is over it
			t.Close()
			return nil, err
		}
		return t, nil
	}
	return nil, nil
}

// ready answers the volume's device, made and activated.
func (v *volume) ready(ctx context.Context) (string, error) {
	want := v.wanted
	if v.filesystem.ReadOnly {
		want = nil // nothing could be written to it
	}
	path, err := v.Activate(ctx, want)
	if errors.Is(err, fsmount.ErrNoVolume) && v.wanted == nil {
		err = fmt.Errorf("%w; make it with lvcreate, or give the option size", err)
	}
	return path, err
}

// unused refuses a volume that is open and not mounted here: somebody else writes to it, a virtual machine perhaps, and a filesystem with
// two writers is lost. It is asked before the device is opened here. An inactive volume is nobody's.
func (v *volume) unused(ctx context.Context) (fsmount.Details, error) {
	details, err := v.Find(ctx)
	if err != nil || !details.Open {
		return details, err
	}
	path, active := v.Device()
	var st unix.Stat_t
	if !active || unix.Stat(path, &st) != nil {
		return details, nil // closed and deactivated since
	}
	major, minor := int(unix.Major(st.Rdev)), int(unix.Minor(st.Rdev))
	mounts, err := fsmount.MountsOf(major, minor)
	if err != nil || len(mounts) > 0 { // whose they are is looked at elsewhere
		return details, err
	}
	users, own := fsmount.UsersOf(major, minor)
	if len(users) == 0 {
		again, err := v.Find(ctx)
		if own || err != nil || !again.Open { // another call of this driver, or udev, which only looks
			return again, err
		}
		users = []string{"the kernel (an export to another machine?)"}
	}
	if more := len(users) - usersNamed; more > 0 {
		users = append(users[:usersNamed], fmt.Sprintf("%d more", more))
	}
	return details, fmt.Errorf("%s is open and not mounted here: it is used by %s; it is left alone until they let go of it", v, strings.Join(users, ", "))
}

// usersNamed bounds the users that an error names.
const usersNamed = 5

// open opens the volume's device, made and activated.
func (v *volume) open(ctx context.Context) (*fsmount.Device, error) {
	path, err := v.ready(ctx)
	if err != nil {
		return nil, err
	}
	return fsmount.OpenDevice(path)
}

// mount formats the volume if nobody has had it, and mounts it: for all pods of the node, or for one.
func (v *volume) mount(ctx context.Context, dir flexvolume.Dir, forAll bool) error {
	path, err := v.ready(ctx)
	if err != nil {
		return err
	}
	details, err := v.unused(ctx)
	if err != nil {
		return err
	}
	d, err := fsmount.OpenDevice(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := foreign(d, dir.Root); err != nil {
		return err
	}
	fsType, err := d.Format(ctx, v.filesystem, details.Unformatted)
	if err != nil {
		return err
	}
	if details.Unformatted {
		if err := v.Formatted(ctx); err != nil {
			return err
		}
	}
	how := v.filesystem
	if forAll {
		how = how.ForAll(d)
	}
	return d.Mount(ctx, fsType, how, dir.Root, dir.Below)
}

// foreign refuses a volume that this machine itself uses, its root for instance: whoever may make a pod may name any.
func foreign(d *fsmount.Device, root string) error {
	mounts, err := fsmount.MountsOf(d.Major, d.Minor)
	if err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(root)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if !strings.HasPrefix(m.Path, filepath.Join(real, "pods")+"/") && !strings.HasPrefix(m.Path, filepath.Join(real, "plugins")+"/") {
			return fmt.Errorf("%s is mounted at %s, which is no volume of a pod: it is left to this machine", d.Path, m.Path)
		}
	}
	return nil
}

// is makes sure that the device of the call is the volume of the options.
func (v *volume) is(device string) error {
	if device == "" || device == v.DevicePath() {
		return nil
	}
	var a, b unix.Stat_t
	if own, active := v.Device(); active && unix.Stat(device, &a) == nil && unix.Stat(own, &b) == nil && a.Rdev == b.Rdev && a.Mode&unix.S_IFMT == unix.S_IFBLK {
		return nil
	}
	return fmt.Errorf("the device %.200q is not %s, which the options name", device, v.DevicePath())
}

func (driver) UnmountDevice(ctx context.Context, dir flexvolume.Dir) error {
	_, err := fsmount.Unmount(ctx, dir.Root, dir.Below) // it warns of servers alone
	return err
}

// UnmountDevicePath unmounts the device where a host mounts devices.
func (driver) UnmountDevicePath(ctx context.Context, device string) error {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return fmt.Errorf("%.200q is no block device", device)
	}
	mounts, err := fsmount.MountsOf(int(unix.Major(st.Rdev)), int(unix.Minor(st.Rdev)))
	if err != nil {
		return err
	}
	for _, m := range mounts {
		dir, err := flexvolume.ParseDeviceDir(m.Path)
		if err != nil {
			continue // a pod's
		}
		if _, err := fsmount.Unmount(ctx, dir.Root, dir.Below); err != nil {
			return err
		}
	}
	return nil
}

func (driver) Unmount(ctx context.Context, dir flexvolume.Dir) (warning string, err error) {
	return fsmount.Unmount(ctx, dir.Root, dir.Below)
}

func (driver) ExpandVolume(ctx context.Context, o *flexvolume.Options, _ flexvolume.Dir, newBytes, _ int64) (int64, error) {
	v, err := parse(o)
	if err != nil {
		return 0, err
	}
	if _, err := v.unused(ctx); err != nil {
		return 0, err
	}
	return v.Extend(ctx, newBytes)
}

// ExpandFS grows the volume, too, where nobody has: kube-controller-manager never calls expandvolume (its expand controller is made
// without FlexVolumes).
func (driver) ExpandFS(ctx context.Context, o *flexvolume.Options, device string, dir flexvolume.Dir, newBytes, _ int64) error {
	v, err := parse(o)
	if err != nil {
		return err
	}
	if err := v.is(device); err != nil {
		return err
	}
	if _, err := v.unused(ctx); err != nil {
		return err
	}
	if _, err := v.Extend(ctx, newBytes); err != nil {
		return err
	}
	d, err := v.open(ctx)
	if err != nil {
		return err
	}
	defer d.Close()
	t, err := fsmount.Open(dir.Root, dir.Below)
	if err != nil {
		return err
	}
	defer t.Close()
	return d.Grow(t)
}
