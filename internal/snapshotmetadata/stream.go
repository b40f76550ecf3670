package snapshotmetadata

import (
	"context"
	"errors"
	"io"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/validation"
)

// maxIDLength is what the CSI spec allows for an identifier, in bytes ("Size Limits").
const maxIDLength = 128

// GetMetadataAllocated streams the ranges of a snapshot that hold data.
func (s *Server) GetMetadataAllocated(r *api.GetMetadataAllocatedRequest, out api.SnapshotMetadata_GetMetadataAllocatedServer) error {
	ctx, cancel := context.WithTimeout(out.Context(), s.opts.MaxStream)
	defer cancel()
	f, err := s.lookUp(ctx, r, r.GetSnapshotName(), "snapshot_name")
	if err != nil {
		return err
	}
	in, err := csispec.NewSnapshotMetadataClient(f.driver).GetMetadataAllocated(ctx, &csispec.GetMetadataAllocatedRequest{
		SnapshotId: f.handle, StartingOffset: r.GetStartingOffset(), MaxResults: r.GetMaxResults(), Secrets: f.secrets})
	if err != nil {
		return ofDriver(err)
	}
	return relay(in.Recv, func(m *csispec.GetMetadataAllocatedResponse) error {
		return out.Send(&api.GetMetadataAllocatedResponse{BlockMetadataType: api.BlockMetadataType(m.GetBlockMetadataType()),
			VolumeCapacityBytes: m.GetVolumeCapacityBytes(), BlockMetadata: blocks(m.GetBlockMetadata())})
	})
}

// GetMetadataDelta streams the ranges in which a snapshot differs from an earlier one, which its driver's handle names:
// that one may be gone from the cluster.
func (s *Server) GetMetadataDelta(r *api.GetMetadataDeltaRequest, out api.SnapshotMetadata_GetMetadataDeltaServer) error {
	ctx, cancel := context.WithTimeout(out.Context(), s.opts.MaxStream)
	defer cancel()
	if id := r.GetBaseSnapshotId(); id == "" || len(id) > maxIDLength {
		return status.Errorf(codes.InvalidArgument, "base_snapshot_id has %d bytes; it is the driver's handle of the earlier snapshot, 1 to %d bytes", len(id), maxIDLength)
	}
	f, err := s.lookUp(ctx, r, r.GetTargetSnapshotName(), "target_snapshot_name")
	if err != nil {
		return err
	}
	in, err := csispec.NewSnapshotMetadataClient(f.driver).GetMetadataDelta(ctx, &csispec.GetMetadataDeltaRequest{
		BaseSnapshotId: r.GetBaseSnapshotId(), TargetSnapshotId: f.handle, StartingOffset: r.GetStartingOffset(), MaxResults: r.GetMaxResults(), Secrets: f.secrets})
	if err != nil {
		return ofDriver(err)
	}
	return relay(in.Recv, func(m *csispec.GetMetadataDeltaResponse) error {
		return out.Send(&api.GetMetadataDeltaResponse{BlockMetadataType: api.BlockMetadataType(m.GetBlockMetadataType()),
			VolumeCapacityBytes: m.GetVolumeCapacityBytes(), BlockMetadata: blocks(m.GetBlockMetadata())})
	})
}

// request is what both requests have.
type request interface {
	GetSecurityToken() string
	GetNamespace() string
	GetStartingOffset() int64
	GetMaxResults() int32
}

// lookUp checks the request and who makes it, then finds its snapshot; field is where its name stood.
func (s *Server) lookUp(ctx context.Context, r request, name, field string) (*found, error) {
	switch {
	case r.GetSecurityToken() == "":
		return nil, status.Error(codes.InvalidArgument, "security_token is missing")
	case len(validation.IsDNS1123Label(r.GetNamespace())) > 0:
		return nil, status.Errorf(codes.InvalidArgument, "namespace: %q is no name of a namespace", r.GetNamespace())
	case len(validation.IsDNS1123Subdomain(name)) > 0:
		return nil, status.Errorf(codes.InvalidArgument, "%s: %q is no name of a VolumeSnapshot", field, name)
	case r.GetStartingOffset() < 0:
		return nil, status.Error(codes.InvalidArgument, "starting_offset is negative")
	case r.GetMaxResults() < 0:
		return nil, status.Error(codes.InvalidArgument, "max_results is negative")
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	drivers, err := s.admit(ctx, r.GetSecurityToken(), r.GetNamespace())
	if err != nil {
		return nil, err
	}
	return s.find(ctx, r.GetNamespace(), name, drivers)
}

// relay hands each message on until the driver has said all.
func relay[M any](receive func() (M, error), send func(M) error) error {
	for {
		m, err := receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return ofDriver(err)
		}
		if err := send(m); err != nil {
			return err
		}
	}
}

// ofDriver keeps a driver's own code and words.
func ofDriver(err error) error {
	if st, ok := status.FromError(err); ok {
		return status.Errorf(st.Code(), "the driver: %s", st.Message())
	}
	return status.Errorf(codes.Internal, "the driver: %v", err)
}

func blocks(in []*csispec.BlockMetadata) []*api.BlockMetadata {
	out := make([]*api.BlockMetadata, len(in))
	for i, b := range in {
		out[i] = &api.BlockMetadata{ByteOffset: b.GetByteOffset(), SizeBytes: b.GetSizeBytes()}
	}
	return out
}
