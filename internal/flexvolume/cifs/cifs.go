// Package cifs is the FlexVolume driver of CIFS (SMB) shares. Its options: source, or networkPath, or server and share;
// optionally subPath and mountOptions. The Secret has username, password and domain (docs/flexvolume-drivers.md).
package cifs

import (
	"context"
	"errors"

	"berth.io/berth/internal/flexvolume"
	"berth.io/berth/internal/host/fsmount"
)

type driver struct{ flexvolume.Unsupported }

// New makes the driver.
func New() flexvolume.Driver { return driver{} }

// Init: nothing is attached. Files of a share have no owners that chown could change: the group is a mount option, so the
// host need not walk.
func (driver) Init(context.Context) (flexvolume.Capabilities, error) {
	return flexvolume.Capabilities{SupportsMetrics: true}, nil
}

func (driver) GetVolumeName(_ context.Context, o *flexvolume.Options) (string, error) {
	// The Secret comes with mount alone.
	share, err := parse(o, fsmount.Credentials{Username: "unknown yet"})
	if err != nil {
		return "", err
	}
	return flexvolume.FileName(share.Source() + "/" + share.SubPath()), nil
}

func (driver) Mount(ctx context.Context, dir flexvolume.Dir, o *flexvolume.Options) error {
	share, err := parse(o, fsmount.Credentials{
		Username: string(o.Secrets["username"]), Password: string(o.Secrets["password"]), Domain: string(o.Secrets["domain"]),
	})
	if err != nil {
		return err
	}
	return share.Mount(ctx, dir.Root, dir.Below)
}

func (driver) Unmount(ctx context.Context, dir flexvolume.Dir) (warning string, err error) {
	return fsmount.Unmount(ctx, dir.Root, dir.Below)
}

func parse(o *flexvolume.Options, c fsmount.Credentials) (*fsmount.CIFS, error) {
	if err := o.Only("source", "networkPath", "server", "share", "subPath", "mountOptions"); err != nil {
		return nil, err
	}
	if err := o.Type("cifs", "smb3"); err != nil {
		return nil, err
	}
	source, err := source(o.User)
	if err != nil {
		return nil, err
	}
	return fsmount.ParseCIFS(source, o.User["subPath"], o.User["mountOptions"], c, o.ReadOnly, o.FSGroup)
}

// source takes one of the three ways in which examples name a share.
func source(user map[string]string) (string, error) {
	var ways []string
	for _, key := range []string{"source", "networkPath"} {
		if user[key] != "" {
			ways = append(ways, user[key])
		}
	}
	if user["server"] != "" || user["share"] != "" {
		if user["server"] == "" || user["share"] == "" {
			return "", errors.New("options server and share go together")
		}
		ways = append(ways, fsmount.UNC(user["server"], user["share"]))
	}
	if len(ways) != 1 {
		return "", errors.New("name the share once: source (or networkPath) as //server/share, or server and share")
	}
	return ways[0], nil
}
