package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"strconv"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// idOf makes an id from a name: the same name is the same object.
func (d *driver) idOf(prefix, name string) string {
	if d.bug == bugTwice {
		name += strconv.FormatInt(time.Now().UnixNano(), 10)
	}
	sum := sha256.Sum256([]byte(name))
	return prefix + hex.EncodeToString(sum[:12])
}

func invalid(text string) error { return status.Error(codes.InvalidArgument, text) }

// usable says whether the capabilities are ones that the driver has.
func usable(caps []*csi.VolumeCapability) (block bool, err error) {
	if len(caps) == 0 {
		return false, invalid("volume capabilities are needed")
	}
	for _, c := range caps {
		if c.GetAccessMode() == nil || c.GetBlock() == nil && c.GetMount() == nil {
			return false, invalid("a volume capability needs an access mode and an access type")
		}
		block = block || c.GetBlock() != nil
	}
	if block && !haveLoops() {
		return true, invalid("this process may not make loop devices, so there are no raw block volumes")
	}
	return block, nil
}

func (d *driver) CreateVolume(_ context.Context, q *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if q.GetName() == "" {
		return nil, invalid("a name is needed")
	}
	block, err := usable(q.GetVolumeCapabilities())
	if err != nil {
		return nil, err
	}
	want, limit := max(q.GetCapacityRange().GetRequiredBytes(), 1<<20), q.GetCapacityRange().GetLimitBytes()
	if limit > 0 && want > limit {
		return nil, status.Error(codes.OutOfRange, "required_bytes is more than limit_bytes, or less than 1 MiB")
	}
	if want > 1<<50 {
		return nil, status.Error(codes.OutOfRange, "a volume may have 1 PiB at most")
	}
	source, from, size, err := d.source(q.GetVolumeContentSource(), block)
	if err != nil {
		return nil, err
	}
	if size > want {
		return nil, status.Errorf(codes.OutOfRange, "the source has %d bytes, more than the %d asked for", size, want)
	}
	if have := d.named("volumes", q.GetName()); have != nil && d.bug != bugTwice {
		switch {
		case d.bug == bugSizeAgain:
		case have.Size < q.GetCapacityRange().GetRequiredBytes() || limit > 0 && have.Size > limit:
			return nil, status.Errorf(codes.AlreadyExists, "volume %q has %d bytes", q.GetName(), have.Size)
		case have.Source != source || have.Block != block || !maps.Equal(have.Params, q.GetParameters()):
			return nil, status.Errorf(codes.AlreadyExists, "volume %q was made with other arguments", q.GetName())
		}
		return &csi.CreateVolumeResponse{Volume: d.volume(have)}, nil
	}
	r := &record{ID: d.idOf("v-", q.GetName()), Name: q.GetName(), Size: want, Block: block, Source: source, Params: q.GetParameters(), Made: time.Now()}
	if err := d.fill("volumes", r, from); err != nil {
		return nil, err
	}
	if err := d.save("volumes", r); err != nil {
		return nil, err
	}
	v := d.volume(r)
	switch d.bug {
	case bugSmall:
		v.CapacityBytes /= 2
	case bugSecret:
		v.VolumeContext = q.GetSecrets()
	}
	return &csi.CreateVolumeResponse{Volume: v}, nil
}

// source finds what a new volume starts with.
func (d *driver) source(s *csi.VolumeContentSource, block bool) (name, path string, size int64, err error) {
	var r *record
	kind := ""
	switch {
	case s == nil:
		return "", "", 0, nil
	case s.GetSnapshot() != nil:
		kind, name = "snapshots", "snapshot/"+s.GetSnapshot().GetSnapshotId()
		r, err = d.load(kind, s.GetSnapshot().GetSnapshotId())
	case s.GetVolume() != nil:
		kind, name = "volumes", "volume/"+s.GetVolume().GetVolumeId()
		r, err = d.load(kind, s.GetVolume().GetVolumeId())
	default:
		return "", "", 0, invalid("an unknown content source")
	}
	if err != nil {
		return "", "", 0, err
	}
	if r.Block != block {
		return "", "", 0, invalid("the source is of the other volume mode")
	}
	return name, d.data(kind, r), r.Size, nil
}

