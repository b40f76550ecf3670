package mount

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/plugin"
)

// fakePlugin serves CSI sources of PersistentVolumes: it records its calls, keeps directories instead of mounts, and can fail
// or hang at each step of each volume.
type fakePlugin struct {
	dir        string
	attachable bool
	refreshes  bool

	mu    sync.Mutex
	calls []string
	fails map[string][]error       // "stage pv-1" → the errors of the next calls
	hangs map[string]chan struct{} // "stage pv-1" → the call waits until it is closed
	seen  map[string]plugin.Inspection
	keeps map[string]bool // volumes that a teardown leaves
	stays map[string]bool // what is staged ("pv-1") and published ("pod-1/pv-1")
	woken chan string
}

func newFakePlugin(t *testing.T) *fakePlugin {
	return &fakePlugin{
		dir: t.TempDir(), attachable: true,
		fails: map[string][]error{}, hangs: map[string]chan struct{}{}, seen: map[string]plugin.Inspection{}, keeps: map[string]bool{}, stays: map[string]bool{},
		woken: make(chan string, 1000),
	}
}

func (f *fakePlugin) Name() string                   { return "kubernetes.io/csi" }
func (f *fakePlugin) Supports(v *plugin.Volume) bool { return v.PV != nil && v.PV.Spec.CSI != nil }
func (f *fakePlugin) Driver(v *plugin.Volume) string { return v.PV.Spec.CSI.Driver }
func (f *fakePlugin) Refreshes(*plugin.Volume) bool  { return f.refreshes }
func (f *fakePlugin) GlobalPath(v *plugin.Volume) string {
	return filepath.Join(f.dir, "global", v.PV.Name)
}

func (f *fakePlugin) UniqueName(v *plugin.Volume) (v1.UniqueVolumeName, error) {
	return fakeName(v.PV.Name), nil
}

func fakeName(pv string) v1.UniqueVolumeName {
	return v1.UniqueVolumeName("kubernetes.io/csi/fake^" + pv)
}

func (f *fakePlugin) Staged(*plugin.Volume) (bool, error)     { return true, nil }
func (f *fakePlugin) Attachable(*plugin.Volume) (bool, error) { return f.attachable, nil }

// do records a call, hangs and fails as asked, and keeps what the call leaves behind.
func (f *fakePlugin) do(ctx context.Context, call, key string, leaves bool) error {
	f.mu.Lock()
	f.calls = append(f.calls, call)
	f.woken <- call
	hang := f.hangs[call]
	f.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return fmt.Errorf("cut off: %w", plugin.ErrUncertain)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if errs := f.fails[call]; len(errs) > 0 {
		f.fails[call] = errs[1:]
		return errs[0]
	}
	if leaves {
		f.stays[key] = true
	} else {
		delete(f.stays, key)
	}
	return nil
}

func (f *fakePlugin) Stage(ctx context.Context, r plugin.StageRequest) error {
	call := "stage " + r.Volume.PV.Name
	if r.Again {
		call += " again"
	}
	return f.do(ctx, call, r.Volume.PV.Name, true)
}

func (f *fakePlugin) Unstage(ctx context.Context, r plugin.UnstageRequest) error {
	pv := filepath.Base(r.GlobalPath)
	return f.do(ctx, "unstage "+pv, pv, false)
}

func (f *fakePlugin) Publish(ctx context.Context, r plugin.PublishRequest) (plugin.Published, error) {
	pod, pv := string(r.Volume.Pod.UID), r.Volume.PV.Name
	call := "publish " + pv + " in " + pod
	if r.Again {
		call += " again"
	}
	err := f.do(ctx, call, pod+"/"+pv, true)
	return plugin.Published{Path: filepath.Join(f.dir, "pods", pod, pv)}, err
}

func (f *fakePlugin) Unpublish(ctx context.Context, r plugin.UnpublishRequest) error {
	err := f.do(ctx, "unpublish "+r.SpecName+" in "+string(r.PodUID), string(r.PodUID)+"/"+r.SpecName, false)
	if err == nil {
		_ = os.RemoveAll(filepath.Join(f.dir, "pods", string(r.PodUID), "volumes", "kubernetes.io~csi", r.SpecName))
	}
	return err
}

func (f *fakePlugin) Expand(ctx context.Context, r plugin.ExpandRequest) error {
	return f.do(ctx, fmt.Sprintf("expand %s to %d", r.Volume.PV.Name, r.NewSize), "expanded", true)
}

func (f *fakePlugin) Reconstruct(pod types.UID, specName string, mode v1.PersistentVolumeMode) (plugin.Reconstructed, error) {
	if strings.HasPrefix(specName, "broken") {
		return plugin.Reconstructed{}, os.ErrNotExist
	}
	return plugin.Reconstructed{
		Name: fakeName(specName), SpecName: specName, Mode: mode, Attachable: f.attachable, Driver: "fake",
		GlobalPath: filepath.Join(f.dir, "global", specName),
	}, nil
}

func (f *fakePlugin) StagedVolumes() ([]plugin.Reconstructed, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []plugin.Reconstructed
	for key := range f.stays {
		if !strings.Contains(key, "/") && key != "expanded" {
			out = append(out, plugin.Reconstructed{
				Name: fakeName(key), SpecName: key, Attachable: f.attachable, Driver: "fake", GlobalPath: filepath.Join(f.dir, "global", key),
			})
		}
	}
	return out, nil
}

func (f *fakePlugin) Inspect(ctx context.Context, v *plugin.Volume) (plugin.Inspection, error) {
	err := f.do(ctx, "inspect "+v.PV.Name, "expanded", true)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen[v.PV.Name], err
}

func (f *fakePlugin) Keeps(_ types.UID, specName string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.keeps[specName]
}

func (f *fakePlugin) Attach(ctx context.Context, v *plugin.Volume, _ types.NodeName) (plugin.Attachment, error) {
	return plugin.Attachment{DevicePath: "/dev/" + v.PV.Name}, f.do(ctx, "attach "+v.PV.Name, "attached", true)
}

func (f *fakePlugin) Detach(ctx context.Context, a plugin.AttachedVolume, _ types.NodeName) (bool, error) {
	return true, f.do(ctx, "detach "+a.Volume.PV.Name, "attached", false)
}

func (f *fakePlugin) Attached(context.Context) ([]plugin.AttachedVolume, error) { return nil, nil }

func (f *fakePlugin) fail(call string, errs ...error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fails[call] = append(f.fails[call], errs...)
}

// hang makes a call wait until the returned function is called.
func (f *fakePlugin) hang(call string) (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := make(chan struct{})
	f.hangs[call] = c
	return sync.OnceFunc(func() { close(c) })
}

func (f *fakePlugin) called() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *fakePlugin) left() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for k := range f.stays {
		if k != "expanded" {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}
