package spec

import (
	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"

	"berth.io/berth/internal/try/proxy"
)

func (c *Checker) createVolume(call *proxy.Call, r *csi.CreateVolumeResponse) []Violation {
	q := call.Request.(*csi.CreateVolumeRequest)
	v := r.GetVolume()
	if v.GetVolumeId() == "" {
		return []Violation{violation(call, "no-id", "CreateVolume", "the answer has no volume with a volume_id; it is a required field")}
	}
	var found []Violation
	add := func(rule, section, format string, args ...any) {
		found = append(found, violation(call, rule, section, format, args...))
	}
	asked := q.GetCapacityRange()
	switch have := v.GetCapacityBytes(); {
	case have < 0:
		add("capacity-negative", "CreateVolume", "capacity_bytes is %d", have)
	case have == 0: // unknown
	case have < asked.GetRequiredBytes():
		add("capacity-below-required", "CreateVolume", "capacity_bytes is %d where required_bytes was %d", have, asked.GetRequiredBytes())
	case asked.GetLimitBytes() > 0 && have > asked.GetLimitBytes():
		add("capacity-above-limit", "CreateVolume", "capacity_bytes is %d where limit_bytes was %d", have, asked.GetLimitBytes())
	}
	if before := c.volumes[q.GetName()]; before != "" && before != v.GetVolumeId() {
		add("same-name-other-id", "CreateVolume", "two calls with the name %q made two volumes, %q and %q; the second must answer the first's", q.GetName(), before, v.GetVolumeId())
	}
	for name, id := range c.volumes {
		if id == v.GetVolumeId() && name != q.GetName() {
			add("same-id-other-name", "CreateVolume", "the volumes %q and %q have the same volume_id %q", name, q.GetName(), id)
			break
		}
	}
	if src := q.GetVolumeContentSource(); src != nil && !proto.Equal(src, v.GetContentSource()) {
		add("source-not-answered", "CreateVolume", "a volume was asked for with a content source, and the answer's content_source does not name it: the volume may be empty")
	}
	if c.known && len(v.GetAccessibleTopology()) > 0 && !c.caps.HasPlugin(Constraints) {
		add("topology-without-capability", "CreateVolume", "accessible_topology is answered without the plugin capability %s", Constraints)
	}
	for _, t := range v.GetAccessibleTopology() {
		found = append(found, topology(call, t)...)
	}
	if req := q.GetAccessibilityRequirements().GetRequisite(); len(req) > 0 && len(v.GetAccessibleTopology()) > 0 && !reachable(req, v.GetAccessibleTopology()) {
		add("outside-topology", SectionTopology, "the volume is not accessible from any of the topologies that were required")
	}
	c.volumes[q.GetName()] = v.GetVolumeId()
	delete(c.gone, v.GetVolumeId())
	return found
}

// reachable: some required topology has every segment of some topology of the volume.
func reachable(required, have []*csi.Topology) bool {
	for _, h := range have {
		for _, r := range required {
			all := true
			for k, v := range h.GetSegments() {
				all = all && r.GetSegments()[k] == v
			}
			if all {
				return true
			}
		}
	}
	return false
}

func (c *Checker) listVolumes(call *proxy.Call, r *csi.ListVolumesResponse) []Violation {
	if limit := call.Request.(*csi.ListVolumesRequest).GetMaxEntries(); limit > 0 && len(r.GetEntries()) > int(limit) {
		return []Violation{violation(call, "more-than-max-entries", "ListVolumes", "%d entries were answered where max_entries was %d", len(r.GetEntries()), limit)}
	}
	for _, e := range r.GetEntries() {
		if e.GetVolume().GetVolumeId() == "" {
			return []Violation{violation(call, "entry-without-id", "ListVolumes", "an entry has no volume with a volume_id")}
		}
		if c.known && c.caps.HasController("LIST_VOLUMES_PUBLISHED_NODES") && e.GetStatus() == nil {
			return []Violation{violation(call, "entry-without-status", "ListVolumes", "the driver advertises LIST_VOLUMES_PUBLISHED_NODES, and an entry has no status")}
		}
	}
	return nil
}

func (c *Checker) createSnapshot(call *proxy.Call, r *csi.CreateSnapshotResponse) []Violation {
	q := call.Request.(*csi.CreateSnapshotRequest)
	s := r.GetSnapshot()
	if s.GetSnapshotId() == "" {
		return []Violation{violation(call, "no-id", "CreateSnapshot", "the answer has no snapshot with a snapshot_id; it is a required field")}
	}
	found := snapshot(call, s, q.GetSourceVolumeId())
	if req := q.GetAccessibilityRequirements().GetRequisite(); len(req) > 0 && len(s.GetAccessibleTopology()) > 0 && !reachable(req, s.GetAccessibleTopology()) {
		found = append(found, violation(call, "outside-topology", "CreateSnapshot", "the snapshot is not usable from any of the topologies that were required"))
	}
	if before := c.snapshots[q.GetName()]; before != "" && before != s.GetSnapshotId() {
		found = append(found, violation(call, "same-name-other-id", "CreateSnapshot",
			"two calls with the name %q made two snapshots, %q and %q; the second must answer the first's", q.GetName(), before, s.GetSnapshotId()))
	}
	c.snapshots[q.GetName()] = s.GetSnapshotId()
	delete(c.gone, s.GetSnapshotId())
	return found
}

func snapshot(call *proxy.Call, s *csi.Snapshot, source string) []Violation {
	var found []Violation
	if s.GetCreationTime() == nil {
		found = append(found, violation(call, "no-creation-time", "CreateSnapshot", "creation_time is missing; it is a required field"))
	}
	if s.GetSourceVolumeId() == "" || source != "" && s.GetSourceVolumeId() != source {
		found = append(found, violation(call, "other-source", "CreateSnapshot", "source_volume_id is %q where the snapshot was asked of %q", s.GetSourceVolumeId(), source))
	}
	if s.GetSizeBytes() < 0 {
		found = append(found, violation(call, "size-negative", "CreateSnapshot", "size_bytes is %d", s.GetSizeBytes()))
	}
	return found
}

func groupSnapshot(call *proxy.Call, r *csi.CreateVolumeGroupSnapshotResponse) []Violation {
	g := r.GetGroupSnapshot()
	q := call.Request.(*csi.CreateVolumeGroupSnapshotRequest)
	if g.GetGroupSnapshotId() == "" {
		return []Violation{violation(call, "no-id", "CreateVolumeGroupSnapshot", "the answer has no group_snapshot_id; it is a required field")}
	}
	var found []Violation
	if len(g.GetSnapshots()) != len(q.GetSourceVolumeIds()) {
		found = append(found, violation(call, "other-count", "CreateVolumeGroupSnapshot", "%d snapshots were answered for %d volumes", len(g.GetSnapshots()), len(q.GetSourceVolumeIds())))
	}
	for _, s := range g.GetSnapshots() {
		if s.GetGroupSnapshotId() != g.GetGroupSnapshotId() {
			found = append(found, violation(call, "member-without-group", "CreateVolumeGroupSnapshot", "a member snapshot has the group_snapshot_id %q, its group %q", s.GetGroupSnapshotId(), g.GetGroupSnapshotId()))
		}
		found = append(found, snapshot(call, s, "")...)
	}
	return found
}
