package spec

import (
	"regexp"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/reflect/protoreflect"

	"berth.io/berth/internal/try/proxy"
)

// answer checks an OK answer: what holds for every message, then what the method asks for.
func (c *Checker) answer(call *proxy.Call) []Violation {
	found := c.sizes(call)
	switch r := call.Response.(type) {
	case *csi.GetPluginInfoResponse:
		found = append(found, pluginInfo(call, r)...)
	case *csi.NodeGetInfoResponse:
		found = append(found, c.nodeInfo(call, r)...)
	case *csi.CreateVolumeResponse:
		found = append(found, c.createVolume(call, r)...)
	case *csi.DeleteVolumeResponse:
		c.deleted(c.volumes, call.Request.(*csi.DeleteVolumeRequest).GetVolumeId())
	case *csi.DeleteSnapshotResponse:
		c.deleted(c.snapshots, call.Request.(*csi.DeleteSnapshotRequest).GetSnapshotId())
	case *csi.ControllerExpandVolumeResponse:
		found = append(found, expanded(call, r.GetCapacityBytes(), call.Request.(*csi.ControllerExpandVolumeRequest).GetCapacityRange(), false)...)
	case *csi.NodeExpandVolumeResponse:
		found = append(found, expanded(call, r.GetCapacityBytes(), call.Request.(*csi.NodeExpandVolumeRequest).GetCapacityRange(), true)...)
	case *csi.CreateSnapshotResponse:
		found = append(found, c.createSnapshot(call, r)...)
	case *csi.CreateVolumeGroupSnapshotResponse:
		found = append(found, groupSnapshot(call, r)...)
	case *csi.ListVolumesResponse:
		found = append(found, c.listVolumes(call, r)...)
	case *csi.ListSnapshotsResponse:
		if limit := call.Request.(*csi.ListSnapshotsRequest).GetMaxEntries(); limit > 0 && len(r.GetEntries()) > int(limit) {
			found = append(found, violation(call, "more-than-max-entries", "ListSnapshots", "%d entries were answered where max_entries was %d", len(r.GetEntries()), limit))
		}
	case *csi.GetCapacityResponse:
		if r.GetAvailableCapacity() < 0 {
			found = append(found, violation(call, "negative", "GetCapacity", "available_capacity is %d; it must not be negative", r.GetAvailableCapacity()))
		}
	case *csi.NodeGetVolumeStatsResponse:
		found = append(found, volumeStats(call, r)...)
	case *csi.ValidateVolumeCapabilitiesResponse:
		if r.GetConfirmed() != nil && len(r.GetConfirmed().GetVolumeCapabilities()) == 0 {
			found = append(found, violation(call, "confirmed-nothing", "ValidateVolumeCapabilities", "confirmed is set without the volume_capabilities that it confirms"))
		}
	}
	return found
}

// pluginName is the domain name notation of GetPluginInfo.
var pluginName = regexp.MustCompile(`^[a-zA-Z0-9]([-a-zA-Z0-9.]*[a-zA-Z0-9])?$`)

func pluginInfo(call *proxy.Call, r *csi.GetPluginInfoResponse) []Violation {
	var found []Violation
	if n := r.GetName(); len(n) > 63 || !pluginName.MatchString(n) {
		found = append(found, violation(call, "name", "GetPluginInfo", "the name %q is not in domain name notation of at most 63 characters", n))
	}
	if r.GetVendorVersion() == "" {
		found = append(found, violation(call, "no-version", "GetPluginInfo", "vendor_version is empty; it is a required field"))
	}
	return found
}

// maxNodeID overrides the general limit (NodeGetInfoResponse.node_id).
const maxNodeID = 256

func (c *Checker) nodeInfo(call *proxy.Call, r *csi.NodeGetInfoResponse) []Violation {
	var found []Violation
	if n := len(r.GetNodeId()); n == 0 || n > maxNodeID {
		found = append(found, violation(call, "node-id", "NodeGetInfo", "node_id has %d bytes; 1 to %d are allowed", n, maxNodeID))
	}
	if r.GetMaxVolumesPerNode() < 0 {
		found = append(found, violation(call, "negative", "NodeGetInfo", "max_volumes_per_node is %d; it must not be negative", r.GetMaxVolumesPerNode()))
	}
	segments := len(r.GetAccessibleTopology().GetSegments())
	switch {
	case !c.known:
	case segments == 0 && c.caps.HasPlugin(Constraints):
		found = append(found, violation(call, "no-topology", "NodeGetInfo",
			"the driver advertises %s, and NodeGetInfo has no accessible_topology: no volume can be placed", Constraints))
	case segments > 0 && !c.caps.HasPlugin(Constraints):
		found = append(found, violation(call, "topology-without-capability", "NodeGetInfo",
			"accessible_topology is answered without the plugin capability %s", Constraints))
	}
	return append(found, topology(call, r.GetAccessibleTopology())...)
}

