package flexvolume

import (
	"context"
	"errors"
)

// ErrNotSupported makes the answer "Not supported": the host remembers it and does the step itself, or leaves it out.
var ErrNotSupported = errors.New("not supported by this driver")

// Capabilities is what a driver says of itself at init (upstream's DriverCapabilities).
type Capabilities struct {
	// Attach: the volume is attached before it is mounted; without it the host calls mount and unmount alone.
	Attach bool `json:"attach"`
	// SELinuxRelabel: the host may label the volume's files for the pod.
	SELinuxRelabel bool `json:"selinuxRelabel"`
	// SupportsMetrics: statfs of the mount tells how full the volume is.
	SupportsMetrics bool `json:"supportsMetrics"`
	// FSGroup: the host gives the volume's files to the pod's fsGroup after mount.
	FSGroup bool `json:"fsGroup"`
	// RequiresFSResize: after expandvolume the node calls expandfs.
	RequiresFSResize bool `json:"requiresFSResize"`
}

// Driver does the call-outs. One process makes one call, so a Driver keeps no state; each call may run twice, and again
// after a process that was killed anywhere in it. The context ends at the call-out's deadline and on a signal.
//
// An error is told to the user of the volume: what was done to what, what was wrong, what to do. It must hold no secret.
// Sizes are bytes. Embed Unsupported for the call-outs that a driver has no need of.
type Driver interface {
	Init(ctx context.Context) (Capabilities, error)
	// GetVolumeName answers a name that is the same for the same storage wherever it is asked, and usable as a file's name.
	GetVolumeName(ctx context.Context, o *Options) (string, error)
	// Attach runs where the attach/detach controller does, perhaps not on the node. The device may be "".
	Attach(ctx context.Context, o *Options, node string) (device string, err error)
	// WaitForAttach gets Attach's answer, on the node, and answers the device's path there.
	WaitForAttach(ctx context.Context, device string, o *Options) (string, error)
	IsAttached(ctx context.Context, o *Options, node string) (bool, error)
	// Detach gets what GetVolumeName answered, from older hosts a device's path.
	Detach(ctx context.Context, nameOrDevice, node string) error
	MountDevice(ctx context.Context, dir Dir, device string, o *Options) error
	// UnmountDevice gets the directory of MountDevice; UnmountDevicePath stands in where an older host names the device.
	UnmountDevice(ctx context.Context, dir Dir) error
	UnmountDevicePath(ctx context.Context, device string) error
	Mount(ctx context.Context, dir Dir, o *Options) error
	// Unmount's warning is for the volume's user: what went well at a price.
	Unmount(ctx context.Context, dir Dir) (warning string, err error)
	// ExpandVolume answers the size that the storage has now.
	ExpandVolume(ctx context.Context, o *Options, dir Dir, newBytes, oldBytes int64) (int64, error)
	ExpandFS(ctx context.Context, o *Options, device string, dir Dir, newBytes, oldBytes int64) error
}

// Unsupported answers ErrNotSupported to every call-out but Init, which a driver always has.
type Unsupported struct{}

func (Unsupported) GetVolumeName(context.Context, *Options) (string, error) {
	return "", ErrNotSupported
}
func (Unsupported) Attach(context.Context, *Options, string) (string, error) {
	return "", ErrNotSupported
}
func (Unsupported) WaitForAttach(context.Context, string, *Options) (string, error) {
	return "", ErrNotSupported
}
func (Unsupported) IsAttached(context.Context, *Options, string) (bool, error) {
	return false, ErrNotSupported
}
func (Unsupported) Detach(context.Context, string, string) error { return ErrNotSupported }
func (Unsupported) MountDevice(context.Context, Dir, string, *Options) error {
	return ErrNotSupported
}
func (Unsupported) UnmountDevice(context.Context, Dir) error        { return ErrNotSupported }
func (Unsupported) UnmountDevicePath(context.Context, string) error { return ErrNotSupported }
func (Unsupported) Mount(context.Context, Dir, *Options) error      { return ErrNotSupported }
func (Unsupported) Unmount(context.Context, Dir) (string, error)    { return "", ErrNotSupported }
func (Unsupported) ExpandVolume(context.Context, *Options, Dir, int64, int64) (int64, error) {
	return 0, ErrNotSupported
}
func (Unsupported) ExpandFS(context.Context, *Options, string, Dir, int64, int64) error {
	return ErrNotSupported
}
