package kill

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const ns = "default"

// The sizes of the claim that grows; XFS wants 300 MiB.
const (
	small = "320Mi"
	grown = "384Mi"
)

// wholeLife goes through everything that an instance does for volumes.
func (s *script) wholeLife() []step {
	return []step{
		{"the driver wants tokens", s.wantTokens},
		{"the manifests are applied", func() error { return s.apply(small, "32Mi") }},
		{"the pod is Ready", s.podReady},
		{"data is written and fsynced", s.write},
		{"the pod has what it asked for", s.mounted},
		{"the claim has grown", s.grow},
		{"the device's filesystem has grown", s.growLocal},
		{"the configuration has changed", s.changeConfig},
		{"the pod is deleted", func() error { return s.deletePod("app") }},
		{"a new pod is Ready", func() error {
			if err := s.apply(grown, "48Mi"); err != nil {
				return err
			}
			return s.podReady()
		}},
		{"the data is there", s.read},
		{"claims and pod are deleted", s.deleteAll},
		{"nothing is left", s.nothingLeft},
	}
}

// apply says the sizes of the two claims that grow: a claim cannot shrink.
func (s *script) apply(size, local string) error {
	return s.in.Apply(s.ctx, fmt.Sprintf(manifests, s.host, size, s.devices[0], s.devices[1], local))
}

func (s *script) wantTokens() error {
	_, err := s.client.StorageV1().CSIDrivers().Patch(s.ctx, "block.csi.berth.io", types.MergePatchType,
		[]byte(`{"spec":{"tokenRequests":[{"audience":"there"}]}}`), metav1.PatchOptions{})
	return err
}

func (s *script) pod() (*corev1.Pod, error) {
	return s.client.CoreV1().Pods(ns).Get(s.ctx, "app", metav1.GetOptions{})
}

func (s *script) podReady() error {
	p, err := s.pod()
	if err != nil {
		return err
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("pod is %s: %+v", p.Status.Phase, p.Status.Conditions)
}

// volume is a volume's directory as the kubelet's layout has it.
func (s *script) volume(plugin, name string) (string, error) {
	p, err := s.pod()
	if err != nil {
		return "", err
	}
	return filepath.Join(s.in.Dir, "pods", string(p.UID), "volumes", plugin, name), nil
}

// file is in the volume of the claim called data.
func (s *script) file() (string, error) {
	c, err := s.client.CoreV1().PersistentVolumeClaims(ns).Get(s.ctx, "data", metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	dir, err := s.volume("kubernetes.io~csi", c.Spec.VolumeName)
	return filepath.Join(dir, "mount", "precious"), err
}

func (s *script) write() error {
	path, err := s.file()
	if err != nil {
		return err
	}
	return writeSynced(path)
}

// mounted looks at what a repeated publish could have left out.
func (s *script) mounted() error {
	dir, err := s.volume("kubernetes.io~local-volume", "local-dir")
	if err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return err
	}
	if fs.Flags&unix.ST_RDONLY == 0 {
		return fmt.Errorf("%s is mounted writable", dir)
	}
	if dir, err = s.volume("kubernetes.io~empty-dir", "disk"); err != nil {
		return err
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if gid := fi.Sys().(*syscall.Stat_t).Gid; gid != 1000 {
		return fmt.Errorf("%s belongs to group %d", dir, gid)
	}
	// What a kubelet with containers left in the pod's directory goes with the volume.
	p, err := s.pod()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(s.in.Dir, "pods", string(p.UID), "volume-subpaths", "conf", "app", "0"), 0o750); err != nil {
		return err
	}
	_, err = s.in.Berth(s.ctx, "exec", "app", "--", "sh", "-c", "touch /part/x && test -f /data/part/x && test -b /dev/raw && test -s /token/token")
	return err
}

func (s *script) read() error {
	path, err := s.file()
	if err != nil {
		return err
	}
	return holds(path)
}

func (s *script) grow() error {
	claims := s.client.CoreV1().PersistentVolumeClaims(ns)
	c, err := claims.Patch(s.ctx, "data", types.MergePatchType,
		[]byte(`{"spec":{"resources":{"requests":{"storage":"`+grown+`"}}}}`), metav1.PatchOptions{})
	if err != nil {
		return err
	}
	if got := c.Status.Capacity[corev1.ResourceStorage]; got.Cmp(resource.MustParse(grown)) < 0 {
		return fmt.Errorf("the claim has %s", got.String())
	}
	return nil
}

// growLocal says, as an administrator would, that the device of a local volume has grown. No controller does, upstream
// neither: the size in the volume and the word in the claim's status are the administrator's to write.
func (s *script) growLocal() error {
	claims := s.client.CoreV1().PersistentVolumeClaims(ns)
	size := resource.MustParse("48Mi")
	c, err := claims.Get(s.ctx, "local-fs", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if got := c.Status.Capacity[corev1.ResourceStorage]; got.Cmp(size) >= 0 {
		return nil
	}
	if _, err := claims.Patch(s.ctx, "local-fs", types.MergePatchType,
		[]byte(`{"spec":{"resources":{"requests":{"storage":"48Mi"}}}}`), metav1.PatchOptions{}); err != nil {
		return err
	}
	if _, err := s.client.CoreV1().PersistentVolumes().Patch(s.ctx, "local-fs", types.MergePatchType,
		[]byte(`{"spec":{"capacity":{"storage":"48Mi"}}}`), metav1.PatchOptions{}); err != nil {
		return err
	}
	if len(c.Status.Conditions) == 0 {
		if _, err := claims.Patch(s.ctx, "local-fs", types.MergePatchType,
			[]byte(`{"status":{"conditions":[{"type":"FileSystemResizePending","status":"True"}]}}`), metav1.PatchOptions{}, "status"); err != nil {
			return err
		}
	}
	return fmt.Errorf("the claim has %v, %+v", c.Status.Capacity, c.Status.Conditions)
}

func (s *script) changeConfig() error {
	_, err := s.client.CoreV1().ConfigMaps(ns).Patch(s.ctx, "conf", types.MergePatchType, []byte(`{"data":{"key":"changed","extra":null}}`), metav1.PatchOptions{})
	if err != nil {
		return err
	}
	dir, err := s.volume("kubernetes.io~configmap", "conf")
	if err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(dir, "key"))
	if err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(dir, "extra")); string(b) != "changed" || err == nil {
		return fmt.Errorf("the pod still sees %q, extra: %v", b, err)
	}
	return nil
}

