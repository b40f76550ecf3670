package kill

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/test/flexdriver"
)

// Volumes of every way that a FlexVolume driver can have: a device that the host formats, binds and grows; a driver that mounts
// for the node; two that mount for a pod.
const flexManifests = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: flex}
provisioner: kubernetes.io/no-provisioner
allowVolumeExpansion: true
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: flex-disk}
spec:
  capacity: {storage: 320Mi}
  accessModes: [ReadWriteOnce]
  storageClassName: flex
  claimRef: {namespace: default, name: data}
  flexVolume: {driver: kill/disk, fsType: xfs}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], storageClassName: flex, resources: {requests: {storage: 320Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  securityContext: {fsGroup: 1000}
  containers:
  - name: app
    image: busybox
    volumeMounts: [{name: data, mountPath: /data}, {name: att, mountPath: /att}, {name: dummy, mountPath: /dummy}, {name: share, mountPath: /share}]
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data}}
  - {name: att, flexVolume: {driver: kill/att}}
  - {name: dummy, flexVolume: {driver: kill/dummy}}
  - {name: share, flexVolume: {driver: kill/share, options: {server: s, share: /x}}}
`

func (s *script) flexDrivers() string { return filepath.Join(s.host, "flexvolume-drivers") }

func (s *script) flexState(kind string) string { return filepath.Join(s.host, "flex-"+kind) }

func (s *script) attachOnNode() []string {
	return []string{"--pool-size", "2Gi", "--enable-controller-attach-detach=false"}
}

// flexLife has volumes of FlexVolume drivers, which lose one of themselves while it is in use.
func (s *script) flexLife() []step {
	return []step{
		{"the drivers are installed", s.installFlex},
		{"the manifests are applied", func() error { return s.in.Apply(s.ctx, flexManifests) }},
		{"the pod is Ready", s.podReady},
		{"data is written and fsynced", func() error {
			path, err := s.flexFile()
			if err != nil {
				return err
			}
			return writeSynced(path)
		}},
		{"its files belong to the pod's group", func() error {
			path, err := s.flexFile()
			if err != nil {
				return err
			}
			fi, err := os.Stat(filepath.Dir(path))
			if err == nil && fi.Sys().(*syscall.Stat_t).Gid != 1000 {
				err = fmt.Errorf("%s belongs to group %d", filepath.Dir(path), fi.Sys().(*syscall.Stat_t).Gid)
			}
			return err
		}},
		{"the claim has grown", s.growFlex},
		{"the pod is deleted", func() error { return s.deletePod("app") }},
		{"nothing is attached", s.flexDetached},
		{"a new pod is Ready", func() error {
			if err := s.in.Apply(s.ctx, strings.ReplaceAll(flexManifests, "320Mi", "384Mi")); err != nil {
				return err
			}
			return s.podReady()
		}},
		{"the data is there", func() error {
			path, err := s.flexFile()
			if err != nil {
				return err
			}
			return holds(path)
		}},
		{"a driver is removed", func() error { return os.RemoveAll(filepath.Join(s.flexDrivers(), "kill~dummy")) }},
		{"claim, pod and volume are deleted", func() error {
			if err := s.deleteAll(); err != nil {
				return err
			}
			err := s.client.CoreV1().PersistentVolumes().Delete(s.ctx, "flex-disk", metav1.DeleteOptions{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			return err
		}},
		{"nothing is attached", s.flexDetached},
		{"nothing is left", s.nothingLeft},
	}
}

func (s *script) installFlex() error {
	if _, err := os.Stat(s.flexDrivers()); errors.Is(err, fs.ErrNotExist) {
		return err // it is made by the instance
	}
	if err := os.MkdirAll(filepath.Join(s.flexState("share"), "exports/s/x"), 0o755); err != nil {
		return err
	}
	for name, kind := range map[string]string{"disk": "disk", "att": "attachable", "dummy": "dummy", "share": "share"} {
		if _, err := os.Stat(flexdriver.Path(s.flexDrivers(), "kill/"+name)); err == nil {
			continue
		}
		if err := flexdriver.Install(s.flexDrivers(), "kill/"+name, kind, s.flexState(name)); err != nil {
			return err
		}
	}
	return nil
}

func (s *script) flexFile() (string, error) {
	dir, err := s.volume("kill~disk", "flex-disk")
	return filepath.Join(dir, "precious"), err
}

func (s *script) growFlex() error {
	claims := s.client.CoreV1().PersistentVolumeClaims(ns)
	if _, err := claims.Patch(s.ctx, "data", types.MergePatchType, []byte(`{"spec":{"resources":{"requests":{"storage":"384Mi"}}}}`), metav1.PatchOptions{}); err != nil {
		return err
	}
	c, err := claims.Get(s.ctx, "data", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if have := c.Status.Capacity[v1.ResourceStorage]; have.String() != "384Mi" || len(c.Status.Conditions) > 0 {
		return fmt.Errorf("the claim has %s, conditions %v", have.String(), c.Status.Conditions)
	}
	pv, err := s.client.CoreV1().PersistentVolumes().Get(s.ctx, "flex-disk", metav1.GetOptions{})
	if err == nil && pv.Annotations["volume.alpha.kubernetes.io/pre-resize-capacity"] != "" {
		err = errors.New("the volume is still marked as being resized")
	}
	return err
}

// flexDetached asks the drivers' own state.
func (s *script) flexDetached() error {
	out, err := exec.Command("losetup", "-j", filepath.Join(s.flexState("disk"), "disks", "flex-disk")).Output()
	if err != nil || len(out) > 0 {
		return fmt.Errorf("attached: %s (%w)", out, err)
	}
	left, err := os.ReadDir(filepath.Join(s.flexState("att"), "attached"))
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("attached: %v", left)
	}
	return err
}

// flexLeft is what is left of a volume in the directory of a driver; the directories of all its volumes may stay.
func flexLeft(dir string) (left string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && (!d.IsDir() || filepath.Base(filepath.Dir(path)) == "mounts") {
			left = path
		}
		return nil
	})
	return left
}
