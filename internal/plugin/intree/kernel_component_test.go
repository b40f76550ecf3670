//go:build component

package intree

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/plugin"
)

// realWorld is a world with the kernel's mounts; they are gone when the test ends.
func realWorld(t *testing.T) *world {
	w := newWorld(t, configMap("kube-root-ca.crt", map[string]string{"ca.crt": "CA"}))
	w.disk = kernel{}
	t.Cleanup(func() {
		out, _ := exec.Command("findmnt", "-rno", "TARGET").Output()
		for _, line := range strings.Split(string(out), "\n") {
			if strings.HasPrefix(line, w.dir) {
				t.Errorf("%s is still mounted", line)
				_ = unix.Unmount(line, unix.MNT_DETACH)
			}
		}
	})
	return w
}

// The volume of every pod, on a real tmpfs, owned by the pod's group; then refreshed and taken away.
func TestTokenVolumeOnTmpfs(t *testing.T) {
	w := realWorld(t)
	p := pod(tokenVolume())
	m, v := w.mounter(p, 0)
	group := int64(4242)
	out, err := m.Publish(t.Context(), plugin.PublishRequest{Volume: v, FSGroup: &group})
	if err != nil {
		t.Fatal(err)
	}
	mounted, medium, err := kernel{}.Mounted(out.Path)
	if !mounted || medium != onMemory || err != nil {
		t.Errorf("mounted %v on %q, %v", mounted, medium, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(out.Path, "token"), &st); err != nil || st.Gid != 4242 || st.Mode&0o777 != 0o640 {
		t.Errorf("token: group %d mode %o, %v", st.Gid, st.Mode, err)
	}
	if err := unix.Stat(out.Path, &st); err != nil || st.Mode&unix.S_ISGID == 0 {
		t.Errorf("root: mode %o, %v", st.Mode, err)
	}
	if _, err := m.Publish(t.Context(), plugin.PublishRequest{Volume: v, FSGroup: &group, Again: true}); err != nil {
		t.Error(err)
	}
	if err := w.unpublish(p, 0); err != nil {
		t.Error(err)
	}
	if exists(out.Path) {
		t.Error("the directory is still there")
	}
}

func TestMemoryLimit(t *testing.T) {
	w := realWorld(t)
	limit := resource.MustParse("1Mi")
	p := pod(volumeOf(v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory, SizeLimit: &limit}}))
	path, err := w.publish(p, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "x"), make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("2 MiB into 1 MiB: %v", err)
	}
	if err := w.unpublish(p, 0); err != nil {
		t.Error(err)
	}
}

// What the pod changed in its emptyDir survives a publish after a restart; somebody else's mount in it survives the unpublish.
func TestEmptyDirIsThePods(t *testing.T) {
	w := realWorld(t)
	p := pod(volumeOf(v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}))
	path, err := w.publish(p, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := w.publish(p, 0); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v", info.Mode())
	}
	strange, data := filepath.Join(path, "strange"), t.TempDir()
	if err := errors.Join(os.Mkdir(strange, 0o755), os.WriteFile(filepath.Join(data, "keep"), nil, 0o600), unix.Mount(data, strange, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	if err := w.unpublish(p, 0); err == nil {
		t.Error("unpublished through somebody's mount")
	}
	if err := unix.Unmount(strange, 0); err != nil {
		t.Fatal(err)
	}
	if err := w.unpublish(p, 0); err != nil {
		t.Error(err)
	}
	if !exists(filepath.Join(data, "keep")) {
		t.Error("a file behind a mount was removed")
	}
}

func localPV(path string, mode v1.PersistentVolumeMode) *v1.PersistentVolume {
	return &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: v1.PersistentVolumeSpec{
		VolumeMode: &mode, PersistentVolumeSource: v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: path}}}}
}

