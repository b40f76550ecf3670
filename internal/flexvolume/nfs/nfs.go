// Package nfs is the FlexVolume driver of NFS shares. Its options: server and share, optionally subPath and mountOptions
// (docs/flexvolume-drivers.md).
package nfs

import (
	"context"

	"berth.io/berth/internal/flexvolume"
	"berth.io/berth/internal/host/fsmount"
)

type driver struct{ flexvolume.Unsupported }

// New makes the driver.
func New() flexvolume.Driver { return driver{} }

// Init: nothing is attached; files have owners, so that the host gives them to the pod's group.
func (driver) Init(context.Context) (flexvolume.Capabilities, error) {
	return flexvolume.Capabilities{SupportsMetrics: true, FSGroup: true}, nil
}

func (driver) GetVolumeName(_ context.Context, o *flexvolume.Options) (string, error) {
	share, err := parse(o)
	if err != nil {
		return "", err
	}
	return flexvolume.FileName(share.Source()), nil
}

func (driver) Mount(ctx context.Context, dir flexvolume.Dir, o *flexvolume.Options) error {
	share, err := parse(o)
	if err != nil {
		return err
	}
	return share.Mount(ctx, dir.Root, dir.Below)
}

func (driver) Unmount(ctx context.Context, dir flexvolume.Dir) (warning string, err error) {
	return fsmount.Unmount(ctx, dir.Root, dir.Below)
}

func parse(o *flexvolume.Options) (*fsmount.NFS, error) {
	if err := o.Only("server", "share", "subPath", "mountOptions"); err != nil {
		return nil, err
	}
	if err := o.Type("nfs", "nfs4"); err != nil {
		return nil, err
	}
	options := o.User["mountOptions"]
	if o.FSType == "nfs4" {
		options = "vers=4," + options // mount.nfs4 is no more than that; a version of the user's own comes later and wins
	}
	return fsmount.ParseNFS(o.User["server"], o.User["share"], o.User["subPath"], options, o.ReadOnly)
}
