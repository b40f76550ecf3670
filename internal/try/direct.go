package try

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.io/berth/internal/try/spec"
)

// stepIdentity asks what every other step relies on.
func (b *bench) stepIdentity(ctx context.Context, s *Step) error {
	if _, err := ask(ctx, b.identity.GetPluginInfo, &csi.GetPluginInfoRequest{}); err != nil {
		return err
	}
	for _, d := range b.drivers() {
		id := b.identity
		if d == b.controller && b.controller != b.node {
			conn, err := dialDriver(b.socket("bench", "c"))
			if err != nil {
				return err
			}
			defer conn.Close()
			id = csi.NewIdentityClient(conn)
		}
		r, err := ask(ctx, id.GetPluginCapabilities, &csi.GetPluginCapabilitiesRequest{})
		if err != nil {
			return err
		}
		b.caps.AddPlugin(r)
	}
	if b.caps.HasPlugin(spec.ControllerService) {
		r, err := ask(ctx, b.ctl.ControllerGetCapabilities, &csi.ControllerGetCapabilitiesRequest{})
		if err != nil {
			return err
		}
		b.caps.AddController(r)
	}
	if b.caps.HasPlugin(spec.GroupService) {
		r, err := ask(ctx, b.group.GroupControllerGetCapabilities, &csi.GroupControllerGetCapabilitiesRequest{})
		if err != nil {
			return err
		}
		b.caps.AddGroup(r)
	}
	r, err := ask(ctx, b.nodes.NodeGetCapabilities, &csi.NodeGetCapabilitiesRequest{})
	if err != nil {
		return err
	}
	b.caps.AddNode(r)
	b.report.Capabilities = b.caps
	b.checker.SetCapabilities(b.caps)
	info, err := ask(ctx, b.nodes.NodeGetInfo, &csi.NodeGetInfoRequest{})
	if err != nil {
		return err
	}
	b.nodeID, b.topology = info.GetNodeId(), info.GetAccessibleTopology()
	b.say.capabilities(b.caps)
	return nil
}

// access is what stepAccess found out: why a kind of volume cannot be had, or "".
type access struct {
	known                  bool
	mount, block, rwx, rox string
}

// parameters of the class for the driver itself.
func (b *bench) parameters() map[string]string {
	p := maps.Clone(b.o.ClassParameters)
	maps.DeleteFunc(p, func(k, _ string) bool { return strings.HasPrefix(k, "csi.storage.k8s.io/") })
	return p
}

func (b *bench) capability(mode csi.VolumeCapability_AccessMode_Mode, block bool) *csi.VolumeCapability {
	c := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode}}
	if block {
		c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	} else {
		c.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: b.o.ClassParameters["csi.storage.k8s.io/fstype"]}}
	}
	return c
}

const writer = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER

// newName is a name that no other run has given.
func newName(what string) string {
	b := make([]byte, 6)
	_, _ = rand.Read(b)
	return "try-" + what + "-" + hex.EncodeToString(b)
}

// createRequest asks for a volume where this node can reach it.
func (b *bench) createRequest(name string, c *csi.VolumeCapability) *csi.CreateVolumeRequest {
	q := &csi.CreateVolumeRequest{Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: b.o.size()},
		VolumeCapabilities: []*csi.VolumeCapability{c}, Parameters: b.parameters(), Secrets: b.o.Secrets}
	if b.caps.HasPlugin(spec.Constraints) && b.topology != nil {
		q.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: []*csi.Topology{b.topology}, Preferred: []*csi.Topology{b.topology}}
	}
	return q
}

func (b *bench) deleteVolume(ctx context.Context, id string) error {
	_, err := ask(ctx, b.ctl.DeleteVolume, &csi.DeleteVolumeRequest{VolumeId: id, Secrets: b.o.Secrets})
	return err
}

func (b *bench) needCreate() error {
	if !b.caps.HasController("CREATE_DELETE_VOLUME") {
		return skipf("the driver does not advertise CREATE_DELETE_VOLUME")
	}
	return nil
}

