//go:build component

package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/plugin/csi"
)

// tmpfsDriver is a CSI node service with real mounts: it stages a tmpfs and publishes bind mounts of it.
type tmpfsDriver struct {
	csipb.UnimplementedNodeServer
}

func (d *tmpfsDriver) NodeGetCapabilities(context.Context, *csipb.NodeGetCapabilitiesRequest) (*csipb.NodeGetCapabilitiesResponse, error) {
	return &csipb.NodeGetCapabilitiesResponse{Capabilities: []*csipb.NodeServiceCapability{{Type: &csipb.NodeServiceCapability_Rpc{
		Rpc: &csipb.NodeServiceCapability_RPC{Type: csipb.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME},
	}}}}, nil
}

func mountedAt(dir string) bool {
	points, err := mountsBelow(dir)
	return err == nil && slices.Contains(points, dir)
}

func (d *tmpfsDriver) NodeStageVolume(_ context.Context, r *csipb.NodeStageVolumeRequest) (*csipb.NodeStageVolumeResponse, error) {
	if mountedAt(r.StagingTargetPath) {
		return &csipb.NodeStageVolumeResponse{}, nil
	}
	return &csipb.NodeStageVolumeResponse{}, unix.Mount("tmpfs", r.StagingTargetPath, "tmpfs", 0, "size=1m")
}

func (d *tmpfsDriver) NodeUnstageVolume(_ context.Context, r *csipb.NodeUnstageVolumeRequest) (*csipb.NodeUnstageVolumeResponse, error) {
	if !mountedAt(r.StagingTargetPath) {
		return &csipb.NodeUnstageVolumeResponse{}, nil
	}
	return &csipb.NodeUnstageVolumeResponse{}, unix.Unmount(r.StagingTargetPath, 0)
}

func (d *tmpfsDriver) NodePublishVolume(_ context.Context, r *csipb.NodePublishVolumeRequest) (*csipb.NodePublishVolumeResponse, error) {
	if mountedAt(r.TargetPath) {
		return &csipb.NodePublishVolumeResponse{}, nil
	}
	if err := os.MkdirAll(r.TargetPath, 0o750); err != nil {
		return nil, err
	}
	return &csipb.NodePublishVolumeResponse{}, unix.Mount(r.StagingTargetPath, r.TargetPath, "", unix.MS_BIND, "")
}

func (d *tmpfsDriver) NodeUnpublishVolume(_ context.Context, r *csipb.NodeUnpublishVolumeRequest) (*csipb.NodeUnpublishVolumeResponse, error) {
	if mountedAt(r.TargetPath) {
		if err := unix.Unmount(r.TargetPath, 0); err != nil {
			return nil, err
		}
	}
	return &csipb.NodeUnpublishVolumeResponse{}, os.RemoveAll(r.TargetPath)
}

// componentRig is a rig whose plugin is the real CSI plugin with the tmpfs driver.
func componentRig(t *testing.T) (r *rig, drivers *csi.Drivers, withCSI option) {
	t.Helper()
	dir, err := os.MkdirTemp("", "mount")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmountBelow(dir); err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	socket := filepath.Join(dir, "csi.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	csipb.RegisterNodeServer(server, &tmpfsDriver{})
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)

	log := slog.New(slog.DiscardHandler)
	drivers = csi.NewDrivers(csi.DriversOptions{Log: log, Journal: filepath.Join(dir, "journal/csi-drivers.json")})
	t.Cleanup(drivers.Close)
	if err := drivers.Register("fake", socket); err != nil {
		t.Fatal(err)
	}
	withCSI = func(r *rig, o *Options) {
		p, err := csi.New(csi.Options{Client: o.Client, Informers: o.Informers, Drivers: drivers, DataDir: dir, Node: testNode, Log: log})
		if err != nil {
			t.Fatal(err)
		}
		o.Plugins, o.DataDir, r.plugin.dir = plugin.NewRegistry(p), dir, dir
	}
	no := false
	object := &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "fake"}, Spec: storagev1.CSIDriverSpec{
		AttachRequired: &no, VolumeLifecycleModes: []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent},
	}}
	return newRig(t, append(volumes(2), object), withCSI), drivers, withCSI
}

