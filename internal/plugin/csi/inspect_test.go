package csi

import (
	"reflect"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/encoding/protowire"

	"berth.io/berth/internal/plugin"
)

// condition is the field VolumeCondition of CSI 1.12, as such a driver sends it.
func condition(abnormal bool, message string) []byte {
	inner := protowire.AppendVarint(protowire.AppendTag(nil, fieldAbnormal, protowire.VarintType), protowire.EncodeBool(abnormal))
	inner = protowire.AppendString(protowire.AppendTag(inner, fieldMessage, protowire.BytesType), message)
	return protowire.AppendBytes(protowire.AppendTag(nil, fieldVolumeCondition, protowire.BytesType), inner)
}

// What drivers of each age say of a volume; those without a capability are not asked.
func TestInspect(t *testing.T) {
	const stats, health = csipb.NodeServiceCapability_RPC_GET_VOLUME_STATS, csipb.NodeServiceCapability_RPC_GET_VOLUME_HEALTH
	full := &csipb.NodeGetVolumeStatsResponse{Usage: []*csipb.VolumeUsage{
		{Unit: csipb.VolumeUsage_BYTES, Total: 100, Used: 60, Available: 40}, {Unit: csipb.VolumeUsage_INODES, Total: 10, Used: 1, Available: 9},
	}}
	usage := plugin.Inspection{Bytes: &plugin.Usage{Total: 100, Used: 60, Available: 40}, Inodes: &plugin.Usage{Total: 10, Used: 1, Available: 9}}
	with := func(i plugin.Inspection, problems ...plugin.Problem) plugin.Inspection {
		i.Health, i.Problems = true, problems
		return i
	}
	for name, c := range map[string]struct {
		caps    []csipb.NodeServiceCapability_RPC_Type
		unknown []byte
		health  []*csipb.VolumeHealth_VolumeHealthEntry
		want    plugin.Inspection
	}{
		"no capability":  {},
		"usage alone":    {caps: []csipb.NodeServiceCapability_RPC_Type{stats}, unknown: condition(true, "not announced"), want: usage},
		"CSI 1.12, well": {caps: []csipb.NodeServiceCapability_RPC_Type{stats, capabilityVolumeCondition}, unknown: condition(false, "fine"), want: with(usage)},
		"CSI 1.12, not well": {caps: []csipb.NodeServiceCapability_RPC_Type{stats, capabilityVolumeCondition}, unknown: condition(true, "disk lost"),
			want: with(usage, plugin.Problem{Kind: "ABNORMAL", Message: "disk lost"})},
		"CSI 1.12, says nothing": {caps: []csipb.NodeServiceCapability_RPC_Type{stats, capabilityVolumeCondition}, want: usage},
		"CSI 1.12, rubbish":      {caps: []csipb.NodeServiceCapability_RPC_Type{stats, capabilityVolumeCondition}, unknown: []byte{0x12, 2, 0x0f, 0x0f}, want: usage},
		"CSI 1.13, well":         {caps: []csipb.NodeServiceCapability_RPC_Type{health}, want: with(plugin.Inspection{})},
		"CSI 1.13, not well, one kind of a later version": {caps: []csipb.NodeServiceCapability_RPC_Type{health},
			health: []*csipb.VolumeHealth_VolumeHealthEntry{
				{Status: csipb.VolumeHealthErrorType_DEGRADED, Reason: "OnePath", Message: "one path is left"}, {Status: 17, Reason: "New"},
			},
			want: with(plugin.Inspection{}, plugin.Problem{Kind: "DEGRADED", Reason: "OnePath", Message: "one path is left"}, plugin.Problem{Kind: "17", Reason: "New"})},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, c.caps...)
			s.stats, s.health = &csipb.NodeGetVolumeStatsResponse{Usage: full.Usage}, c.health
			s.stats.ProtoReflect().SetUnknown(c.unknown)
			p, _ := newPlugin(t, s, DriversOptions{}, csiDriver())
			got, err := p.Inspect(t.Context(), testVolume())
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, %v, want %+v", got, err, c.want)
			}
		})
	}
}

func FuzzVolumeCondition(f *testing.F) {
	f.Add(condition(true, "disk lost"))
	f.Add([]byte{0x12, 2, 0x0f, 0x0f})
	f.Fuzz(func(t *testing.T, data []byte) {
		if problems, known := volumeCondition(data); !known && problems != nil {
			t.Errorf("problems without a condition: %v", problems)
		}
	})
}
