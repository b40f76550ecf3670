package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const inlinePod = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  securityContext: {fsGroup: 4242}
  containers: [{name: c, image: busybox, volumeMounts: [{name: scratch, mountPath: /scratch}]}]
  volumes: [{name: scratch, csi: {driver: block.csi.berth.io, volumeAttributes: {%s}}}]
---`

// An inline volume is the pod's group's, survives kill -9 with its data, belongs to its pod for `berth orphans`, and is gone when
// the pod was deleted while nothing ran.
func TestInlineVolume(t *testing.T) {
	in := own(t)
	s := tellOn(t, in)
	s.apply(fmt.Sprintf(inlinePod, "app", "size: 64Mi"))
	dir := paths(s, s.ready("app"))["scratch"]
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if gid := info.Sys().(*syscall.Stat_t).Gid; gid != 4242 || info.Mode()&os.ModeSetgid == 0 {
		t.Errorf("group %d, mode %v", gid, info.Mode())
	}
	if why := s.berth("why", "-n", s.ns, "pod/app"); !strings.Contains(why, "volume scratch  csi") || !strings.Contains(why, "ok  Published") || !strings.Contains(why, dir) {
		t.Errorf("berth why tells of the inline volume:\n%s", why)
	}
	file := filepath.Join(dir, "f")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("kept"); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if out := s.berth("orphans"); strings.Contains(out, "no PersistentVolume") {
		t.Errorf("orphans: %s", out)
	}
	if err := in.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := in.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.ready("app")
	if b, err := os.ReadFile(file); err != nil || string(b) != "kept" {
		t.Errorf("after kill -9: %q, %v", b, err)
	}
	s.kubectl("delete", "pod", "app")
	s.podGone("app")
	w, err := in.World()
	if err != nil {
		t.Fatal(err)
	}
	if left := append(w.VolumeLoops(), w.PodMounts()...); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if out := s.berth("orphans"); strings.Contains(out, "volume") {
		t.Errorf("orphans after the pod: %s", out)
	}
}

// `berth down` takes an inline volume away when nothing runs any more; its pod has a new one after the next start.
func TestInlineVolumeAfterDown(t *testing.T) {
	in := own(t)
	s := tellOn(t, in)
	s.apply(fmt.Sprintf(inlinePod, "app", "size: 64Mi"))
	s.ready("app")
	if err := in.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := in.Down(context.Background()); err != nil {
		t.Fatal(err)
	}
	w, err := in.World()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Empty(); err != nil {
		t.Error(err)
	}
	if err := in.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	// The pod's status is that of before until the node has looked.
	dir := paths(s, s.pod("app"))["scratch"]
	s.until("mounted again", func() (bool, string) {
		mounted, err := mountinfo.Mounted(dir)
		return mounted, fmt.Sprint(err)
	})
	s.ready("app")
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o600); err != nil {
		t.Error(err)
	}
	s.kubectl("delete", "pod", "app")
	s.podGone("app")
	if out := s.berth("orphans"); strings.Contains(out, "volume") {
		t.Errorf("orphans after the pod: %s", out)
	}
}

// What an inline volume asks for and cannot have is said at the pod, and a corrected pod works.
func TestBadInlineVolume(t *testing.T) {
	s := tell(t)
	for name, c := range map[string]struct{ attributes, text string }{
		"size":     {"size: banana", "is no size"},
		"replicas": {`replicas: "3"`, "unknown attribute"},
		"large":    {"size: 100Ti", "larger than the pool"},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.as(t)
			s.apply(fmt.Sprintf(inlinePod, name, c.attributes))
			s.event(name, "FailedMount", c.text)
			s.kubectl("delete", "pod", name)
			s.podGone(name)
		})
	}
	s.apply(fmt.Sprintf(inlinePod, "good", "size: 64Mi"))
	s.ready("good")
}

// A volume that a PersistentVolume hands out for reading alone is mounted so, however the pod asks for it.
func TestReadOnlyPersistentVolume(t *testing.T) {
	s := tell(t)
	class := s.ns + "-retain"
	s.apply(fmt.Sprintf(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %s}
provisioner: block.csi.berth.io
reclaimPolicy: Retain
---`, class) + claimYAML("first", "64Mi", "storageClassName: "+class) + podYAML("first", "first"))
	t.Cleanup(func() { _, _ = s.in.Kubectl(s.ctx, "delete", "sc", class) })
	dir := paths(s, s.ready("first"))["data"]
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	pv, err := s.client.CoreV1().PersistentVolumes().Get(s.ctx, s.claim("first").Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.kubectl("delete", "pod,pvc", "first")
	s.podGone("first")
	s.claimGone("first")
	s.kubectl("delete", "pv", pv.Name)

	name := s.ns + "-read-only"
	again := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: pv.Spec}
	again.Spec.ClaimRef = &corev1.ObjectReference{Namespace: s.ns, Name: "second"}
	again.Spec.StorageClassName, again.Spec.PersistentVolumeReclaimPolicy = "", corev1.PersistentVolumeReclaimDelete
	again.Spec.CSI.ReadOnly = true
	again.Annotations = map[string]string{"pv.kubernetes.io/provisioned-by": "block.csi.berth.io"}
	if _, err := s.client.CoreV1().PersistentVolumes().Create(s.ctx, again, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.apply(claimYAML("second", "64Mi", `storageClassName: ""`, "volumeName: "+name) + podYAML("second", "second"))
	dir = paths(s, s.ready("second"))["data"]
	if b, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(b) != "kept" {
		t.Errorf("read: %q, %v", b, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "g"), nil, 0o644); err == nil {
		t.Error("written to a volume that is for reading")
	}
	s.kubectl("delete", "pod,pvc", "second")
	s.podGone("second")
	s.gone("the PersistentVolume", func() error {
		_, err := s.client.CoreV1().PersistentVolumes().Get(s.ctx, name, metav1.GetOptions{})
		if err == nil || apierrors.IsNotFound(err) {
			return err
		}
		return nil
	})
}