// stepAccess makes one volume of each kind: no capability tells which a driver has.
func (b *bench) stepAccess(ctx context.Context, s *Step) error {
	if err := b.needCreate(); err != nil {
		return err
	}
	try := func(what string, c *csi.VolumeCapability) (string, error) {
		r, err := ask(ctx, b.ctl.CreateVolume, b.createRequest(newName(what), c))
		if status.Code(err) == codes.InvalidArgument {
			return fmt.Sprintf("the driver refuses %s volumes: %s", what, status.Convert(err).Message()), nil
		}
		if err != nil {
			return err.Error(), fmt.Errorf("a %s volume: %w", what, err)
		}
		id := r.GetVolume().GetVolumeId()
		if id == "" {
			return "CreateVolume answers no id", nil
		}
		v, err := ask(ctx, b.ctl.ValidateVolumeCapabilities, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: id, VolumeContext: r.GetVolume().GetVolumeContext(),
			VolumeCapabilities: []*csi.VolumeCapability{c}, Parameters: b.parameters(), Secrets: b.o.Secrets})
		if err == nil && v.GetConfirmed() == nil {
			b.violate(s, spec.Violation{Rule: "ValidateVolumeCapabilities/created-but-not-confirmed", Section: "ValidateVolumeCapabilities",
				Text: "the driver made a " + what + " volume, and does not confirm the capabilities that it was made with: " + v.GetMessage()})
		}
		if err := b.deleteVolume(ctx, id); err != nil {
			return "", fmt.Errorf("delete the %s volume: %w", what, err)
		}
		return "", nil
	}
	var errs [4]error
	b.access.mount, errs[0] = try("mount", b.capability(writer, false))
	b.access.block, errs[1] = try("block", b.capability(writer, true))
	b.access.rwx, errs[2] = try("ReadWriteMany", b.capability(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER, false))
	b.access.rox, errs[3] = try("ReadOnlyMany", b.capability(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, false))
	b.access.known = true
	for what, no := range map[string]string{"block": b.access.block, "ReadWriteMany": b.access.rwx, "ReadOnlyMany": b.access.rox} {
		if no != "" {
			s.Notes = append(s.Notes, "no "+what+" volumes")
		}
	}
	slices.Sort(s.Notes)
	return errors.Join(errs[:]...)
}

// noSuch is an id that no driver has.
const noSuch = "try-no-such-id"

// stepPromises asks every promised RPC about something that does not exist: UNIMPLEMENTED is a lie (found by the
// checker), and the right answer is NOT_FOUND.
func (b *bench) stepPromises(ctx context.Context, s *Step) error {
	dir := filepath.Join(b.work, "missing")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	target, c := filepath.Join(dir, "target"), b.capability(writer, false)
	larger := &csi.CapacityRange{RequiredBytes: 2 * b.o.size()}
	plain := []struct { // RPCs that ask for nothing in particular
		method string
		ask    func() error
	}{
		{"ListVolumes", func() error { _, err := ask(ctx, b.ctl.ListVolumes, &csi.ListVolumesRequest{}); return err }},
		{"GetCapacity", func() error {
			_, err := ask(ctx, b.ctl.GetCapacity, &csi.GetCapacityRequest{VolumeCapabilities: []*csi.VolumeCapability{c}, Parameters: b.parameters(), AccessibleTopology: b.topology})
			return err
		}},
		{"ListSnapshots", func() error { _, err := ask(ctx, b.ctl.ListSnapshots, &csi.ListSnapshotsRequest{}); return err }},
	}
	missing := []struct { // RPCs about a volume that is not there
		method string
		ask    func() error
	}{
		{"ValidateVolumeCapabilities", func() error {
			_, err := ask(ctx, b.ctl.ValidateVolumeCapabilities, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: noSuch, VolumeCapabilities: []*csi.VolumeCapability{c}, Secrets: b.o.Secrets})
			return err
		}},
		{"ControllerPublishVolume", func() error {
			_, err := ask(ctx, b.ctl.ControllerPublishVolume, &csi.ControllerPublishVolumeRequest{VolumeId: noSuch, NodeId: b.nodeID, VolumeCapability: c, Secrets: b.o.Secrets})
			return err
		}},
		{"ControllerExpandVolume", func() error {
			_, err := ask(ctx, b.ctl.ControllerExpandVolume, &csi.ControllerExpandVolumeRequest{VolumeId: noSuch, CapacityRange: larger, Secrets: b.o.Secrets})
			return err
		}},
		{"ControllerGetVolume", func() error {
			_, err := ask(ctx, b.ctl.ControllerGetVolume, &csi.ControllerGetVolumeRequest{VolumeId: noSuch})
			return err
		}},
		{"ControllerModifyVolume", func() error {
			_, err := ask(ctx, b.ctl.ControllerModifyVolume, &csi.ControllerModifyVolumeRequest{VolumeId: noSuch, Secrets: b.o.Secrets})
			return err
		}},
		{"CreateSnapshot", func() error {
			_, err := ask(ctx, b.ctl.CreateSnapshot, &csi.CreateSnapshotRequest{SourceVolumeId: noSuch, Name: newName("missing"), Secrets: b.o.Secrets})
			return err
		}},
		{"NodeStageVolume", func() error {
			_, err := ask(ctx, b.nodes.NodeStageVolume, &csi.NodeStageVolumeRequest{VolumeId: noSuch, StagingTargetPath: dir, VolumeCapability: c, Secrets: b.o.Secrets})
			return err
		}},
		{"NodeGetVolumeStats", func() error {
			_, err := ask(ctx, b.nodes.NodeGetVolumeStats, &csi.NodeGetVolumeStatsRequest{VolumeId: noSuch, VolumePath: target})
			return err
		}},
		{"NodeExpandVolume", func() error {
			_, err := ask(ctx, b.nodes.NodeExpandVolume, &csi.NodeExpandVolumeRequest{VolumeId: noSuch, VolumePath: target, CapacityRange: larger})
			return err
		}},
	}
	for _, m := range plain {
		b.unpromised(s, m.method, m.ask())
	}
	for _, m := range missing {
		err := m.ask()
		b.unpromised(s, m.method, err)
		if !b.caps.Obliged(m.method) {
			continue
		}
		v := spec.Violation{Rule: m.method + "/missing-accepted", Section: m.method + " Errors", Text: m.method + " of a volume that does not exist answered OK; it must answer NOT_FOUND"}
		switch code := status.Code(err); code {
		case codes.OK:
			b.violate(s, v)
		case codes.NotFound, codes.Unimplemented:
		default:
			v.Rule, v.Advice = m.method+"/missing-other-code", code == codes.InvalidArgument
			v.Text = fmt.Sprintf("%s of a volume that does not exist answered %s (%s); it must answer NOT_FOUND", m.method, code, status.Convert(err).Message())
			b.violate(s, v)
		}
	}
	return nil
}