func (d *driver) DeleteVolume(_ context.Context, q *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if q.GetVolumeId() == "" {
		return nil, invalid("a volume id is needed")
	}
	r, err := d.load("volumes", q.GetVolumeId())
	if err != nil && d.bug == bugDelete {
		return nil, err
	}
	if err == nil && r.Published {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %q is published", q.GetVolumeId())
	}
	if d.bug == bugLeak {
		return &csi.DeleteVolumeResponse{}, nil
	}
	return &csi.DeleteVolumeResponse{}, d.drop("volumes", q.GetVolumeId())
}

func (d *driver) ControllerPublishVolume(_ context.Context, q *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	if q.GetVolumeId() == "" || q.GetNodeId() == "" || q.GetVolumeCapability() == nil {
		return nil, invalid("volume id, node id and capability are needed")
	}
	r, err := d.load("volumes", q.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if q.GetNodeId() != d.node {
		return nil, status.Errorf(codes.NotFound, "there is no node %q", q.GetNodeId())
	}
	r.Published = true
	return &csi.ControllerPublishVolumeResponse{PublishContext: map[string]string{"node": d.node}}, d.save("volumes", r)
}

func (d *driver) ControllerUnpublishVolume(_ context.Context, q *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	if q.GetVolumeId() == "" {
		return nil, invalid("a volume id is needed")
	}
	r, err := d.load("volumes", q.GetVolumeId())
	if status.Code(err) == codes.NotFound {
		return &csi.ControllerUnpublishVolumeResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	r.Published = false
	return &csi.ControllerUnpublishVolumeResponse{}, d.save("volumes", r)
}

func (d *driver) ValidateVolumeCapabilities(_ context.Context, q *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if q.GetVolumeId() == "" {
		return nil, invalid("a volume id is needed")
	}
	block, err := usable(q.GetVolumeCapabilities())
	if err != nil {
		return nil, err
	}
	r, err := d.load("volumes", q.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if r.Block != block {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: "the volume is of the other volume mode"}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: q.GetVolumeContext(), VolumeCapabilities: q.GetVolumeCapabilities(), Parameters: q.GetParameters()}}, nil
}

func (d *driver) ControllerExpandVolume(_ context.Context, q *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	if d.bug == bugLies {
		return nil, status.Error(codes.Unimplemented, "not yet")
	}
	if q.GetVolumeId() == "" || q.GetCapacityRange() == nil {
		return nil, invalid("volume id and capacity range are needed")
	}
	r, err := d.load("volumes", q.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if want := q.GetCapacityRange().GetRequiredBytes(); want > r.Size {
		r.Size = want
		if r.Block {
			if err := truncate(d.data("volumes", r), want); err != nil {
				return nil, err
			}
		}
		if err := d.save("volumes", r); err != nil {
			return nil, err
		}
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: r.Size, NodeExpansionRequired: true}, nil
}

func (d *driver) ControllerGetVolume(_ context.Context, q *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	if q.GetVolumeId() == "" {
		return nil, invalid("a volume id is needed")
	}
	r, err := d.load("volumes", q.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &csi.ControllerGetVolumeResponse{Volume: d.volume(r), Status: &csi.ControllerGetVolumeResponse_VolumeStatus{}}, nil
}

// page cuts a list: the token is the index of the next entry.
func (d *driver) page(n int, token string, limit int32) (from, to int, next string, err error) {
	if token != "" {
		if from, err = strconv.Atoi(token); err != nil || from < 0 || from > n {
			return 0, 0, "", status.Errorf(codes.Aborted, "there is no page %q", token)
		}
	}
	if to = n; limit > 0 && from+int(limit) < n {
		to = from + int(limit)
		next = strconv.Itoa(to)
		if d.bug == bugPaging {
			next = strconv.Itoa(to + 1)
		}
	}
	return from, to, next, nil
}

func (d *driver) ListVolumes(_ context.Context, q *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	all := d.list("volumes")
	from, to, next, err := d.page(len(all), q.GetStartingToken(), q.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	r := &csi.ListVolumesResponse{NextToken: next}
	for _, v := range all[from:to] {
		r.Entries = append(r.Entries, &csi.ListVolumesResponse_Entry{Volume: d.volume(v)})
	}
	return r, nil
}
