package driver

import (
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
	fsType    string
	options   []string
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

// usesOf reads capabilities. A malformed one is a status error, one that is not served is *unserved.
func usesOf(capabilities []*csi.VolumeCapability) (use, error) {
	if len(capabilities) == 0 {
		return use{}, invalid("no volume capabilities")
	}
	var all use
	for _, c := range capabilities {
		u, err := useOf(c)
		if err != nil {
			return use{}, err
		}
		if all.fsType != "" && u.fsType != "" && all.fsType != u.fsType {
			return use{}, invalid("a volume cannot be %s and %s at once", all.fsType, u.fsType)
		}
		all.block, all.mount, all.exclusive = all.block || u.block, all.mount || u.mount, all.exclusive || u.exclusive
		if u.fsType != "" {
			all.fsType = u.fsType
		}
		all.readOnly = u.readOnly
		all.options = append(all.options, u.options...)
	}
	return all, nil
}

func useOf(c *csi.VolumeCapability) (use, error) {
	mode := c.GetAccessMode().GetMode()
	if c == nil || c.GetAccessMode() == nil || mode == csi.VolumeCapability_AccessMode_UNKNOWN {
		return use{}, invalid("a volume capability without an access mode")
	}
	u := use{
		exclusive: mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
		readOnly:  mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
	}
	switch {
	case c.GetBlock() != nil:
		u.block = true
	case c.GetMount() != nil:
		u.mount, u.fsType, u.options = true, c.GetMount().GetFsType(), c.GetMount().GetMountFlags()
	default:
		return use{}, invalid("a volume capability that is neither mount nor block")
	}
	if !slices.Contains(servedModes, mode) {
		return use{}, &unserved{fmt.Sprintf("access mode %s is not served: a volume of this pool is usable on one node (ReadWriteOnce or ReadWriteOncePod)", mode)}
	}
	if u.fsType != "" {
		if _, err := filesystem.MinimumBytes(u.fsType); err != nil {
			return use{}, &unserved{fmt.Sprintf("fsType %q is not served (ext4, xfs or btrfs)", u.fsType)}
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
