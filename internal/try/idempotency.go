package try

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.io/berth/internal/try/spec"
)

// stepIdempotency takes one volume through its life by the bench's own RPCs, each twice.
func (b *bench) stepIdempotency(ctx context.Context, s *Step) error {
	if err := b.needCreate(); err != nil {
		return err
	}
	q := b.createRequest(newName("twice"), b.capability(writer, false))
	var v *csi.Volume
	var ids []string
	err := b.twice(s, "CreateVolume", func() error {
		r, err := ask(ctx, b.ctl.CreateVolume, q)
		if id := r.GetVolume().GetVolumeId(); id != "" {
			v, ids = r.GetVolume(), append(ids, id)
		}
		return err
	})
	defer func() {
		for _, id := range ids {
			_ = b.deleteVolume(ctx, id)
		}
	}()
	if err != nil || v == nil {
		return errors.Join(err, errNoVolume(v))
	}
	b.otherSize(ctx, s, q, v)
	if err := b.onNode(ctx, s, q, v); err != nil {
		return err
	}
	if b.caps.HasController("CREATE_DELETE_SNAPSHOT") {
		if err := b.snapshotTwice(ctx, s, v); err != nil {
			return err
		}
	}
	if err := b.twice(s, "DeleteVolume", func() error { return b.deleteVolume(ctx, v.GetVolumeId()) }); err != nil {
		return err
	}
	b.missingOK(s, "DeleteVolume", b.deleteVolume(ctx, noSuch))
	if _, err := ask(ctx, b.ctl.ValidateVolumeCapabilities, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: v.GetVolumeId(), VolumeContext: v.GetVolumeContext(),
		VolumeCapabilities: q.GetVolumeCapabilities(), Parameters: b.parameters(), Secrets: b.o.Secrets}); err == nil {
		b.violate(s, stillThere(v.GetVolumeId(), "ValidateVolumeCapabilities still finds it"))
	}
	return nil
}

func stillThere(id, how string) spec.Violation {
	return spec.Violation{Rule: "DeleteVolume/still-there", Section: "DeleteVolume", Text: fmt.Sprintf("DeleteVolume of %q answered OK, and %s", id, how)}
}

func errNoVolume(v *csi.Volume) error {
	if v == nil {
		return errors.New("CreateVolume answered no volume")
	}
	return nil
}

// twice asks, and asks again. The first answer is the step's, the second must be OK as well.
func (b *bench) twice(s *Step, method string, do func() error) error {
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	if err := do(); err != nil && status.Code(err) != codes.Aborted && !strings.HasPrefix(method, "Delete") { // those the checker judges
		st := status.Convert(err)
		number := 0
		if r := b.last(s, method); r != nil {
			number = r.Number
		}
		b.violate(s, spec.NotIdempotent(method, number, st.Code().String(), st.Message()))
	}
	return nil
}

// missingOK: the deletion of what does not exist must be OK.
func (b *bench) missingOK(s *Step, method string, err error) {
	if err != nil {
		st := status.Convert(err)
		b.violate(s, spec.Violation{Rule: method + "/missing-not-ok", Section: method,
			Text: fmt.Sprintf("%s of an id that does not exist answered %s (%s); it must answer OK", method, st.Code(), st.Message())})
	}
}

// otherSize asks for the same name in a size that the volume does not have.
func (b *bench) otherSize(ctx context.Context, s *Step, q *csi.CreateVolumeRequest, v *csi.Volume) {
	other := b.createRequest(q.GetName(), q.GetVolumeCapabilities()[0])
	other.CapacityRange = &csi.CapacityRange{RequiredBytes: 2 * max(v.GetCapacityBytes(), b.o.size())}
	r, err := ask(ctx, b.ctl.CreateVolume, other)
	switch code := status.Code(err); {
	case code == codes.AlreadyExists:
	case code == codes.OK && r.GetVolume().GetCapacityBytes() >= other.GetCapacityRange().GetRequiredBytes():
	case code == codes.OK:
		b.violate(s, spec.Violation{Rule: "CreateVolume/incompatible-accepted", Section: "CreateVolume Errors",
			Text: "a second CreateVolume with the same name and twice the size answered OK with the first's size; it must answer ALREADY_EXISTS"})
	default:
		b.violate(s, spec.Violation{Rule: "CreateVolume/incompatible-other-code", Section: "CreateVolume Errors",
			Text: fmt.Sprintf("a second CreateVolume with the same name and twice the size answered %s (%s); it must answer ALREADY_EXISTS", code, status.Convert(err).Message())})
	}
}

