package kill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"berth.io/berth/test/instance"
)

// script is a whole life of volumes. Each step states what must come to be and is repeated until it is; when berth up
// dies in between, it is started again and the step goes on.
type script struct {
	in     *instance.Instance
	ctx    context.Context
	client kubernetes.Interface
	log    func(format string, args ...any)
	deaths int
}

const ns = "default"

// The sizes of the claim that grows; XFS wants 300 MiB.
const (
	small = "320Mi"
	grown = "384Mi"
)

// manifests: a filesystem and a raw block volume, a static one, an ephemeral one, and the volumes of every pod.
const manifests = `
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {key: value}
---
# XFS, which any root may grow while it is mounted; ext4 is what the ephemeral volume has.
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: grows}
provisioner: block.csi.berth.io
parameters: {csi.storage.k8s.io/fstype: xfs}
allowVolumeExpansion: true
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: static}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
  hostPath: {path: %[1]s}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: static}
spec: {accessModes: [ReadWriteOnce], storageClassName: "", resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], storageClassName: grows, resources: {requests: {storage: %[2]s}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: raw}
spec: {accessModes: [ReadWriteOnce], volumeMode: Block, resources: {requests: {storage: 16Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: app
    image: busybox
    volumeDevices: [{name: raw, devicePath: /dev/raw}]
    volumeMounts:
    - {name: data, mountPath: /data}
    - {name: static, mountPath: /static}
    - {name: scratch, mountPath: /scratch}
    - {name: conf, mountPath: /conf}
    - {name: mem, mountPath: /mem}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data}}
  - {name: raw, persistentVolumeClaim: {claimName: raw}}
  - {name: static, persistentVolumeClaim: {claimName: static}}
  - name: scratch
    ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 16Mi}}}}}
  - {name: conf, configMap: {name: conf}}
  - {name: mem, emptyDir: {medium: Memory}}
`

// live goes through the life, then looks at the world while the instance still runs.
func (s *script) live() error {
	host := filepath.Join(s.in.Dir, "static")
	if err := os.MkdirAll(host, 0o755); err != nil {
		return err
	}
	steps := []struct {
		name string
		do   func() error // nil: the state is reached
	}{
		{"the manifests are applied", func() error { return s.in.Apply(s.ctx, fmt.Sprintf(manifests, host, small)) }},
		{"the pod is Ready", s.podReady},
		{"data is written and fsynced", s.write},
		{"the claim has grown", s.grow},
		{"the pod is deleted", s.deletePod},
		{"a new pod is Ready", func() error {
			if err := s.in.Apply(s.ctx, fmt.Sprintf(manifests, host, grown)); err != nil {
				return err
			}
			return s.podReady()
		}},
		{"the data is there", s.read},
		{"the pod is deleted again", s.deletePod},
		{"claims and volumes are deleted", s.deleteClaims},
		{"nothing is left", s.nothingLeft},
	}
	for _, step := range steps {
		if err := s.until(step.name, step.do); err != nil {
			return err
		}
	}
	return nil
}

// end is `berth down`, which may die too, and once more when nothing runs.
func (s *script) end() error {
	err := s.in.Down(context.WithoutCancel(s.ctx))
	if err != nil && !s.in.Running() {
		s.deaths++
		err = nil
	}
	return errors.Join(err, s.in.Down(context.WithoutCancel(s.ctx)))
}

// until repeats a step for a minute; a death of berth up in between is followed by a new start.
func (s *script) until(name string, do func() error) error {
	began := time.Now()
	defer func() { s.log("%6.1fs  %s", time.Since(began).Seconds(), name) }()
	deadline := time.Now().Add(60 * time.Second)
	for {
		err := s.alive()
		if err == nil {
			err = do()
		}
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) || s.ctx.Err() != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		time.Sleep(30 * time.Millisecond)
	}
}

// alive starts berth up when it is not running: with the kill armed the first time, without it after a death.
func (s *script) alive() error {
	if s.in.Running() {
		return nil
	}
	if s.in.Ended() != nil {
		if !strings.Contains(s.in.Output(), "boundary: killed at") {
			return fmt.Errorf("berth up ended by itself:\n%s", s.in.Output())
		}
		s.deaths++
		s.in.Env = nil
	}
	if err := s.in.Start(s.ctx); err != nil {
		return err
	}
	var err error
	s.client, err = s.in.Client()
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

// file is in the volume's directory as the kubelet's layout has it.
func (s *script) file() (string, error) {
	p, err := s.pod()
	if err != nil {
		return "", err
	}
	c, err := s.client.CoreV1().PersistentVolumeClaims(ns).Get(s.ctx, "data", metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	return filepath.Join(s.in.Dir, "pods", string(p.UID), "volumes", "kubernetes.io~csi", c.Spec.VolumeName, "mount", "precious"), nil
}

func (s *script) write() error {
	path, err := s.file()
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.WriteString("fsynced")
	return errors.Join(err, f.Sync(), f.Close())
}

func (s *script) read() error {
	path, err := s.file()
	if err != nil {
		return err
	}
	b, err := os.ReadFile(path)
	if err == nil && string(b) != "fsynced" {
		err = fmt.Errorf("the file holds %q", b)
	}
	return err
}

func (s *script) grow() error {
	if _, err := s.in.Kubectl(s.ctx, "patch", "pvc", "data", "-p", `{"spec":{"resources":{"requests":{"storage":"`+grown+`"}}}}`); err != nil {
		return err
	}
	c, err := s.client.CoreV1().PersistentVolumeClaims(ns).Get(s.ctx, "data", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if got := c.Status.Capacity[corev1.ResourceStorage]; got.Cmp(resource.MustParse(grown)) < 0 {
		return fmt.Errorf("the claim has %s", got.String())
	}
	return nil
}

func (s *script) deletePod() error {
	err := s.client.CoreV1().Pods(ns).Delete(s.ctx, "app", metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if _, err := s.pod(); !apierrors.IsNotFound(err) {
		return fmt.Errorf("the pod is still there (%w)", errors.Join(err))
	}
	return nil
}

func (s *script) deleteClaims() error {
	for _, name := range []string{"data", "raw", "static"} {
		err := s.client.CoreV1().PersistentVolumeClaims(ns).Delete(s.ctx, name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	claims, err := s.client.CoreV1().PersistentVolumeClaims(ns).List(s.ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	if n := len(claims.Items); n > 0 {
		return fmt.Errorf("%d claims are left", n)
	}
	err = s.client.CoreV1().PersistentVolumes().Delete(s.ctx, "static", metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
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
	for _, pattern := range []string{"pools/default/volumes/*", "pods/*", "plugins/kubernetes.io/csi/*/*",
		"plugins/kubernetes.io/csi/volumeDevices/*/*"} {
		l, _ := filepath.Glob(filepath.Join(s.in.Dir, pattern))
		l = slices.DeleteFunc(l, func(p string) bool { // the directories that all raw volumes share
			return strings.HasSuffix(p, "/volumeDevices/publish") || strings.HasSuffix(p, "/volumeDevices/staging")
		})
		if len(l) > 0 {
			return fmt.Errorf("left on the disk: %q", l)
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
