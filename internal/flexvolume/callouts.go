package flexvolume

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// callout is one word of the protocol.
type callout struct {
	least, most int // arguments after the word
	form        string
	bound       time.Duration
	run         func(ctx context.Context, d Driver, args []string) (Status, error)
}

// defaultBound is for a call-out that is not known.
const defaultBound = 10 * time.Second

// bound is how long the driver itself lets the call-out of args take. Upstream's host would wait for ever.
func bound(args []string) time.Duration {
	if len(args) > 1 {
		if c, known := callouts[args[1]]; known {
			return c.bound
		}
	}
	return defaultBound
}

// Bounds by what a call-out does: answer from memory, ask the system, mount, format or grow a filesystem. The last must outlast a
// mkfs of a large volume on a slow disk.
const (
	atOnce  = 10 * time.Second
	asks    = 90 * time.Second
	mounts  = 2 * time.Minute
	formats = 10 * time.Minute
)

var callouts = map[string]callout{
	"init": {0, 0, "none", atOnce, func(ctx context.Context, d Driver, _ []string) (Status, error) {
		c, err := d.Init(ctx)
		return Status{Capabilities: &c}, err
	}},
	"getvolumename": {1, 1, "<options>", atOnce, func(ctx context.Context, d Driver, args []string) (Status, error) {
		o, err := ParseOptions(args[0])
		if err != nil {
			return Status{}, err
		}
		// A kubelet that was started again rebuilds a volume from its directory, and asks with the volume's name alone
		// (pkg/volume/flexvolume/plugin.go, ConstructVolumeSpec). A refusal would make it forget a volume that is mounted: it is
		// then detached from under its pod.
		if len(o.User) == 0 && o.Name != "" {
			return Status{VolumeName: FileName(o.Name)}, nil
		}
		name, err := d.GetVolumeName(ctx, o)
		return Status{VolumeName: name}, err
	}},
	"attach": {2, 2, "<options> <node>", asks, func(ctx context.Context, d Driver, args []string) (Status, error) {
		o, node, err := optionsAndNode(args)
		if err != nil {
			return Status{}, err
		}
		device, err := d.Attach(ctx, o, node)
		return Status{Device: device}, err
	}},
	"waitforattach": {2, 2, "<device> <options>", asks, func(ctx context.Context, d Driver, args []string) (Status, error) {
		if err := word("device", args[0]); err != nil {
			return Status{}, err
		}
		o, err := ParseOptions(args[1])
		if err != nil {
			return Status{}, err
		}
		device, err := d.WaitForAttach(ctx, args[0], o)
		return Status{Device: device}, err
	}},
	"isattached": {2, 2, "<options> <node>", asks, func(ctx context.Context, d Driver, args []string) (Status, error) {
		o, node, err := optionsAndNode(args)
		if err != nil {
			return Status{}, err
		}
		attached, err := d.IsAttached(ctx, o, node)
		return Status{Attached: &attached}, err
	}},
	// Before Kubernetes 1.6 it was given the device alone.
	"detach": {1, 2, "<volume name or device> <node>", asks, func(ctx context.Context, d Driver, args []string) (Status, error) {
		node := ""
		if len(args) == 2 {
			node = args[1]
		}
		for what, arg := range map[string]string{"volume": args[0], "node": node} {
			if err := word(what, arg); err != nil {
				return Status{}, err
			}
		}
		return Status{}, d.Detach(ctx, args[0], node)
	}},
	"mountdevice": {3, 3, "<directory> <device> <options>", formats, func(ctx context.Context, d Driver, args []string) (Status, error) {
		dir, err := ParseDeviceDir(args[0])
		if err != nil {
			return Status{}, err
		}
		if err := word("device", args[1]); err != nil {
			return Status{}, err
		}
		o, err := ParseOptions(args[2])
		if err != nil {
			return Status{}, err
		}
		return Status{}, d.MountDevice(ctx, dir, args[1], o)
	}},
	"unmountdevice": {1, 1, "<directory or device>", mounts, func(ctx context.Context, d Driver, args []string) (Status, error) {
		if strings.HasPrefix(args[0], "/dev/") {
			if err := word("device", args[0]); err != nil {
				return Status{}, err
			}
			return Status{}, d.UnmountDevicePath(ctx, args[0])
		}
		dir, err := ParseDeviceDir(args[0])
		if err != nil {
			return Status{}, err
		}
		return Status{}, d.UnmountDevice(ctx, dir)
	}},
	"mount": {2, 2, "<directory> <options>", formats, func(ctx context.Context, d Driver, args []string) (Status, error) {
		dir, err := ParseMountDir(args[0])
		if err != nil {
			return Status{}, err
		}
		o, err := ParseOptions(args[1])
		if err != nil {
			return Status{}, err
		}
		return Status{}, d.Mount(ctx, dir, o)
	}},
	"unmount": {1, 1, "<directory>", mounts, func(ctx context.Context, d Driver, args []string) (Status, error) {
		dir, err := ParseMountDir(args[0])
		if err != nil {
			return Status{}, err
		}
		warning, err := d.Unmount(ctx, dir)
		return Status{Message: warning, Warning: warning}, err
	}},
	"expandvolume": {4, 4, "<options> <device directory> <new bytes> <old bytes>", mounts, func(ctx context.Context, d Driver, args []string) (Status, error) {
		o, dir, sizes, err := expansion(args[0], args[1], args[2], args[3])
		if err != nil {
			return Status{}, err
		}
		size, err := d.ExpandVolume(ctx, o, dir, sizes[0], sizes[1])
		return Status{NewBytes: size}, err
	}},
	// Upstream names the directory of a pod (operation_generator.go, GenerateExpandInUseVolumeFunc), its documentation the device's.
	"expandfs": {5, 5, "<options> <device> <directory> <new bytes> <old bytes>", formats, func(ctx context.Context, d Driver, args []string) (Status, error) {
		if err := word("device", args[1]); err != nil {
			return Status{}, err
		}
		o, dir, sizes, err := expansion(args[0], args[2], args[3], args[4])
		if err != nil {
			return Status{}, err
		}
		return Status{}, d.ExpandFS(ctx, o, args[1], dir, sizes[0], sizes[1])
	}},
}

func optionsAndNode(args []string) (*Options, string, error) {
	if err := word("node", args[1]); err != nil {
		return nil, "", err
	}
	o, err := ParseOptions(args[0])
	return o, args[1], err
}

func expansion(options, path, to, from string) (*Options, Dir, [2]int64, error) {
	var sizes [2]int64
	for i, text := range []string{to, from} {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 {
			return nil, Dir{}, sizes, fmt.Errorf("the %s size %s is no number of bytes", []string{"new", "old"}[i], shown(text))
		}
		sizes[i] = n
	}
	dir, err := ParseDeviceDir(path)
	if err != nil {
		if of, mountErr := ParseMountDir(path); mountErr == nil {
			dir, err = of, nil
		}
	}
	if err != nil {
		return nil, Dir{}, sizes, err
	}
	o, err := ParseOptions(options)
	return o, dir, sizes, err
}

// word refuses a device's or node's name that could be taken for something else. Empty is allowed: a driver that attaches
// nothing has no device.
func word(what, s string) error {
	switch {
	case len(s) > pathLimit:
		return fmt.Errorf("the %s has %d bytes; at most %d are allowed", what, len(s), pathLimit)
	case strings.HasPrefix(s, "-"):
		return fmt.Errorf("the %s %s begins with a dash", what, cut(s))
	case strings.ContainsFunc(s, control):
		return fmt.Errorf("the %s %s contains a control character", what, cut(s))
	}
	return nil
}
