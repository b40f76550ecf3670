//go:build component

package csi

import (
	"os"
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/plugin"
)

// A raw device is staged, published and mapped, found again, and taken away; nothing of it stays. Needs root: bind mounts.
func TestBlock(t *testing.T) {
	s := serve(t, allCapabilities...)
	p, _ := newPlugin(t, s, DriversOptions{}, csiDriver())
	v := testVolume(asBlock)
	ctx := t.Context()
	if err := p.Stage(ctx, plugin.StageRequest{Volume: v}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		published, err := p.Publish(ctx, plugin.PublishRequest{Volume: v})
		if err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(published.Path); err != nil || string(data) != "device" {
			t.Errorf("at %s: %q, %v", published.Path, data, err)
		}
	}
	publish := s.last["NodePublishVolume"].(*csipb.NodePublishVolumeRequest)
	if publish.VolumeCapability.GetBlock() == nil || publish.TargetPath != p.paths.blockTarget("pod-uid", "pv-1") {
		t.Errorf("request %v", publish)
	}
	r, err := p.Reconstruct("pod-uid", "pv-1", v1.PersistentVolumeBlock)
	if err != nil || r.GlobalPath != p.GlobalPath(v) || r.SpecName != "pv-1" {
		t.Errorf("reconstructed %+v, %v", r, err)
	}
	if found, err := p.StagedVolumes(); err != nil || len(found) != 1 || found[0].GlobalPath != p.GlobalPath(v) {
		t.Errorf("staged %+v, %v", found, err)
	}
	if err := p.Unpublish(ctx, plugin.UnpublishRequest{PodUID: "pod-uid", SpecName: "pv-1", Mode: v1.PersistentVolumeBlock}); err != nil {
		t.Fatal(err)
	}
	if err := p.Unstage(ctx, plugin.UnstageRequest{GlobalPath: r.GlobalPath}); err != nil {
		t.Fatal(err)
	}
	for _, f := range files(t, p.paths.root) {
		if strings.Contains(f, "pv-1") {
			t.Errorf("left: %s", f)
		}
	}
}
