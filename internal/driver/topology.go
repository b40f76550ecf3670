package driver

import (
	"context"
	"fmt"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"berth.io/berth/internal/host/filesystem"
)

// TopologyKey of a driver: "topology.<driver name>/node".
func TopologyKey(driver string) string { return "topology." + driver + "/node" }

func (d *Driver) topology() *csi.Topology {
	return &csi.Topology{Segments: map[string]string{TopologyKey(d.o.Name): d.o.Node}}
}

// here says whether this node lies in a segment: all that the segment names is true of it.
func (d *Driver) here(t *csi.Topology) bool {
	for key, value := range t.GetSegments() {
		if key != TopologyKey(d.o.Name) || value != d.o.Node {
			return false
		}
	}
	return true
}

// reachable makes sure that this node is among those from where something must be reachable. What is preferred only is
// no condition.
func (d *Driver) reachable(t *csi.TopologyRequirement) error {
	var asked []string
	for _, one := range t.GetRequisite() {
		if d.here(one) {
			return nil
		}
		for key, value := range one.GetSegments() {
			asked = append(asked, fmt.Sprintf("%s=%s", key, value))
		}
	}
	if len(asked) == 0 {
		return nil
	}
	return status.Errorf(codes.ResourceExhausted, "accessibility_requirements: the pool is on node %s, and what is asked for is to be at %s",
		d.o.Node, strings.Join(asked, ", "))
}

// GetCapacity implements csi.ControllerServer. Where nothing that is asked for can be made, the capacity is 0.
func (d *Driver) GetCapacity(ctx context.Context, r *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	var u use
	if len(r.GetVolumeCapabilities()) > 0 {
		var err error
		if u, err = usesOf("volume_capabilities", r.GetVolumeCapabilities()); err != nil {
			if status.Code(err) == codes.InvalidArgument {
				return nil, err
			}
			return &csi.GetCapacityResponse{}, nil
		}
	}
	if !d.here(r.GetAccessibleTopology()) || d.o.Backend.CheckParameters(ownParameters(r.GetParameters())) != nil {
		return &csi.GetCapacityResponse{}, nil
	}
	c, err := d.o.Backend.Capacity(ctx)
	if err != nil {
		return nil, err
	}
	least := c.MinimumVolume
	if u.mount && u.fsType == "" {
		u.fsType = filesystem.Default
	}
	if u.fsType != "" {
		if n, err := filesystem.MinimumBytes(u.fsType); err == nil {
			least = max(least, n)
		}
	}
	return &csi.GetCapacityResponse{
		AvailableCapacity: c.Available, MaximumVolumeSize: wrapperspb.Int64(c.MaximumVolume), MinimumVolumeSize: wrapperspb.Int64(least),
	}, nil
}