func offlinePlugins(t *testing.T, drivers *csi.Drivers, dir string) *plugin.Registry {
	t.Helper()
	p, err := csi.New(csi.Options{Drivers: drivers, DataDir: dir, Node: testNode, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return plugin.NewRegistry(p)
}

// Real mounts, a subpath on top, a restart, and everything taken away again; Orphans sees what belongs to nobody on the way.
func TestMountsComeAndGo(t *testing.T) {
	r, drivers, withCSI := componentRig(t)
	dir := r.plugin.dir
	r.manager.PodsComplete()
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.untilMounted("pod-1")
	path := r.manager.Status("pod-1").Volumes[0].Path
	if err := os.WriteFile(filepath.Join(path, "data"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	subpath := filepath.Join(dir, "pods/pod-1/volume-subpaths/pv-1/c/0")
	if err := os.MkdirAll(subpath, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(path, subpath, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	expectOrphans := func(want int, known ...types.UID) {
		t.Helper()
		got, err := Orphans(dir, offlinePlugins(t, drivers, dir), known)
		if err != nil || len(got) != want {
			t.Errorf("orphans: %d, want %d: %+v, %v", len(got), want, got, err)
		}
	}
	expectOrphans(0, "pod-1")
	expectOrphans(4) // the pod's directory, the staged volume, two mounts below the pod

	// The driver registers after us, as it does when everything starts anew: its registration wakes the volume, not a timer.
	r.stop()
	drivers.Unregister("fake")
	r.start(withCSI)
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.manager.PodsComplete()
	r.until("the driver is missed", func() bool {
		s := r.manager.Status("pod-1")
		return len(s.Volumes) == 1 && errors.Is(s.Volumes[0].Err, plugin.ErrDriverMissing)
	})
	if err := drivers.Register("fake", filepath.Join(dir, "csi.sock")); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	r.untilMounted("pod-1")
	if took := time.Since(begun); took > firstBackoff/2 {
		t.Errorf("mounted %s after the driver's registration", took)
	}
	if data, err := os.ReadFile(filepath.Join(path, "data")); err != nil || string(data) != "kept" {
		t.Errorf("after the restart: %q, %v", data, err)
	}
	r.manager.ReleasePod("pod-1")
	r.untilUnmounted("pod-1")
	r.until("unstaged", func() bool {
		left, err := Orphans(dir, offlinePlugins(t, drivers, dir), nil)
		return err == nil && len(left) == 0
	})
	if left := entries(filepath.Join(dir, "pods")); len(left) != 0 {
		t.Errorf("pods left: %q", left)
	}
}

// `berth down` with nothing running: through the driver while it answers, and by plain unmounts when it does not.
func TestTeardownOffline(t *testing.T) {
	for name, driverAnswers := range map[string]bool{"driver answers": true, "driver is gone": false} {
		t.Run(name, func(t *testing.T) {
			r, drivers, _ := componentRig(t)
			dir := r.plugin.dir
			r.manager.PodsComplete()
			r.manager.SetPod(pod("pod-1", "claim-1", "claim-2"))
			r.untilMounted("pod-1")
			r.until("the journal", func() bool {
				_, volumes, err := ReadJournal(dir)
				return err == nil && len(volumes) == 2 && len(volumes[0].Pods) == 1 && volumes[0].Pods[0].Path != ""
			})
			r.stop()
			offline := csi.NewDrivers(csi.DriversOptions{Journal: filepath.Join(dir, "journal/csi-drivers.json")})
			defer offline.Close()
			if driverAnswers {
				if err := offline.RegisterKnown(); err != nil {
					t.Fatal(err)
				}
			}
			drivers.Unregister("fake")
			plugins := offlinePlugins(t, offline, dir)
			if err := TeardownOffline(t.Context(), dir, plugins, slog.New(slog.DiscardHandler)); err != nil {
				t.Error(err)
			}
			if points, err := mountsBelow(dir); err != nil || len(points) != 0 {
				t.Errorf("mounts left: %q, %v", points, err)
			}
			found, err := plugins.All()[0].(plugin.StagedLister).StagedVolumes()
			if err != nil || (len(found) == 0) != driverAnswers {
				t.Errorf("volumes for the next start to undo: %v, %v", found, err)
			}
			if err := TeardownOffline(t.Context(), dir, plugins, slog.New(slog.DiscardHandler)); err != nil {
				t.Errorf("again: %v", err)
			}
		})
	}
}

// A process in a volume is named before anything is taken away, and one elsewhere is not.
func TestBusyNamesTheProcess(t *testing.T) {
	r, _, _ := componentRig(t)
	r.manager.PodsComplete()
	r.manager.SetPod(pod("pod-1", "claim-1", "claim-2"))
	r.untilMounted("pod-1")
	if err := r.manager.Busy(); err != nil {
		t.Errorf("used by nobody: %v", err)
	}
	user := exec.Command("sleep", "600")
	user.Dir = r.manager.Status("pod-1").Volumes[1].Path
	if err := user.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = user.Process.Kill(); _ = user.Wait() }()
	err := r.manager.Busy()
	if want := fmt.Sprintf("volume pv-2 of pod default/pod-1 is in use by process %d (", user.Process.Pid); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}

// A pod names a driver inline that serves PersistentVolumes only: its event says so, and once the CSIDriver object lists the
// mode the driver is asked without further ado.
func TestInlineVolumeOfADriverThatServesNone(t *testing.T) {
	r, _, _ := componentRig(t)
	r.manager.PodsComplete()
	p := pod("pod-1")
	p.Spec.Volumes = []v1.Volume{{Name: "scratch", VolumeSource: v1.VolumeSource{CSI: &v1.CSIVolumeSource{Driver: "fake"}}}}
	p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "scratch", MountPath: "/scratch"}}
	r.manager.SetPod(p)
	select {
	case e := <-r.events.Events:
		if !strings.Contains(e, "Warning FailedMount") || !strings.Contains(e, "driver fake does not serve Ephemeral volumes") {
			t.Errorf("event %q", e)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("no event")
	}
	drivers := r.client.StorageV1().CSIDrivers()
	object, err := drivers.Get(t.Context(), "fake", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	object.Spec.VolumeLifecycleModes = append(object.Spec.VolumeLifecycleModes, storagev1.VolumeLifecycleEphemeral)
	if err := drivers.Delete(t.Context(), "fake", metav1.DeleteOptions{}); err != nil { // the mode can't be changed
		t.Fatal(err)
	}
	if _, err := drivers.Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.until("the driver to be asked", func() bool {
		s := r.manager.Status("pod-1")
		return len(s.Volumes) == 1 && s.Volumes[0].Err != nil && !strings.Contains(s.Volumes[0].Err.Error(), "Ephemeral")
	})
}

// A pod's directory with a mount below, or a file where a volume was, is never removed.
func TestPodDirIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pods", "pod-1")
	volume := filepath.Join(dir, "volumes/kubernetes.io~csi/pv-1/mount")
	if err := os.MkdirAll(volume, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", volume, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(volume, 0) })
	if err := os.WriteFile(filepath.Join(volume, "data"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := removePodDir(dir); err == nil || !strings.Contains(err.Error(), "still mounted") {
		t.Errorf("with a mount: %v", err)
	}
	if _, err := os.Stat(filepath.Join(volume, "data")); err != nil {
		t.Error(err)
	}
	if err := unix.Unmount(volume, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(volume, "data"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := removePodDir(dir); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("with a file: %v", err)
	}
	if err := os.Remove(filepath.Join(volume, "data")); err != nil {
		t.Fatal(err)
	}
	if err := removePodDir(dir); err != nil {
		t.Error(err)
	}
}
