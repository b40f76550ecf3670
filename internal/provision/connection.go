package provision

import (
	"context"
	"path"
	"slices"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"berth.io/berth/internal/boundary"
)

// dial opens the connection to a driver's socket; it connects with the first RPC and again after a loss. It is not
// csi-lib-utils' Connect: that one renders each request and answer for a log that is off, waits for the driver before
// it returns, and takes no interceptor.
func (r *role) dial(endpoint string) (*grpc.ClientConn, error) {
	retry := backoff.DefaultConfig
	retry.BaseDelay, retry.MaxDelay = 50*time.Millisecond, time.Second
	return grpc.NewClient("unix://"+endpoint,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: 5 * time.Second}),
		grpc.WithUnaryInterceptor(r.call),
	)
}

// call is around every RPC to the driver.
func (r *role) call(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, r.m.opts.RPCTimeout)
	defer cancel()
	short := path.Base(method)
	done := r.m.holders.begin(r.driver.Name, short, subject(req))
	defer done()
	noteAsked(ctx, req)
	start := time.Now()
	err := bounded(req, func() error {
		if may := r.m.opts.MayAct; may != nil && changes(req) {
			if err := may(); err != nil {
				return status.Error(codes.Unavailable, err.Error())
			}
		}
		return invoke(ctx, method, req, reply, cc, opts...)
	})
	if err == nil {
		err = validate(req, reply)
	}
	r.m.metrics.rpc(r.driver.Name, method, err, time.Since(start))
	return err
}

// bounded puts an RPC that changes state inside a boundary of its own, so that the kill test can die on either side.
func bounded(req any, rpc func() error) error {
	switch req.(type) {
	case *csi.CreateVolumeRequest:
		return boundary.Do("provision/create-volume", rpc)
	case *csi.DeleteVolumeRequest:
		return boundary.Do("provision/delete-volume", rpc)
	case *csi.ControllerPublishVolumeRequest:
		return boundary.Do("provision/publish-volume", rpc)
	case *csi.ControllerUnpublishVolumeRequest:
		return boundary.Do("provision/unpublish-volume", rpc)
	case *csi.ControllerExpandVolumeRequest:
		return boundary.Do("provision/expand-volume", rpc)
	case *csi.ControllerModifyVolumeRequest:
		return boundary.Do("provision/modify-volume", rpc)
	case *csi.CreateSnapshotRequest:
		return boundary.Do("provision/create-snapshot", rpc)
	case *csi.DeleteSnapshotRequest:
		return boundary.Do("provision/delete-snapshot", rpc)
	case *csi.CreateVolumeGroupSnapshotRequest:
		return boundary.Do("provision/create-group-snapshot", rpc)
	case *csi.DeleteVolumeGroupSnapshotRequest:
		return boundary.Do("provision/delete-group-snapshot", rpc)
	}
	return rpc()
}

// changes says whether an RPC changes something: those that bounded knows.
func changes(req any) bool {
	switch req.(type) {
	case *csi.CreateVolumeRequest, *csi.DeleteVolumeRequest, *csi.ControllerPublishVolumeRequest, *csi.ControllerUnpublishVolumeRequest,
		*csi.ControllerExpandVolumeRequest, *csi.ControllerModifyVolumeRequest, *csi.CreateSnapshotRequest, *csi.DeleteSnapshotRequest,
		*csi.CreateVolumeGroupSnapshotRequest, *csi.DeleteVolumeGroupSnapshotRequest:
		return true
	}
	return false
}

// subject names what an RPC is about, for whoever waits for it.
func subject(req any) string {
	switch q := req.(type) {
	case *csi.CreateVolumeRequest:
		return q.GetName()
	case *csi.CreateSnapshotRequest:
		return q.GetName()
	case *csi.CreateVolumeGroupSnapshotRequest:
		return q.GetName()
	case interface{ GetGroupSnapshotId() string }:
		return q.GetGroupSnapshotId()
	case interface{ GetVolumeId() string }:
		return q.GetVolumeId()
	case interface{ GetSnapshotId() string }:
		return q.GetSnapshotId()
	}
	return ""
}

// maxIDLength is what the CSI spec allows for an identifier, in bytes ("Size Limits").
const maxIDLength = 128

