package kill

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// A third party's driver that leaves the group of a volume's files to the node, which ours does not.
const foreignClasses = `
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: foreign.example.com}
spec: {attachRequired: true, fsGroupPolicy: File}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: foreign}
provisioner: foreign.example.com
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: foreign}
driver: foreign.example.com
deletionPolicy: Delete
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], storageClassName: foreign, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  securityContext: {fsGroup: 1000}
  containers: [{name: app, image: busybox, volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
`

const foreignSnapshot = `
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: single}
spec: {volumeSnapshotClassName: foreign, source: {persistentVolumeClaimName: data}}
`

const foreignCopies = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: restored}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: foreign
  dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: single}
  resources: {requests: {storage: 1Gi}}
---
apiVersion: v1
kind: Pod
metadata: {name: copies}
spec:
  containers: [{name: app, image: busybox, volumeMounts: [{name: restored, mountPath: /restored}]}]
  volumes: [{name: restored, persistentVolumeClaim: {claimName: restored}}]
`

// foreignLife has volumes of a driver that outlives berth up.
func (s *script) foreignLife() []step {
	state := filepath.Join(s.host, "foreign")
	return []step{
		{"a third party's driver runs", func() error { return s.startForeign(state) }},
		{"the manifests are applied", func() error { return s.in.Apply(s.ctx, foreignClasses) }},
		{"the pod is Ready", s.podReady},
		{"data is written and fsynced", s.write},
		{"its files belong to the pod's group", func() error {
			path, err := s.file()
			if err != nil {
				return err
			}
			fi, err := os.Stat(filepath.Dir(path))
			if err == nil && fi.Sys().(*syscall.Stat_t).Gid != 1000 {
				err = fmt.Errorf("%s belongs to group %d", filepath.Dir(path), fi.Sys().(*syscall.Stat_t).Gid)
			}
			return err
		}},
		{"a snapshot is ready", func() error { return s.readyToUse(foreignSnapshot, "volumesnapshot/single") }},
		{"restored", func() error { return s.restored(foreignCopies) }},
		{"the copy's pod is deleted", func() error { return s.deletePod("copies") }},
		{"the snapshots are gone", s.snapshotsGone},
		{"the data is there", s.read},
		{"claims and pod are deleted", s.deleteAll},
		{"nothing is left", s.nothingLeft},
		{"nothing is left at the driver", func() error {
			left, err := os.ReadDir(state)
			if err == nil && len(left) > 0 {
				err = fmt.Errorf("left: %v", left)
			}
			return err
		}},
	}
}

// startForeign runs the driver, once.
func (s *script) startForeign(state string) error {
	if s.foreign != nil {
		return nil
	}
	bin := filepath.Join(s.host, "foreign-driver")
	if out, err := exec.Command("go", "build", "-o", bin, "berth.io/berth/test/foreign").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	cmd := exec.Command(bin, "--name", "foreign.example.com", "--state", state, "--node", "n1", "--attach", "--data", "--slow", "300ms",
		"--endpoint", filepath.Join(s.in.Dir, "plugins", "foreign.example.com", "csi.sock"), "--registry", filepath.Join(s.in.Dir, "plugins_registry"))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.foreign = cmd
	s.atEnd(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return nil
}
