package csi

import (
	"context"
	"errors"
	"fmt"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/encoding/protowire"
	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/plugin"
)

// Inspect asks the driver for the volume's usage (NodeGetVolumeStats) and its health: NodeGetVolumeHealth of CSI 1.13, or
// the VolumeCondition that drivers of CSI 1.3 to 1.12 put into the answer of NodeGetVolumeStats.
func (p *Plugin) Inspect(ctx context.Context, v *plugin.Volume) (plugin.Inspection, error) {
	var out plugin.Inspection
	d, err := p.drivers.get(p.Driver(v))
	if err != nil {
		return out, err
	}
	caps, err := d.capabilities(ctx)
	if err != nil {
		return out, err
	}
	path := p.paths.target(v.Pod.UID, v.SpecName())
	if v.Mode() == v1.PersistentVolumeBlock {
		path = p.paths.blockTarget(v.Pod.UID, v.SpecName())
	}
	staging := ""
	if caps.stage {
		staging = p.GlobalPath(v)
	}
	var errs []error
	if caps.stats {
		errs = append(errs, d.call(ctx, "NodeGetVolumeStats", func(ctx context.Context) error {
			r, err := d.node.NodeGetVolumeStats(ctx, &csipb.NodeGetVolumeStatsRequest{VolumeId: handleOf(v), VolumePath: path, StagingTargetPath: staging})
			if err != nil {
				return err
			}
			out.Bytes, out.Inodes = usage(r.GetUsage(), csipb.VolumeUsage_BYTES), usage(r.GetUsage(), csipb.VolumeUsage_INODES)
			if caps.condition {
				out.Problems, out.Health = volumeCondition(r.ProtoReflect().GetUnknown())
			}
			return nil
		}))
	}
	if caps.health {
		errs = append(errs, d.call(ctx, "NodeGetVolumeHealth", func(ctx context.Context) error {
			r, err := d.node.NodeGetVolumeHealth(ctx, &csipb.NodeGetVolumeHealthRequest{VolumeId: handleOf(v), VolumePublishPath: path, StagingTargetPath: staging})
			if err != nil {
				return err
			}
			out.Health, out.Problems = true, nil
			for _, s := range r.GetVolumeHealth().GetHealthStatuses() {
				out.Problems = append(out.Problems, plugin.Problem{Kind: s.GetStatus().String(), Reason: s.GetReason(), Message: s.GetMessage()})
			}
			return nil
		}))
	}
	return out, errors.Join(errs...)
}

func usage(all []*csipb.VolumeUsage, unit csipb.VolumeUsage_Unit) *plugin.Usage {
	for _, u := range all {
		if u.GetUnit() == unit {
			return &plugin.Usage{Total: u.GetTotal(), Used: u.GetUsed(), Available: u.GetAvailable()}
		}
	}
	return nil
}

// Of CSI 1.3 to 1.12: what this version of the spec has reserved.
const (
	capabilityVolumeCondition = 4 // NodeServiceCapability.RPC.VOLUME_CONDITION
	fieldVolumeCondition      = 2 // NodeGetVolumeStatsResponse.volume_condition
	fieldAbnormal             = 1
	fieldMessage              = 2
)

// volumeCondition reads the field that CSI 1.13 has removed from the bytes that its decoder leaves over.
func volumeCondition(unknown []byte) (problems []plugin.Problem, known bool) {
	err := fields(unknown, func(number protowire.Number, value []byte, _ uint64) error {
		if number != fieldVolumeCondition || value == nil {
			return nil
		}
		abnormal, message := false, ""
		known = true
		err := fields(value, func(number protowire.Number, text []byte, n uint64) error {
			switch number {
			case fieldAbnormal:
				abnormal = n != 0
			case fieldMessage:
				message = string(text)
			}
			return nil
		})
		problems = nil
		if abnormal {
			problems = []plugin.Problem{{Kind: "ABNORMAL", Message: message}}
		}
		return err
	})
	if err != nil {
		return nil, false
	}
	return problems, known
}

// fields calls f for each field: with its bytes, or with its number when it is one.
func fields(data []byte, f func(number protowire.Number, value []byte, n uint64) error) error {
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return fmt.Errorf("field: %w", protowire.ParseError(n))
		}
		data = data[n:]
		var value []byte
		var varint uint64
		switch kind {
		case protowire.BytesType:
			if value, n = protowire.ConsumeBytes(data); value == nil {
				value = []byte{}
			}
		case protowire.VarintType:
			varint, n = protowire.ConsumeVarint(data)
		default:
			n = protowire.ConsumeFieldValue(number, kind, data)
		}
		if n < 0 {
			return fmt.Errorf("field %d: %w", number, protowire.ParseError(n))
		}
		data = data[n:]
		if err := f(number, value, varint); err != nil {
			return err
		}
	}
	return nil
}
