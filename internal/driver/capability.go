package driver

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"berth.io/berth/internal/host/filesystem"
)

// use is what a request's volume capabilities ask for, all together.
type use struct {
	// block and mount: the volume shall be usable as a device, as a filesystem.
	block, mount bool
	// fsType of the filesystem; empty when none was named.
	fsType  string
	options []string
	// group that the files shall be usable by; empty: as they are.
	group     string
	exclusive bool // one place at a time (ReadWriteOncePod)
	readOnly  bool // of the last capability: requests of the node have one
}

// servedModes: the pool's volumes are on one node.
var servedModes = []csi.VolumeCapability_AccessMode_Mode{
	csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
	csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER,
}

// unserved is a capability that is understood and not served: CreateVolume refuses it, ValidateVolumeCapabilities says no.
type unserved struct{ reason string }

func (e *unserved) Error() string { return e.reason }

// usesOf reads the capabilities in a field. A malformed one is a status error, one that is not served is *unserved.
func usesOf(field string, capabilities []*csi.VolumeCapability) (use, error) {
	if len(capabilities) == 0 {
		return use{}, invalid("%s is missing", field)
	}
	var all use
	for _, c := range capabilities {
		u, err := useOf(field, c)
		if err != nil {
			return use{}, err
		}
		if all.fsType != "" && u.fsType != "" && all.fsType != u.fsType {
			return use{}, invalid("%s: a volume cannot be %s and %s at once", field, all.fsType, u.fsType)
		}
		all.block, all.mount, all.exclusive = all.block || u.block, all.mount || u.mount, all.exclusive || u.exclusive
		if u.fsType != "" {
			all.fsType = u.fsType
		}
		all.readOnly, all.group = u.readOnly, u.group
		all.options = append(all.options, u.options...)
	}
	return all, nil
}

// useOf reads one.
func useOf(field string, c *csi.VolumeCapability) (use, error) {
	if c == nil {
		return use{}, invalid("%s is missing", field)
	}
	mode := c.GetAccessMode().GetMode()
	if mode == csi.VolumeCapability_AccessMode_UNKNOWN {
		return use{}, invalid("%s.access_mode is missing", field)
	}
	u := use{
		exclusive: mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
		readOnly:  mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
	}
	switch {
	case c.GetBlock() != nil:
		u.block = true
	case c.GetMount() != nil:
		m := c.GetMount()
		u.mount, u.fsType, u.options, u.group = true, m.GetFsType(), m.GetMountFlags(), m.GetVolumeMountGroup()
	default:
		return use{}, invalid("%s.access_type is missing: mount or block", field)
	}
	if _, err := parseGroup(u.group); err != nil {
		return use{}, invalid("%s.mount.volume_mount_group %q: %v", field, u.group, err)
	}
	if !slices.Contains(servedModes, mode) {
		return use{}, &unserved{fmt.Sprintf("%s: access mode %s is not served: a volume of this pool is usable on one node (ReadWriteOnce or ReadWriteOncePod)", field, mode)}
	}
	if u.fsType != "" {
		if _, err := filesystem.MinimumBytes(u.fsType); err != nil {
			return use{}, &unserved{fmt.Sprintf("%s: fsType %q is not served (ext4, xfs or btrfs)", field, u.fsType)}
		}
	}
	return u, nil
}

// sidecarPrefix begins parameters that the provisioner adds for drivers that want them.
const sidecarPrefix = "csi.storage.k8s.io/"

func ownParameters(parameters map[string]string) map[string]string {
	own := map[string]string{}
	for k, v := range parameters {
		if !strings.HasPrefix(k, sidecarPrefix) {
			own[k] = v
		}
	}
	if len(own) == 0 {
		return nil
	}
	return own
}

// refuse makes a status of a capability that is not served.
func refuse(err error) error {
	var no *unserved
	if errors.As(err, &no) {
		return invalid("%s", no.reason)
	}
	return err
}