func (b *bench) snapshotTwice(ctx context.Context, s *Step, v *csi.Volume) error {
	q := &csi.CreateSnapshotRequest{SourceVolumeId: v.GetVolumeId(), Name: newName("snap"), Secrets: b.o.Secrets}
	var ids []string
	if err := b.twice(s, "CreateSnapshot", func() error {
		r, err := ask(ctx, b.ctl.CreateSnapshot, q)
		if id := r.GetSnapshot().GetSnapshotId(); id != "" {
			ids = append(ids, id)
		}
		return err
	}); err != nil {
		return err
	}
	remove := func(id string) error {
		_, err := ask(ctx, b.ctl.DeleteSnapshot, &csi.DeleteSnapshotRequest{SnapshotId: id, Secrets: b.o.Secrets})
		return err
	}
	for _, id := range ids {
		if err := b.twice(s, "DeleteSnapshot", func() error { return remove(id) }); err != nil {
			return err
		}
	}
	b.missingOK(s, "DeleteSnapshot", remove(noSuch))
	return nil
}

// paths of a volume that the bench itself stages and publishes.
type paths struct{ staging, target string }

// onNode attaches, stages, publishes and undoes all of it, each twice, and looks for the data after a second round.
func (b *bench) onNode(ctx context.Context, s *Step, q *csi.CreateVolumeRequest, v *csi.Volume) (err error) {
	dir := filepath.Join(b.work, "direct")
	p := paths{filepath.Join(dir, "staging"), filepath.Join(dir, "target")}
	if err := os.MkdirAll(p.staging, 0o755); err != nil {
		return err
	}
	c, id := q.GetVolumeCapabilities()[0], v.GetVolumeId()
	var published map[string]string
	attaches, stages := b.caps.HasController("PUBLISH_UNPUBLISH_VOLUME"), b.caps.HasNode("STAGE_UNSTAGE_VOLUME")
	up := []act{
		{"ControllerPublishVolume", attaches, func() error {
			r, err := ask(ctx, b.ctl.ControllerPublishVolume, &csi.ControllerPublishVolumeRequest{VolumeId: id, NodeId: b.nodeID, VolumeCapability: c,
				VolumeContext: v.GetVolumeContext(), Secrets: b.o.Secrets})
			if err == nil {
				published = r.GetPublishContext()
			}
			return err
		}},
		{"NodeStageVolume", stages, func() error {
			_, err := ask(ctx, b.nodes.NodeStageVolume, &csi.NodeStageVolumeRequest{VolumeId: id, PublishContext: published, StagingTargetPath: p.staging,
				VolumeCapability: c, VolumeContext: v.GetVolumeContext(), Secrets: b.o.Secrets})
			return err
		}},
		{"NodePublishVolume", true, func() error {
			q := &csi.NodePublishVolumeRequest{VolumeId: id, PublishContext: published, TargetPath: p.target, VolumeCapability: c,
				VolumeContext: v.GetVolumeContext(), Secrets: b.o.Secrets}
			if stages {
				q.StagingTargetPath = p.staging
			}
			_, err := ask(ctx, b.nodes.NodePublishVolume, q)
			return err
		}},
	}
	down := []act{
		{"NodeUnpublishVolume", true, func() error {
			_, err := ask(ctx, b.nodes.NodeUnpublishVolume, &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: p.target})
			return err
		}},
		{"NodeUnstageVolume", stages, func() error {
			_, err := ask(ctx, b.nodes.NodeUnstageVolume, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: p.staging})
			return err
		}},
		{"ControllerUnpublishVolume", attaches, func() error {
			_, err := ask(ctx, b.ctl.ControllerUnpublishVolume, &csi.ControllerUnpublishVolumeRequest{VolumeId: id, NodeId: b.nodeID, Secrets: b.o.Secrets})
			return err
		}},
	}
	defer func() { // whatever failed, nothing stays mounted
		if err != nil {
			for _, a := range down {
				if a.has {
					_ = a.do()
				}
			}
		}
	}()
	var sum string
	for round := range 2 {
		if err := b.each(s, up); err != nil {
			return err
		}
		if round == 0 {
			if sum, err = writeData(p.target, "data", 1); err != nil {
				return fmt.Errorf("write to the published volume: %w", err)
			}
		} else if err := checkData(p.target, "data", sum); err != nil {
			b.violate(s, dataLost("the volume was unstaged and staged again", err))
		}
		if err := b.each(s, down); err != nil {
			return err
		}
	}
	return nil
}

// act is an RPC of a volume's life, where the driver has it.
type act struct {
	method string
	has    bool
	do     func() error
}

func (b *bench) each(s *Step, acts []act) error {
	for _, a := range acts {
		if !a.has {
			continue
		}
		if err := b.twice(s, a.method, a.do); err != nil {
			return err
		}
	}
	return nil
}

// dataLost is the worst that a driver can do.
func dataLost(when string, err error) spec.Violation {
	return spec.Violation{Rule: "volume/data-lost", Section: "Volume Lifecycle", Text: fmt.Sprintf("what was written and fsynced is gone or another after %s: %v", when, err)}
}
