//go:build component

package intree

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/mount"
	"berth.io/berth/internal/plugin"
)

// `berth down` with nothing running: what a pod has written into an emptyDir on the disk is there afterwards, as after a
// stopped kubelet; what was in memory is not, and nothing stays mounted.
func TestOfflineTeardownKeepsEmptyDirs(t *testing.T) {
	dir := t.TempDir()
	v := New(Options{DataDir: dir})
	registry := plugin.NewRegistry(v.Plugins()...)
	paths := map[string]string{}
	for name, medium := range map[string]v1.StorageMedium{"disk": v1.StorageMediumDefault, "memory": v1.StorageMediumMemory} {
		vol := &plugin.Volume{Name: name, Pod: &v1.Pod{}, Source: &v1.Volume{Name: name, VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: medium}}}}
		vol.Pod.UID = "uid"
		p, err := registry.Find(vol)
		if err != nil {
			t.Fatal(err)
		}
		published, err := p.(plugin.Mounter).Publish(t.Context(), plugin.PublishRequest{Volume: vol})
		if err != nil {
			t.Fatal(err)
		}
		paths[name] = published.Path
		if err := os.WriteFile(filepath.Join(published.Path, "file"), []byte("written"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := mount.TeardownOffline(t.Context(), dir, registry, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(filepath.Join(paths["disk"], "file")); err != nil || string(data) != "written" {
			t.Errorf("on the disk: %q, %v", data, err)
		}
		if _, err := os.Stat(paths["memory"]); !os.IsNotExist(err) {
			t.Errorf("in memory: %v", err)
		}
	}
}
