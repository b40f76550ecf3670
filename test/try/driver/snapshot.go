package main

import (
	"context"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// snap copies a volume; a small driver has small volumes.
func (d *driver) snap(name, volume, group string) (*record, error) {
	if have := d.named("snapshots", name); have != nil {
		if have.Source != volume {
			return nil, status.Errorf(codes.AlreadyExists, "snapshot %q is of volume %q", name, have.Source)
		}
		return have, nil
	}
	v, err := d.load("volumes", volume)
	if err != nil {
		return nil, err
	}
	r := &record{ID: d.idOf("s-", name), Name: name, Size: v.Size, Block: v.Block, Source: v.ID, Group: group, Made: time.Now()}
	if err := d.fill("snapshots", r, d.data("volumes", v)); err != nil {
		return nil, err
	}
	return r, d.save("snapshots", r)
}

func (d *driver) CreateSnapshot(_ context.Context, q *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if q.GetName() == "" || q.GetSourceVolumeId() == "" {
		return nil, invalid("a name and a source volume are needed")
	}
	r, err := d.snap(q.GetName(), q.GetSourceVolumeId(), "")
	if err != nil {
		return nil, err
	}
	return &csi.CreateSnapshotResponse{Snapshot: snapshotOf(r)}, nil
}

func (d *driver) DeleteSnapshot(_ context.Context, q *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	if q.GetSnapshotId() == "" {
		return nil, invalid("a snapshot id is needed")
	}
	if r, err := d.load("snapshots", q.GetSnapshotId()); err == nil && r.Group != "" {
		return nil, invalid("the snapshot is part of the group " + r.Group)
	}
	return &csi.DeleteSnapshotResponse{}, d.drop("snapshots", q.GetSnapshotId())
}

func (d *driver) ListSnapshots(_ context.Context, q *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	var all []*record
	for _, r := range d.list("snapshots") {
		if (q.GetSnapshotId() == "" || r.ID == q.GetSnapshotId()) && (q.GetSourceVolumeId() == "" || r.Source == q.GetSourceVolumeId()) {
			all = append(all, r)
		}
	}
	from, to, next, err := d.page(len(all), q.GetStartingToken(), q.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	r := &csi.ListSnapshotsResponse{NextToken: next}
	for _, s := range all[from:to] {
		r.Entries = append(r.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: snapshotOf(s)})
	}
	return r, nil
}

func (d *driver) CreateVolumeGroupSnapshot(_ context.Context, q *csi.CreateVolumeGroupSnapshotRequest) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	if q.GetName() == "" || len(q.GetSourceVolumeIds()) == 0 {
		return nil, invalid("a name and source volumes are needed")
	}
	id := d.idOf("g-", q.GetName())
	for _, v := range q.GetSourceVolumeIds() { // all of them, or none
		if _, err := d.load("volumes", v); err != nil {
			return nil, err
		}
	}
	if have := d.members(id); len(have) > 0 && len(have) != len(q.GetSourceVolumeIds()) {
		return nil, status.Errorf(codes.AlreadyExists, "the group %q has other members", q.GetName())
	}
	g := &csi.VolumeGroupSnapshot{GroupSnapshotId: id, ReadyToUse: true}
	for _, v := range q.GetSourceVolumeIds() {
		r, err := d.snap(q.GetName()+"/"+v, v, id)
		if err != nil {
			return nil, err
		}
		g.Snapshots, g.CreationTime = append(g.Snapshots, snapshotOf(r)), timestamppb.New(r.Made)
	}
	return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: g}, nil
}

func (d *driver) members(group string) (all []*record) {
	for _, r := range d.list("snapshots") {
		if r.Group == group {
			all = append(all, r)
		}
	}
	return all
}

func (d *driver) GetVolumeGroupSnapshot(_ context.Context, q *csi.GetVolumeGroupSnapshotRequest) (*csi.GetVolumeGroupSnapshotResponse, error) {
	if q.GetGroupSnapshotId() == "" {
		return nil, invalid("a group snapshot id is needed")
	}
	all := d.members(q.GetGroupSnapshotId())
	if len(all) == 0 {
		return nil, status.Errorf(codes.NotFound, "there is no group %q", q.GetGroupSnapshotId())
	}
	g := &csi.VolumeGroupSnapshot{GroupSnapshotId: q.GetGroupSnapshotId(), ReadyToUse: true}
	for _, r := range all {
		g.Snapshots, g.CreationTime = append(g.Snapshots, snapshotOf(r)), timestamppb.New(r.Made)
	}
	return &csi.GetVolumeGroupSnapshotResponse{GroupSnapshot: g}, nil
}

func (d *driver) DeleteVolumeGroupSnapshot(_ context.Context, q *csi.DeleteVolumeGroupSnapshotRequest) (*csi.DeleteVolumeGroupSnapshotResponse, error) {
	if q.GetGroupSnapshotId() == "" {
		return nil, invalid("a group snapshot id is needed")
	}
	for _, id := range q.GetSnapshotIds() {
		if r, err := d.load("snapshots", id); err == nil && r.Group != q.GetGroupSnapshotId() {
			return nil, invalid("snapshot " + id + " is not of this group")
		}
	}
	for _, r := range d.members(q.GetGroupSnapshotId()) {
		if err := d.drop("snapshots", r.ID); err != nil {
			return nil, err
		}
	}
	return &csi.DeleteVolumeGroupSnapshotResponse{}, nil
}