func (s *script) deletePod(name string) error {
	err := s.client.CoreV1().Pods(ns).Delete(s.ctx, name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if _, err := s.client.CoreV1().Pods(ns).Get(s.ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return fmt.Errorf("the pod is still there (%w)", errors.Join(err))
	}
	return nil
}

// deleteAll deletes the claims while the pod uses them, then the pod, then volumes that nobody else deletes.
func (s *script) deleteAll() error {
	claims, volumes := s.client.CoreV1().PersistentVolumeClaims(ns), s.client.CoreV1().PersistentVolumes()
	list, err := claims.List(s.ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, c := range list.Items {
		if err := claims.Delete(s.ctx, c.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	// Without a grace period the pod is gone from the API before its volumes are unmounted.
	now := int64(0)
	for _, pod := range []string{"app", "waits"} {
		err := s.client.CoreV1().Pods(ns).Delete(s.ctx, pod, metav1.DeleteOptions{GracePeriodSeconds: &now})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	if list, err = claims.List(s.ctx, metav1.ListOptions{}); err != nil {
		return err
	}
	for _, c := range list.Items {
		return fmt.Errorf("claim %s is left: %v", c.Name, c.Finalizers)
	}
	for _, name := range []string{"static", "local-dir", "local-fs", "local-raw", "migrated", "stray"} {
		if err := volumes.Delete(s.ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// nothingLeft looks at the API, the kernel and the pool, and asks `berth orphans`.
func (s *script) nothingLeft() error {
	volumes, err := s.client.CoreV1().PersistentVolumes().List(s.ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, v := range volumes.Items {
		return fmt.Errorf("volume %s is left (%s)", v.Name, v.Status.Phase)
	}
	attachments, err := s.client.StorageV1().VolumeAttachments().List(s.ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, a := range attachments.Items {
		return fmt.Errorf("attachment %s is left", a.Name)
	}
	w, err := s.in.World()
	if err != nil {
		return err
	}
	if l := append(w.VolumeLoops(), w.PodMounts()...); len(l) > 0 {
		return fmt.Errorf("left in the kernel: %q", l)
	}
	for _, pattern := range []string{"pools/default/volumes/*", "pools/default/snapshots/*", "pools/default/groups/*", "pods/*", "plugins/kubernetes.io/*/*/*"} {
		l, _ := filepath.Glob(filepath.Join(s.in.Dir, pattern))
		for _, path := range l {
			// The directories that all raw volumes share.
			if strings.HasSuffix(path, "/csi/volumeDevices/publish") || strings.HasSuffix(path, "/csi/volumeDevices/staging") {
				if entries, err := os.ReadDir(path); err == nil && len(entries) == 0 {
					continue
				}
			}
			if strings.Contains(path, "/plugins/kubernetes.io/flexvolume/") {
				if path = flexLeft(path); path == "" {
					continue
				}
			}
			return fmt.Errorf("left on the disk: %s", path)
		}
	}
	for _, dev := range s.devices {
		if out, _ := exec.Command("findmnt", "--source", dev).Output(); len(out) > 0 {
			return fmt.Errorf("a local volume is still mounted: %s", out)
		}
	}
	out, err := s.in.Berth(s.ctx, "orphans")
	if err != nil {
		return err
	}
	if !strings.Contains(out, "none") {
		return fmt.Errorf("berth orphans: %s", out)
	}
	return nil
}
