package csi

import (
	"context"
	"errors"
	"fmt"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin"
)

// Expand calls NodeExpandVolume on the published volume.
func (p *Plugin) Expand(ctx context.Context, r plugin.ExpandRequest) error {
	v := r.Volume
	src := persistent(v)
	if src == nil || v.Pod == nil {
		return fmt.Errorf("expand %s: %w", v.SpecName(), plugin.ErrExpandNotServed)
	}
	d, err := p.drivers.get(src.Driver)
	if err != nil {
		return err
	}
	caps, err := d.capabilities(ctx)
	if err != nil {
		return err
	}
	if !caps.expand {
		return fmt.Errorf("driver %s: %w", src.Driver, plugin.ErrExpandNotServed)
	}
	secrets, err := p.secret(ctx, "nodeExpandSecretRef", src.NodeExpandSecretRef)
	if err != nil {
		return err
	}
	path := p.paths.target(v.Pod.UID, v.SpecName())
	if v.Mode() == v1.PersistentVolumeBlock {
		path = p.paths.blockTarget(v.Pod.UID, v.SpecName())
	}
	request := &csipb.NodeExpandVolumeRequest{
		VolumeId:         src.VolumeHandle,
		VolumePath:       path,
		CapacityRange:    &csipb.CapacityRange{RequiredBytes: r.NewSize},
		VolumeCapability: capability(caps, v, src.FSType, v.PV.Spec.MountOptions, nil),
		Secrets:          secrets,
	}
	if caps.stage {
		request.StagingTargetPath = p.GlobalPath(v)
	}
	err = boundary.Do("csi/node-expand-volume", func() error {
		return d.call(ctx, "NodeExpandVolume", func(ctx context.Context) error {
			_, err := d.node.NodeExpandVolume(ctx, request)
			return err
		})
	})
	var rpc *RPCError
	if errors.As(err, &rpc) {
		switch rpc.Status.Code() {
		case codes.FailedPrecondition:
			return fmt.Errorf("%w: %w", err, plugin.ErrExpandInUse)
		case codes.InvalidArgument, codes.OutOfRange, codes.NotFound:
			return fmt.Errorf("%w: %w", err, plugin.ErrExpandInfeasible)
		}
	}
	return err
}
