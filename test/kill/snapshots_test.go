package kill

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
metadata: {name: data, labels: {copied: together}}
spec: {accessModes: [ReadWriteOnce], storageClassName: berth-block, resources: {requests: {storage: 64Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: log, labels: {copied: together}}
spec: {accessModes: [ReadWriteOnce], storageClassName: xfs, resources: {requests: {storage: 320Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  containers:
  - name: app
    image: busybox
    volumeMounts: [{name: data, mountPath: /data}, {name: log, mountPath: /log}]
  volumes:
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
		{"the manifests are applied", func() error { return s.in.Apply(s.ctx, sources) }},
		{"the pod is Ready", s.podReady},
		{"data is written and fsynced", s.write},
		{"a snapshot is ready", func() error { return s.readyToUse(singleSnapshot, "volumesnapshot/single") }},
		{"a group snapshot is ready", func() error { return s.readyToUse(groupSnapshot, "volumegroupsnapshot/group") }},
		{"restored and cloned", s.copied},
		{"schedules have kept the newest", s.scheduled},
		{"the schedules are gone", func() error {
			_, err := s.in.Kubectl(s.ctx, "delete", "snapshotschedule", "--all", "--timeout=20s")
			return err
		}},
		{"the copies' pod is deleted", func() error { return s.deletePod("copies") }},
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

// copied wants in the restored volume what was in its source, and all copies mounted beside their sources.
func (s *script) copied() error {
	if err := s.in.Apply(s.ctx, copies); err != nil {
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
		if _, err := s.in.Kubectl(s.ctx, "delete", kind, "--all", "--timeout=20s"); err != nil && !apierrors.IsNotFound(err) {
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
