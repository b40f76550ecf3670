package driver

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/host/filesystem"
)

// TopologyKey of a driver: "topology.<driver name>/node".
func TopologyKey(driver string) string { return "topology." + driver + "/node" }

// topology of what is on node; of this driver's own where it is empty.
func (d *Driver) topology(node string) *csi.Topology {
	return &csi.Topology{Segments: map[string]string{TopologyKey(d.o.Name): cmp.Or(node, d.o.Node)}}
}

// nodeIn is the node that a segment names; empty where it names none, and all nodes lie in it. Not ok: no node lies in it.
func (d *Driver) nodeIn(t *csi.Topology) (node string, ok bool) {
	for key, value := range t.GetSegments() {
		if key != TopologyKey(d.o.Name) {
			return "", false
		}
		node = value
	}
	return node, node != "" || len(t.GetSegments()) == 0
}

// reachable reads from where something must be reachable: on which nodes it may be. It makes sure that this node is among them where
// it is the only one. What is preferred only is no condition.
func (d *Driver) reachable(t *csi.TopologyRequirement) (backend.Place, error) {
	var place backend.Place
	var asked []string
	anywhere := len(t.GetRequisite()) == 0
	for _, one := range t.GetRequisite() {
		node, ok := d.nodeIn(one)
		switch {
		case ok && node == "":
			anywhere = true
		case ok:
			place.Requisite = append(place.Requisite, node)
		}
		for key, value := range one.GetSegments() {
			asked = append(asked, fmt.Sprintf("%s=%s", key, value))
		}
	}
	for _, one := range t.GetPreferred() {
		if node, ok := d.nodeIn(one); ok && node != "" {
			place.Preferred = append(place.Preferred, node)
		}
	}
	if anywhere {
		place.Requisite = nil
		return place, nil
	}
	switch {
	case d.placer != nil && len(place.Requisite) > 0, slices.Contains(place.Requisite, d.o.Node):
		return place, nil
	case d.placer != nil:
		return place, status.Errorf(codes.ResourceExhausted, "accessibility_requirements: volumes are at nodes, by %s, and what is asked for is to be at %s",
			TopologyKey(d.o.Name), strings.Join(asked, ", "))
	}
	return place, status.Errorf(codes.ResourceExhausted, "accessibility_requirements: the pool is on node %s, and what is asked for is to be at %s",
		d.o.Node, strings.Join(asked, ", "))
}

// sourceIn makes sure that a volume is where its snapshot must be: the snapshot cannot be elsewhere.
func (d *Driver) sourceIn(ctx context.Context, id string, place backend.Place) error {
	if d.placer == nil || len(place.Requisite) == 0 {
		return nil
	}
	v, err := d.controller.Get(ctx, id)
	if err != nil || slices.Contains(place.Requisite, v.Node) {
		return err
	}
	return status.Errorf(codes.ResourceExhausted, "accessibility_requirements: volume %s is on node %s, and its snapshot is asked for on %s", id, v.Node, strings.Join(place.Requisite, ", "))
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
	node, ok := d.nodeIn(r.GetAccessibleTopology())
	if !ok || d.placer == nil && node != "" && node != d.o.Node || d.controller.CheckParameters(ownParameters(r.GetParameters())) != nil {
		return &csi.GetCapacityResponse{}, nil
	}
	c, err := d.capacity(ctx, node)
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

// capacity of a node; of all of them when it is empty.
func (d *Driver) capacity(ctx context.Context, node string) (backend.Capacity, error) {
	if d.placer != nil && node != "" {
		return d.placer.CapacityOf(ctx, node)
	}
	return d.controller.Capacity(ctx)
}
