//go:build component

package driver_test

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"berth.io/berth/internal/block/pool"
)

// How long each call takes on the path from a claim to a mount, with the format done ahead as it is between
// CreateVolume and NodeStageVolume of a real claim. Run with -run '^$' -bench Journey -benchtime 100x.
func BenchmarkJourney(b *testing.B) {
	for _, fsType := range []string{"ext4", "xfs"} {
		b.Run(fsType, func(b *testing.B) {
			s := start(b, 8<<30)
			c := mountCapability(fsType, writer)
			took := map[string][]time.Duration{}
			var began time.Time
			lap := func(step string) {
				took[step] = append(took[step], time.Since(began))
				began = time.Now()
			}
			must := func(_ any, err error) {
				if err != nil {
					b.Fatal(err)
				}
			}
			for n := 0; b.Loop(); n++ {
				began = time.Now()
				id := s.create(b, fmt.Sprint("bench", n), 1<<30, c)
				lap("1 CreateVolume")
				for v, _ := s.pool.Get(id); v.Content != pool.Formatted; v, _ = s.pool.Get(id) {
					time.Sleep(200 * time.Microsecond)
				}
				lap("2 (format ahead)")
				must(s.ControllerPublishVolume(b.Context(), &csi.ControllerPublishVolumeRequest{VolumeId: id, NodeId: node, VolumeCapability: c}))
				lap("3 ControllerPublishVolume")
				os.MkdirAll(s.staging(id), 0o750)
				must(s.NodeStageVolume(b.Context(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: s.staging(id), VolumeCapability: c}))
				lap("4 NodeStageVolume")
				must(s.NodePublishVolume(b.Context(), &csi.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: s.staging(id), TargetPath: s.target(id), VolumeCapability: c}))
				lap("5 NodePublishVolume")
				must(s.NodeUnpublishVolume(b.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: s.target(id)}))
				lap("6 NodeUnpublishVolume")
				must(s.NodeUnstageVolume(b.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: s.staging(id)}))
				lap("7 NodeUnstageVolume")
				must(s.ControllerUnpublishVolume(b.Context(), &csi.ControllerUnpublishVolumeRequest{VolumeId: id, NodeId: node}))
				lap("8 ControllerUnpublishVolume")
				s.delete(b, id)
				lap("9 DeleteVolume")
			}
			steps := make([]string, 0, len(took))
			for step := range took {
				steps = append(steps, step)
			}
			slices.Sort(steps)
			for _, step := range steps {
				d := took[step]
				slices.Sort(d)
				b.Logf("%-28s p50 %8v  p99 %8v", step, d[len(d)/2].Round(10*time.Microsecond), d[len(d)*99/100].Round(10*time.Microsecond))
			}
		})
	}
}
