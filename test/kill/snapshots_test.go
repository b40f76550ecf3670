package kill

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// sources are the volumes that are copied: one of each filesystem that must get a new identity beside its source.
const sources = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: xfs}
provisioner: block.csi.berth.io
parameters: {csi.storage.k8s.io/fstype: xfs}
allowVolumeExpansion: true
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, labels: {copied: together, torn: together}}
spec: {accessModes: [ReadWriteOnce], storageClassName: berth-block, volumeAttributesClassName: %s, resources: {requests: {storage: 64Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: log, labels: {copied: together}}
spec: {accessModes: [ReadWriteOnce], storageClassName: xfs, resources: {requests: {storage: 320Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: raw, labels: {torn: together}}
spec: {accessModes: [ReadWriteOnce], volumeMode: Block, storageClassName: berth-block, resources: {requests: {storage: 16Mi}}}
---
apiVersion: storage.k8s.io/v1
kind: VolumeAttributesClass
metadata: {name: calm}
driverName: block.csi.berth.io
parameters: {readAheadKiB: "16"}
---
apiVersion: storage.k8s.io/v1
kind: VolumeAttributesClass
metadata: {name: eager}
driverName: block.csi.berth.io
parameters: {readAheadKiB: "4096"}
---
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  containers:
  - name: app
    image: busybox
    volumeMounts: [{name: data, mountPath: /data}, {name: log, mountPath: /log}]
    volumeDevices: [{name: raw, devicePath: /dev/raw}]
  volumes:
  - {name: raw, persistentVolumeClaim: {claimName: raw}}
  - {name: data, persistentVolumeClaim: {claimName: data}}
  - {name: log, persistentVolumeClaim: {claimName: log}}
`

const singleSnapshot = `
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: single}
spec: {volumeSnapshotClassName: berth-block, source: {persistentVolumeClaimName: data}}
`

const groupSnapshot = `
apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshot
metadata: {name: group}
spec: {volumeGroupSnapshotClassName: berth-block, source: {selector: {matchLabels: {copied: together}}}}
`

// tornGroup has a volume that nothing can hold still beside one that is frozen for it.
const tornGroup = `
apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshot
metadata: {name: torn}
spec: {volumeGroupSnapshotClassName: berth-block, source: {selector: {matchLabels: {torn: together}}}}
`

// copies are made of the snapshot and of a volume in use; the inline volume is made and goes with its pod.
const copies = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: restored}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: berth-block
  dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: single}
  resources: {requests: {storage: 128Mi}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: clone}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: xfs
  dataSource: {kind: PersistentVolumeClaim, name: log}
  resources: {requests: {storage: 320Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: copies}
spec:
  containers:
  - name: app
    image: busybox
    volumeMounts: [{name: restored, mountPath: /restored}, {name: clone, mountPath: /clone}, {name: inline, mountPath: /inline}]
  volumes:
  - {name: restored, persistentVolumeClaim: {claimName: restored}}
  - {name: clone, persistentVolumeClaim: {claimName: clone}}
  - {name: inline, csi: {driver: block.csi.berth.io, volumeAttributes: {size: 32Mi}}}
`

const schedules = `
apiVersion: storage.berth.io/v1alpha1
kind: SnapshotSchedule
metadata: {name: often}
spec: {schedule: "@every 1s", keep: 1, selector: {matchLabels: {copied: together}}, volumeSnapshotClassName: berth-block}
---
apiVersion: storage.berth.io/v1alpha1
kind: SnapshotSchedule
metadata: {name: grouped}
spec: {schedule: "@every 1s", keep: 1, selector: {matchLabels: {copied: together}}, group: true, volumeGroupSnapshotClassName: berth-block}
`

// snapshotLife copies volumes in every way that there is.
func (s *script) snapshotLife() []step {
	return []step{
		{"the manifests are applied", func() error { return s.in.Apply(s.ctx, fmt.Sprintf(sources, "calm")) }},
		{"the pod is Ready", s.podReady},
		{"data is written and fsynced", s.write},
		{"a class that is not there is told", s.unknownAttributes},
		{"the volume has other attributes", s.otherAttributes},
		{"a snapshot is ready", func() error { return s.readyToUse(singleSnapshot, "volumesnapshot/single") }},
		{"a group snapshot is ready", func() error { return s.readyToUse(groupSnapshot, "volumegroupsnapshot/group") }},
		{"a group that cannot be of one instant is refused", s.refusedGroup},
		{"restored and cloned", func() error { return s.restored(copies) }},
		{"schedules have kept the newest", s.scheduled},
		{"the schedules are gone", func() error {
			_, err := s.in.Kubectl(s.ctx, "delete", "snapshotschedule", "--all", "--timeout=60s")
			return err
		}},
		{"the copies' pod is deleted", func() error { return s.deletePod("copies") }},
		{"a claim was being made of the snapshot", func() error {
			// What external-provisioner's finalizer is for; a crash leaves it.
			_, err := s.in.Kubectl(s.ctx, "patch", "volumesnapshot", "single", "--type=json", "-p",
				`[{"op":"add","path":"/metadata/finalizers/-","value":"provisioner.storage.kubernetes.io/volumesnapshot-as-source-protection"}]`)
			return err
		}},
		{"the snapshots are gone", s.snapshotsGone},
		{"the data is there", s.read},
		{"claims and pod are deleted", s.deleteAll},
		{"nothing is left", s.nothingLeft},
	}
}

func (s *script) readyToUse(manifest, object string) error {
	if err := s.in.Apply(s.ctx, manifest); err != nil {
		return err
	}
	out, err := s.in.Kubectl(s.ctx, "get", object, "-o", "jsonpath={.status.readyToUse} {.status.error.message}")
	if err == nil && !strings.HasPrefix(out, "true") {
		err = fmt.Errorf("%s: %q", object, out)
	}
	return err
}

func (s *script) attributes(class string) (*corev1.PersistentVolumeClaim, error) {
	return s.client.CoreV1().PersistentVolumeClaims(ns).Patch(s.ctx, "data", types.MergePatchType,
		[]byte(`{"spec":{"volumeAttributesClassName":"`+class+`"}}`), metav1.PatchOptions{})
}

// unknownAttributes asks for a class that nobody has made.
func (s *script) unknownAttributes() error {
	c, err := s.attributes("nobody")
	if err != nil {
		return err
	}
	for _, k := range c.Status.Conditions {
		if k.Type == corev1.PersistentVolumeClaimVolumeModifyVolumeError && k.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("the claim has %+v", c.Status.Conditions)
}

// otherAttributes wants them in the claim and in the kernel.
func (s *script) otherAttributes() error {
	c, err := s.attributes("eager")
	if err != nil {
		return err
	}
	if got := c.Status.CurrentVolumeAttributesClassName; got == nil || *got != "eager" || len(c.Status.Conditions) > 0 {
		return fmt.Errorf("the claim has %+v", c.Status)
	}
	pv, err := s.client.CoreV1().PersistentVolumes().Get(s.ctx, c.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	w, err := s.in.World()
	if err != nil {
		return err
	}
	for _, l := range w.VolumeLoops() {
		device, backing, _ := strings.Cut(l, " ")
		if !strings.Contains(backing, "/"+pv.Spec.CSI.VolumeHandle+"/") {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/sys/block", device, "queue", "read_ahead_kb"))
		if err == nil && strings.TrimSpace(string(b)) != "4096" {
			err = fmt.Errorf("%s reads %s ahead", device, b)
		}
		return err
	}
	return fmt.Errorf("no device of %s in %q", pv.Spec.CSI.VolumeHandle, w.Loops)
}

// refusedGroup wants the reason told, and deletes the group.
func (s *script) refusedGroup() error {
	if !s.refused {
		if err := s.in.Apply(s.ctx, tornGroup); err != nil {
			return err
		}
		out, err := s.in.Kubectl(s.ctx, "get", "volumegroupsnapshot/torn", "-o", "jsonpath={.status.error.message}")
		if err == nil && !strings.Contains(out, "block device") {
			err = fmt.Errorf("volumegroupsnapshot/torn says %q", out)
		}
		s.refused = err == nil
		if err != nil {
			return err
		}
	}
	_, err := s.in.Kubectl(s.ctx, "delete", "volumegroupsnapshot/torn", "--ignore-not-found", "--timeout=60s")
	return err
}

// restored wants in the restored volume what was in its source, and all copies mounted beside their sources.
func (s *script) restored(manifest string) error {
	if err := s.in.Apply(s.ctx, manifest); err != nil {
		return err
	}
	p, err := s.client.CoreV1().Pods(ns).Get(s.ctx, "copies", metav1.GetOptions{})
	if err != nil {
		return err
	}
	ready := false
	for _, c := range p.Status.Conditions {
		ready = ready || c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	}
	if !ready {
		return fmt.Errorf("pod is %s: %+v", p.Status.Phase, p.Status.Conditions)
	}
	c, err := s.client.CoreV1().PersistentVolumeClaims(ns).Get(s.ctx, "restored", metav1.GetOptions{})
	if err != nil {
		return err
	}
	return holds(filepath.Join(s.in.Dir, "pods", string(p.UID), "volumes", "kubernetes.io~csi", c.Spec.VolumeName, "mount", "precious"))
}

// scheduled waits until each schedule has taken a second snapshot and kept one alone.
func (s *script) scheduled() error {
	if err := s.in.Apply(s.ctx, schedules); err != nil {
		return err
	}
	if s.kept == nil {
		s.kept = map[string]string{}
	}
	var missing error
	for schedule, kind := range map[string]string{"often": "volumesnapshot", "grouped": "volumegroupsnapshot"} {
		out, err := s.in.Kubectl(s.ctx, "get", kind, "-l", "storage.berth.io/schedule="+schedule, "-o", "jsonpath={.items[*].metadata.uid}")
		if err != nil {
			return err
		}
		uids := strings.Fields(out)
		if s.kept[schedule] == "" && len(uids) > 0 {
			s.kept[schedule] = uids[0]
		}
		// The first one has been pushed out by a later one.
		if len(uids) == 0 || strings.Contains(out, s.kept[schedule]) {
			missing = errors.Join(missing, fmt.Errorf("schedule %s: %q", schedule, uids))
		}
	}
	return missing
}

// snapshotsGone deletes all of them, whoever made them.
func (s *script) snapshotsGone() error {
	for _, kind := range []string{"volumegroupsnapshot", "volumesnapshot"} {
		// Members of a group go with it.
		if _, err := s.in.Kubectl(s.ctx, "delete", kind, "--all", "--timeout=60s"); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	for _, kind := range []string{"volumesnapshot", "volumesnapshotcontent", "volumegroupsnapshotcontent"} {
		out, err := s.in.Kubectl(s.ctx, "get", kind, "-o", "name")
		if err != nil {
			return err
		}
		if out = strings.TrimSpace(out); out != "" {
			return fmt.Errorf("left: %s", out)
		}
	}
	return nil
}
