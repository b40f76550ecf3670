// Package block is the FlexVolume driver berth/block: volumes of the block store's pools, on the node that has the pool.
//
// It decides nothing and touches nothing. It checks what a host hands over, asks the node agent (internal/node/flexsocket) through a
// unix socket, and says what came of it. The agent's backend is the same that the CSI driver serves, with the same volume ids, so the
// two exclude each other there.
//
// There is no device in its answers: the loop device of a volume comes and goes with its mount, and its number is soon another
// volume's. A kubelet that was told of one would wait for a device that somebody else has open.
package block

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"berth.io/berth/internal/flexvolume"
	"berth.io/berth/internal/flexvolume/block/wire"
)

// OptionVolumeID names the volume: the id that the CSI driver has as volumeHandle.
const OptionVolumeID = "volumeID"

// Driver implements flexvolume.Driver.
type Driver struct{ agent agent }

var _ flexvolume.Driver = Driver{}

// New is the driver that asks the agent of this node.
func New() Driver { return Driver{agent: agent{driver: "block", socket: findSocket()}} }

// Init does not ask the agent: a kubelet probes drivers before the agent's pod can have started.
func (Driver) Init(context.Context) (flexvolume.Capabilities, error) {
	return flexvolume.Capabilities{Attach: true, SELinuxRelabel: true, SupportsMetrics: true, FSGroup: true, RequiresFSResize: true}, nil
}

// GetVolumeName implements flexvolume.Driver.
func (Driver) GetVolumeName(_ context.Context, o *flexvolume.Options) (string, error) {
	return volumeID(o)
}

// volumeID reads and checks the driver's options.
func volumeID(o *flexvolume.Options) (string, error) {
	if err := o.Only(OptionVolumeID); err != nil {
		return "", err
	}
	id, ok := o.User[OptionVolumeID]
	if !ok {
		return "", errors.New("option volumeID is missing: the id of a volume that exists, which its CSI PersistentVolume has as volumeHandle")
	}
	if err := wire.ValidID(id); err != nil {
		return "", fmt.Errorf("option volumeID: %w", err)
	}
	return id, nil
}

// Attach implements flexvolume.Driver.
func (d Driver) Attach(ctx context.Context, o *flexvolume.Options, node string) (string, error) {
	id, err := volumeID(o)
	if err != nil {
		return "", err
	}
	name := o.Name
	if name == "" {
		name = id
	}
	_, err = d.agent.ask(ctx, wire.Request{Call: wire.Attach, Volume: id, Name: name, Node: node})
	return "", err
}

// WaitForAttach has nothing to wait for: Attach is done when it has answered.
func (Driver) WaitForAttach(_ context.Context, device string, o *flexvolume.Options) (string, error) {
	_, err := volumeID(o)
	return device, err
}

// IsAttached implements flexvolume.Driver.
func (d Driver) IsAttached(ctx context.Context, o *flexvolume.Options, node string) (bool, error) {
	id, err := volumeID(o)
	if err != nil {
		return false, err
	}
	a, err := d.agent.ask(ctx, wire.Request{Call: wire.IsAttached, Volume: id, Node: node})
	return a.Attached, err
}

// Detach implements flexvolume.Driver. Upstream's controller names the PersistentVolume, whatever GetVolumeName answered
// (pkg/volume/flexvolume/plugin.go, GetVolumeName): the agent knows both.
func (d Driver) Detach(ctx context.Context, name, node string) error {
	if strings.HasPrefix(name, "/") {
		return fmt.Errorf("detach of %q: this driver answers no devices, and takes the name of the volume", name)
	}
	_, err := d.agent.ask(ctx, wire.Request{Call: wire.Detach, Volume: name, Node: node})
	return err
}

// MountDevice implements flexvolume.Driver.
func (d Driver) MountDevice(ctx context.Context, dir flexvolume.Dir, _ string, o *flexvolume.Options) error {
	return d.put(ctx, wire.MountDevice, dir, o)
}

// Mount implements flexvolume.Driver.
func (d Driver) Mount(ctx context.Context, dir flexvolume.Dir, o *flexvolume.Options) error {
	return d.put(ctx, wire.Mount, dir, o)
}

func (d Driver) put(ctx context.Context, call string, dir flexvolume.Dir, o *flexvolume.Options) error {
	id, err := volumeID(o)
	if err != nil {
		return err
	}
	_, err = d.agent.ask(ctx, wire.Request{Call: call, Volume: id, Path: dir.Path(), FSType: o.FSType, ReadOnly: o.ReadOnly})
	return err
}

// UnmountDevice implements flexvolume.Driver.
func (d Driver) UnmountDevice(ctx context.Context, dir flexvolume.Dir) error {
	_, err := d.agent.ask(ctx, wire.Request{Call: wire.UnmountDevice, Path: dir.Path()})
	return err
}

// UnmountDevicePath implements flexvolume.Driver.
func (Driver) UnmountDevicePath(_ context.Context, device string) error {
	return fmt.Errorf("unmountdevice of %q: this driver takes the directory that mountdevice was given", device)
}

// Unmount implements flexvolume.Driver.
func (d Driver) Unmount(ctx context.Context, dir flexvolume.Dir) (string, error) {
	_, err := d.agent.ask(ctx, wire.Request{Call: wire.Unmount, Path: dir.Path()})
	return "", err
}

// ExpandVolume implements flexvolume.Driver.
func (d Driver) ExpandVolume(ctx context.Context, o *flexvolume.Options, _ flexvolume.Dir, newBytes, _ int64) (int64, error) {
	id, err := volumeID(o)
	if err != nil {
		return 0, err
	}
	a, err := d.agent.ask(ctx, wire.Request{Call: wire.ExpandVolume, Volume: id, Bytes: newBytes})
	return a.Bytes, err
}

// ExpandFS implements flexvolume.Driver.
func (d Driver) ExpandFS(ctx context.Context, o *flexvolume.Options, _ string, dir flexvolume.Dir, newBytes, _ int64) error {
	id, err := volumeID(o)
	if err != nil {
		return err
	}
	_, err = d.agent.ask(ctx, wire.Request{Call: wire.ExpandFS, Volume: id, Path: dir.Path(), Bytes: newBytes})
	return err
}