// unpromised: an RPC that works and is not advertised is never called by anybody.
func (b *bench) unpromised(s *Step, method string, err error) {
	if promise, ok := spec.Promised(method); ok && !b.caps.Obliged(method) && err == nil {
		b.violate(s, spec.Violation{Rule: method + "/implemented-but-not-advertised", Section: method, Advice: true,
			Text: method + " works, and the driver does not advertise " + promise + ": nobody will call it"})
	}
}

// stepPaging makes three volumes and reads the list two by two.
func (b *bench) stepPaging(ctx context.Context, s *Step) error {
	if !b.caps.HasController("LIST_VOLUMES") || b.needCreate() != nil {
		return skipf("the driver does not advertise LIST_VOLUMES")
	}
	var made []string
	defer func() {
		for _, id := range made {
			_ = b.deleteVolume(ctx, id)
		}
	}()
	for range 3 {
		r, err := ask(ctx, b.ctl.CreateVolume, b.createRequest(newName("page"), b.capability(writer, false)))
		if err != nil {
			return err
		}
		made = append(made, r.GetVolume().GetVolumeId())
	}
	seen, token := map[string]bool{}, ""
	for pages := 0; ; pages++ {
		r, err := ask(ctx, b.ctl.ListVolumes, &csi.ListVolumesRequest{MaxEntries: 2, StartingToken: token})
		if err != nil {
			return err
		}
		for _, e := range r.GetEntries() {
			seen[e.GetVolume().GetVolumeId()] = true
		}
		next := r.GetNextToken()
		if next == "" {
			break
		}
		if next == token || pages > 10000 {
			b.violate(s, spec.Violation{Rule: "ListVolumes/paging-never-ends", Section: "ListVolumes", Text: "next_token leads to the same page again"})
			break
		}
		token = next
	}
	for _, id := range made {
		if !seen[id] {
			b.violate(s, spec.Violation{Rule: "ListVolumes/paging-loses", Section: "ListVolumes",
				Text: fmt.Sprintf("of three volumes that are there, ListVolumes with max_entries=2 did not show %q on any page", id)})
			break
		}
	}
	return nil
}