// validate refuses an answer that breaks the CSI spec before a library uses it: external-provisioner, for one,
// dereferences CreateVolumeResponse.volume unchecked. The code is Aborted, which the libraries take for "outcome unknown,
// ask again": the driver may well have made the volume.
func validate(req, reply any) error {
	bad := func(what string) error { return badAnswer("%s", what) }
	switch a := reply.(type) {
	case *csi.CreateVolumeResponse:
		q := req.(*csi.CreateVolumeRequest)
		switch id := a.GetVolume().GetVolumeId(); {
		case a.GetVolume() == nil:
			return bad("CreateVolume returned no volume")
		case id == "":
			return bad("CreateVolume returned a volume without an id")
		case len(id) > maxIDLength:
			return bad("CreateVolume returned an id of more than 128 bytes")
		}
		switch size, limit := a.GetVolume().GetCapacityBytes(), q.GetCapacityRange().GetLimitBytes(); {
		case size < 0:
			return bad("CreateVolume returned a negative size")
		case limit > 0 && size > limit:
			return bad("CreateVolume returned a volume larger than the limit asked for")
		}
	case *csi.ControllerExpandVolumeResponse:
		if want := req.(*csi.ControllerExpandVolumeRequest).GetCapacityRange().GetRequiredBytes(); a.GetCapacityBytes() < want {
			return bad("ControllerExpandVolume returned a size smaller than asked for")
		}
	case *csi.GetCapacityResponse:
		if a.GetAvailableCapacity() < 0 || a.GetMaximumVolumeSize().GetValue() < 0 {
			return bad("GetCapacity returned a negative size")
		}
	case *csi.CreateSnapshotResponse:
		return badSnapshots("CreateSnapshot", a.GetSnapshot())
	case *csi.ListSnapshotsResponse:
		for _, e := range a.GetEntries() {
			if err := badSnapshots("ListSnapshots", e.GetSnapshot()); err != nil {
				return err
			}
		}
	case *csi.CreateVolumeGroupSnapshotResponse:
		return badGroup("CreateVolumeGroupSnapshot", a.GetGroupSnapshot(), req.(*csi.CreateVolumeGroupSnapshotRequest).GetSourceVolumeIds())
	case *csi.GetVolumeGroupSnapshotResponse:
		return badGroup("GetVolumeGroupSnapshot", a.GetGroupSnapshot(), nil)
	}
	return nil
}

func badAnswer(format string, args ...any) error {
	return status.Errorf(codes.Aborted, "the driver's answer is invalid: "+format, args...)
}

// badSnapshots refuses a snapshot that external-snapshotter would dereference, or show as one of the year 1970.
func badSnapshots(rpc string, all ...*csi.Snapshot) error {
	for _, s := range all {
		switch {
		case s.GetSnapshotId() == "":
			return badAnswer("%s returned no snapshot id", rpc)
		case len(s.GetSnapshotId()) > maxIDLength:
			return badAnswer("%s returned a snapshot id of more than %d bytes", rpc, maxIDLength)
		case s.GetSizeBytes() < 0:
			return badAnswer("%s returned a snapshot of a negative size", rpc)
		case s.GetCreationTime() == nil:
			return badAnswer("%s returned a snapshot without creation_time", rpc)
		}
	}
	return nil
}

// badGroup refuses a group snapshot that is not one of the volumes that were asked for, each once.
func badGroup(rpc string, g *csi.VolumeGroupSnapshot, volumes []string) error {
	if g.GetGroupSnapshotId() == "" {
		return badAnswer("%s returned no group snapshot id", rpc)
	}
	if g.GetCreationTime() == nil {
		return badAnswer("%s returned a group snapshot without creation_time", rpc)
	}
	if err := badSnapshots(rpc, g.GetSnapshots()...); err != nil || volumes == nil {
		return err
	}
	var of []string
	for _, s := range g.GetSnapshots() {
		of = append(of, s.GetSourceVolumeId())
	}
	slices.Sort(of)
	if want := slices.Sorted(slices.Values(volumes)); !slices.Equal(of, want) {
		return badAnswer("%s was asked for snapshots of %q and returned those of %q", rpc, want, of)
	}
	return nil
}