var (
	topologyName   = regexp.MustCompile(`^[a-zA-Z0-9]([-_.a-zA-Z0-9]{0,61}[a-zA-Z0-9])?$`)
	topologyPrefix = regexp.MustCompile(`^([a-z0-9]([-.a-z0-9]{0,61}[a-z0-9])?/)?`)
)

func topology(call *proxy.Call, t *csi.Topology) []Violation {
	for key, value := range t.GetSegments() {
		name := key[len(topologyPrefix.FindString(key)):]
		if !topologyName.MatchString(name) {
			return []Violation{violation(call, "topology-key", SectionTopology, "the topology key %q is not [prefix/]name of at most 63 characters each", key)}
		}
		if !topologyName.MatchString(value) {
			return []Violation{violation(call, "topology-value", SectionTopology, "the topology segment %q of %q is not 1 to 63 letters, digits, '-', '_' or '.'", value, key)}
		}
	}
	return nil
}

func expanded(call *proxy.Call, have int64, asked *csi.CapacityRange, optional bool) []Violation {
	if optional && have == 0 {
		return nil
	}
	if have < asked.GetRequiredBytes() {
		return []Violation{violation(call, "capacity-below-required", call.Method, "capacity_bytes is %d where required_bytes was %d", have, asked.GetRequiredBytes())}
	}
	if limit := asked.GetLimitBytes(); limit > 0 && have > limit {
		return []Violation{violation(call, "capacity-above-limit", call.Method, "capacity_bytes is %d where limit_bytes was %d", have, limit)}
	}
	return nil
}

func volumeStats(call *proxy.Call, r *csi.NodeGetVolumeStatsResponse) []Violation {
	for _, u := range r.GetUsage() {
		if u.GetAvailable() < 0 || u.GetTotal() < 0 || u.GetUsed() < 0 {
			return []Violation{violation(call, "negative", "NodeGetVolumeStats", "usage in %s has a negative number", u.GetUnit())}
		}
		if u.GetUnit() == csi.VolumeUsage_UNKNOWN {
			return []Violation{violation(call, "no-unit", "NodeGetVolumeStats", "usage has no unit; it is a required field")}
		}
	}
	return nil
}

// The general limits of the specification, in bytes.
const (
	maxString = 128
	maxMap    = 4 << 10
)

// sizes checks the general size limits, and that no secret comes back.
func (c *Checker) sizes(call *proxy.Call) []Violation {
	if call.Response == nil {
		return nil
	}
	var found []Violation
	text := func(field, s string) {
		if c.shown(s) {
			found = append(found, violation(call, "secret-in-answer", SectionSecrets, "%s in the answer of %s shows the value of a secret", field, call.Method))
		}
	}
	walk(call.Response.ProtoReflect(), func(f protoreflect.FieldDescriptor, v protoreflect.Value) {
		switch {
		case f.IsMap():
			size := 0
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				size += len(k.String()) + len(v.String())
				text(string(f.Name()), v.String())
				return true
			})
			if size > maxMap {
				found = append(found, violation(call, "map-too-large", SectionSizes, "%s has %d bytes; 4 KiB are allowed", f.Name(), size))
			}
		case f.Kind() == protoreflect.StringKind && !f.IsList():
			text(string(f.Name()), v.String())
			if n := len(v.String()); n > maxString && f.Name() != "node_id" && f.Name() != "message" && f.Name() != "next_token" {
				found = append(found, violation(call, "string-too-long", SectionSizes, "%s has %d bytes; 128 are allowed", f.Name(), n))
			}
		}
	})
	return found
}

// walk visits every field of a message and of the messages in it.
func walk(m protoreflect.Message, visit func(protoreflect.FieldDescriptor, protoreflect.Value)) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		visit(f, v)
		switch {
		case f.IsMap() || f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				walk(v.List().Get(i).Message(), visit)
			}
		default:
			walk(v.Message(), visit)
		}
		return true
	})
}