func loop(t *testing.T, size int64) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", image).Output()
	if err != nil {
		t.Fatalf("no loop devices: %v", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", device).Run() })
	return device
}

func TestLocalDirectory(t *testing.T) {
	w := realWorld(t)
	data := t.TempDir()
	l := &local{Volumes: w.Volumes}
	for _, ro := range []bool{false, true} {
		v := &plugin.Volume{Name: "vol", Pod: pod(), PV: localPV(data, v1.PersistentVolumeFilesystem), ReadOnly: ro}
		if err := l.Stage(t.Context(), plugin.StageRequest{Volume: v}); err != nil {
			t.Fatal(err)
		}
		out, err := l.Publish(t.Context(), plugin.PublishRequest{Volume: v})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(out.Path, "f"), nil, 0o600); (err != nil) != ro {
			t.Errorf("read-only %v: write %v", ro, err)
		}
		found, err := l.Reconstruct("uid", "pv", v1.PersistentVolumeFilesystem)
		if err != nil || found.Path != out.Path || found.Name != "kubernetes.io/local-volume/pv" {
			t.Errorf("reconstructed %+v, %v", found, err)
		}
		for range 2 {
			if err := l.Unpublish(t.Context(), plugin.UnpublishRequest{PodUID: "uid", SpecName: "pv", Mode: v1.PersistentVolumeFilesystem}); err != nil {
				t.Error(err)
			}
			if err := l.Unstage(t.Context(), plugin.UnstageRequest{Name: found.Name}); err != nil {
				t.Error(err)
			}
		}
		if !exists(filepath.Join(data, "f")) || exists(out.Path) {
			t.Error("the volume's data or the mount point is wrong after unpublish")
		}
	}
}

// An empty device gets a filesystem, one with a filesystem is mounted, one with anything else is refused and keeps its data.
func TestLocalDevice(t *testing.T) {
	w := realWorld(t)
	l := &local{Volumes: w.Volumes}
	device := loop(t, 64<<20)
	v := &plugin.Volume{Name: "vol", Pod: pod(), PV: localPV(device, v1.PersistentVolumeFilesystem)}
	for i := range 2 {
		if err := l.Stage(t.Context(), plugin.StageRequest{Volume: v}); err != nil {
			t.Fatal(err)
		}
		out, err := l.Publish(t.Context(), plugin.PublishRequest{Volume: v})
		if err != nil {
			t.Fatal(err)
		}
		f := filepath.Join(out.Path, "f")
		if exists(f) != (i == 1) {
			t.Errorf("round %d: the file is there: %v", i, exists(f))
		}
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Error(err)
		}
		if err := l.Unpublish(t.Context(), plugin.UnpublishRequest{PodUID: "uid", SpecName: "pv", Mode: v1.PersistentVolumeFilesystem}); err != nil {
			t.Error(err)
		}
		if err := l.Unstage(t.Context(), plugin.UnstageRequest{Name: "kubernetes.io/local-volume/pv"}); err != nil {
			t.Error(err)
		}
	}
	other := loop(t, 64<<20)
	text := []byte("somebody's data, in no format that blkid knows")
	if err := os.WriteFile(other, text, 0o600); err != nil {
		t.Fatal(err)
	}
	v.PV = localPV(other, v1.PersistentVolumeFilesystem)
	if err := l.Stage(t.Context(), plugin.StageRequest{Volume: v}); err == nil || !strings.Contains(err.Error(), "holds data") {
		t.Errorf("stage of a device with data: %v", err)
	}
	got := make([]byte, len(text))
	f, err := os.Open(other)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Read(got); err != nil || string(got) != string(text) {
		t.Errorf("the data is now %q, %v", got, err)
	}
	v.PV = localPV(other, v1.PersistentVolumeBlock)
	out, err := l.Publish(t.Context(), plugin.PublishRequest{Volume: v})
	if target, _ := os.Readlink(out.Path); err != nil || target != other {
		t.Errorf("raw device at %s -> %s, %v", out.Path, target, err)
	}
	if err := l.Unpublish(t.Context(), plugin.UnpublishRequest{PodUID: "uid", SpecName: "pv", Mode: v1.PersistentVolumeBlock}); err != nil || exists(out.Path) {
		t.Errorf("unpublish of the raw device: %v", err)
	}
}
