//go:build component

package csi

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
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

// A driver that says it has unstaged and left its filesystem mounted: what is in there is the volume's data.
func TestBlockStagingIsNotEmptiedThroughAMount(t *testing.T) {
	p, _ := newPlugin(t, serve(t, allCapabilities...), DriversOptions{}, csiDriver())
	v := testVolume(asBlock)
	if err := p.Stage(t.Context(), plugin.StageRequest{Volume: v}); err != nil {
		t.Fatal(err)
	}
	data := t.TempDir()
	file := filepath.Join(data, "precious")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(data, p.GlobalPath(v), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(p.GlobalPath(v), unix.MNT_DETACH) })
	if err := p.Unstage(t.Context(), plugin.UnstageRequest{GlobalPath: p.GlobalPath(v)}); err == nil || !strings.Contains(err.Error(), "mount point") {
		t.Errorf("unstaged: %v", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}
