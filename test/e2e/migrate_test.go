package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/test/boundaries"
	"berth.io/berth/test/instance"
)

const migratedData = "written before the migration"

// flexVolume makes what a user of the FlexVolume driver has: a volume with data, a PersistentVolume of berth/block that names it, and a
// claim that is bound to that. The volume itself comes from the CSI driver, since FlexVolume cannot make one.
func flexVolume(s *story, name string) (handle string) {
	s.Helper()
	s.apply(claimYAML(name+"-maker", "32Mi") + podYAML(name+"-maker", name+"-maker"))
	dir := paths(s, s.ready(name+"-maker"))["data"]
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte(migratedData), 0o600); err != nil {
		s.Fatal(err)
	}
	pv := s.claim(name + "-maker").Spec.VolumeName
	made, err := s.client.CoreV1().PersistentVolumes().Get(s.ctx, pv, metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	handle = made.Spec.CSI.VolumeHandle
	s.kubectl("patch", "pv", pv, "-p", `{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`)
	s.kubectl("delete", "pod/"+name+"-maker", "pvc/"+name+"-maker")
	s.claimGone(name + "-maker")
	s.kubectl("delete", "pv", pv)
	s.volumeGone(pv)

	s.apply(flexYAML(s.ns, name, handle, made.Spec.Capacity.Storage().String()))
	s.bound(name)
	return handle
}

// flexYAML is a FlexVolume PersistentVolume called like the namespace and name, and its claim.
func flexYAML(ns, name, handle, size string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: %[1]s-%[2]s, labels: {story: %[1]s}, annotations: {example.org/note: keep}}
spec:
  capacity: {storage: %[4]s}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Delete
  storageClassName: ""
  claimRef: {namespace: %[1]s, name: %[2]s}
  flexVolume: {driver: berth/block, fsType: ext4, options: {volumeID: %[3]s}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %[2]s}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  volumeName: %[1]s-%[2]s
  resources: {requests: {storage: 32Mi}}
---`, ns, name, handle, size)
}

func (s *story) bound(claim string) {
	s.Helper()
	s.until("claim "+claim+" Bound", func() (bool, string) {
		c := s.claim(claim)
		return c.Status.Phase == corev1.ClaimBound, string(c.Status.Phase)
	})
}

func (s *story) volume(name string) *corev1.PersistentVolume {
	s.Helper()
	pv, err := s.client.CoreV1().PersistentVolumes().Get(s.ctx, name, metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	return pv
}

// migrateFlex runs the command; undo files go to a directory of the test's own.
func (s *story) migrateFlex(undoDir string, args ...string) (string, error) {
	return s.in.Berth(s.ctx, append([]string{"migrate", "flexvolume", "--undo-dir", undoDir}, args...)...)
}

// undoFile is the only one in dir.
func undoFile(s *story, dir string) string {
	s.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) != 1 {
		s.Fatalf("undo files %q, %v; want one", files, err)
	}
	return files[0]
}

// isCSI and isFlex make sure that the volume is whole in one form: bound to the same claim, with everything that it had.
func isCSI(s *story, name, handle string, claim types.UID) {
	s.Helper()
	pv := s.volume(s.ns + "-" + name)
	if c := pv.Spec.CSI; c == nil || c.Driver != "block.csi.berth.io" || c.VolumeHandle != handle || c.FSType != "ext4" {
		s.Errorf("source %+v", pv.Spec.PersistentVolumeSource)
	}
	if pv.Annotations["pv.kubernetes.io/provisioned-by"] != "block.csi.berth.io" || pv.Annotations["storage.berth.io/migrated-from"] != "flexvolume/berth/block" {
		s.Errorf("annotations %v", pv.Annotations)
	}
	if pv.Spec.NodeAffinity == nil {
		s.Error("no node affinity: a pod could be placed where the volume is not")
	}
	isWhole(s, pv, name, claim)
}

func isFlex(s *story, name, handle string, claim types.UID) {
	s.Helper()
	pv := s.volume(s.ns + "-" + name)
	if f := pv.Spec.FlexVolume; f == nil || f.Driver != "berth/block" || f.Options["volumeID"] != handle {
		s.Errorf("source %+v", pv.Spec.PersistentVolumeSource)
	}
	if _, ok := pv.Annotations["storage.berth.io/migrated-from"]; ok || pv.Spec.NodeAffinity != nil {
		s.Errorf("annotations %v, node affinity %v are left of the other form", pv.Annotations, pv.Spec.NodeAffinity)
	}
	isWhole(s, pv, name, claim)
}

func isWhole(s *story, pv *corev1.PersistentVolume, name string, claim types.UID) {
	s.Helper()
	c := s.claim(name)
	if c.UID != claim || c.Status.Phase != corev1.ClaimBound || c.Status.Capacity.Storage().IsZero() {
		s.Errorf("claim %s is %s with %v, or another one", name, c.Status.Phase, c.Status.Capacity)
	}
	if pv.Status.Phase != corev1.VolumeBound || pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != claim {
		s.Errorf("volume is %s, claimRef %+v", pv.Status.Phase, pv.Spec.ClaimRef)
	}
	if pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
		s.Errorf("reclaim policy %s, want Delete as before", pv.Spec.PersistentVolumeReclaimPolicy)
	}
	if pv.Annotations["example.org/note"] != "keep" || pv.Labels["story"] != s.ns {
		s.Errorf("annotations %v and labels %v, want those it had", pv.Annotations, pv.Labels)
	}
}

// hasData mounts the claim through the CSI driver, reads, and takes the pod away again.
func hasData(s *story, claim string) {
	s.Helper()
	s.apply(podYAML("reader-"+claim, claim))
	dir := paths(s, s.ready("reader-"+claim))["data"]
	if b, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(b) != migratedData {
		s.Errorf("the data is %q, %v", b, err)
	}
	s.kubectl("delete", "pod", "reader-"+claim)
	s.podGone("reader-" + claim)
	s.detached(claim)
}

func (s *story) detached(claim string) {
	s.Helper()
	pv := s.claim(claim).Spec.VolumeName
	s.until("volume "+pv+" detached", func() (bool, string) {
		list, err := s.client.StorageV1().VolumeAttachments().List(s.ctx, metav1.ListOptions{})
		if err != nil {
			return false, err.Error()
		}
		attached := slices.ContainsFunc(list.Items, func(a storagev1.VolumeAttachment) bool {
			return a.Spec.Source.PersistentVolumeName != nil && *a.Spec.Source.PersistentVolumeName == pv
		})
		node, err := s.client.CoreV1().Nodes().List(s.ctx, metav1.ListOptions{})
		if err != nil {
			return false, err.Error()
		}
		handle := ""
		if c := s.volume(pv).Spec.CSI; c != nil {
			handle = c.VolumeHandle
		}
		for _, n := range node.Items {
			for _, v := range n.Status.VolumesInUse {
				attached = attached || handle != "" && strings.HasSuffix(string(v), "^"+handle)
			}
			for _, v := range n.Status.VolumesAttached {
				attached = attached || handle != "" && strings.HasSuffix(string(v.Name), "^"+handle)
			}
		}
		return !attached, "still attached"
	})
}

// onBoth tells a story with our controllers and with upstream's.
func onBoth(t *testing.T, f func(s *story)) {
	t.Run("berth", func(t *testing.T) { f(tell(t)) })
	t.Run("upstream", func(t *testing.T) { f(tellOn(t, own(t, "--controllers", "upstream"))) })
}

// A FlexVolume volume becomes a CSI volume and is used; it is taken back and migrated again; and when its claim is deleted, the CSI
// driver deletes it.
func TestMigrateFlexVolumeAndBack(t *testing.T) {
	onBoth(t, func(s *story) {
		handle, dir := flexVolume(s, "data"), s.TempDir()
		pv, claim := s.ns+"-data", s.claim("data").UID

		out, err := s.migrateFlex(dir, pv, "--dry-run")
		if err != nil || !strings.Contains(out, "would become volume "+handle+" of CSI driver block.csi.berth.io") {
			s.Fatalf("dry run: %q, %v", out, err)
		}
		if files, _ := os.ReadDir(dir); len(files) > 0 {
			s.Errorf("a dry run has written %v", files)
		}
		isFlex(s, "data", handle, claim)

		out, err = s.migrateFlex(dir, pv)
		if err != nil {
			s.Fatal(err)
		}
		file := undoFile(s, dir)
		if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 || !strings.Contains(out, file) {
			s.Errorf("undo file %s is %v (%v), or is not named in %q", file, fi.Mode(), err, out)
		}
		isCSI(s, "data", handle, claim)
		s.event("data", "MigratedToCSI", "volume "+handle)
		volumeEvent(s, pv, "MigratedToCSI")
		if out, err := s.migrateFlex(dir, pv); err != nil || !strings.Contains(out, "already") {
			s.Errorf("again: %q, %v", out, err)
		}
		hasData(s, "data")

		if _, err := s.migrateFlex(dir, "--undo", file); err != nil {
			s.Fatal(err)
		}
		isFlex(s, "data", handle, claim)
		volumeEvent(s, pv, "MigratedBackToFlexVolume")
		if out, err := s.migrateFlex(dir, "--undo", file); err != nil || !strings.Contains(out, "already") {
			s.Errorf("undo again: %q, %v", out, err)
		}

		if _, err := s.migrateFlex(dir, "-l", "story="+s.ns); err != nil {
			s.Fatal(err)
		}
		isCSI(s, "data", handle, claim)
		hasData(s, "data")
		s.kubectl("delete", "pvc", "data")
		s.claimGone("data")
		s.volumeGone(pv)
		s.until("the volume's file gone", func() (bool, string) {
			left, err := filepath.Glob(filepath.Join(s.in.Dir, "pools", "*", "volumes", handle))
			return err == nil && len(left) == 0, fmt.Sprint(left, err)
		})
		if _, err := s.migrateFlex(dir, pv); err == nil || !strings.Contains(err.Error(), "no such PersistentVolume") {
			s.Errorf("a volume that was deleted since: %v", err)
		}
	})
}

func volumeEvent(s *story, pv, reason string) {
	s.Helper()
	list, err := s.client.CoreV1().Events("default").List(s.ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + pv})
	if err != nil {
		s.Fatal(err)
	}
	if !slices.ContainsFunc(list.Items, func(e corev1.Event) bool { return e.Reason == reason }) {
		s.Errorf("no event %s on volume %s", reason, pv)
	}
}

// What uses a volume keeps it from being migrated, and from being taken back; nothing is changed, and the message says what to do.
func TestMigrateRefusesAVolumeInUse(t *testing.T) {
	s := tell(t)
	handle, dir := flexVolume(s, "data"), t.TempDir()
	pv, claim := s.ns+"-data", s.claim("data").UID

	s.apply(podYAML("user", "data", "nodeSelector: {no-such: node}"))
	_, err := s.migrateFlex(dir, pv)
	if err == nil || !strings.Contains(err.Error(), "pod user") {
		t.Errorf("with a pod that waits: %v", err)
	}
	isFlex(s, "data", handle, claim)
	s.kubectl("delete", "pod", "user")
	s.podGone("user")

	if _, err := s.migrateFlex(dir, pv); err != nil {
		t.Fatal(err)
	}
	file := undoFile(s, dir)
	s.apply(podYAML("user", "data"))
	s.ready("user")
	if _, err := s.migrateFlex(dir, "--undo", file); err == nil || !strings.Contains(err.Error(), "pod user") {
		t.Errorf("undo with a pod: %v", err)
	}
	isCSI(s, "data", handle, claim)
	s.kubectl("delete", "pod", "user")
	s.podGone("user")
	s.detached("data")
	if _, err := s.migrateFlex(dir, "--undo", file); err != nil {
		t.Error(err)
	}
	isFlex(s, "data", handle, claim)
}

// Several volumes: those that can be are migrated, each of the others says why not, and the exit code tells.
func TestMigrateSeveral(t *testing.T) {
	s := tell(t)
	dir := t.TempDir()
	one, two := flexVolume(s, "one"), flexVolume(s, "two")
	s.apply(fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: %[1]s-nfs, labels: {story: %[1]s}}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteMany]
  storageClassName: none
  flexVolume: {driver: berth/nfs, options: {server: nfs.example.org, share: /}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: %[1]s-other, labels: {story: %[1]s}}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: none
  flexVolume: {driver: acme/store, options: {volumeID: v}}
---`, s.ns))
	t.Cleanup(func() { _, _ = s.in.Kubectl(s.ctx, "delete", "pv", s.ns+"-nfs", s.ns+"-other") })
	out, err := s.migrateFlex(dir, "-l", "story="+s.ns)
	if err == nil {
		t.Errorf("two volumes cannot be migrated, and the command says nothing of it: %s", out)
	}
	for _, want := range []string{"[4/4]", "berth/nfs has no CSI driver in this version", "--block-driver acme/store", "2 of 4 volumes were not migrated"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("output %v; want %q in it", err, want)
		}
	}
	isCSI(s, "one", one, s.claim("one").UID)
	isCSI(s, "two", two, s.claim("two").UID)
	hasData(s, "one")
	hasData(s, "two")
}

// The command is killed before and after each of its writes, while it migrates and while it takes back. Then it is run again, or the
// undo is: at the end the claim is Bound and its data is there.
func TestMigrateKilledAtEveryStep(t *testing.T) {
	onBoth(t, func(s *story) {
		handle := flexVolume(s, "data")
		claim := s.claim("data").UID
		pv := s.ns + "-data"
		points := migratePoints(s)
		if s.in != shared { // what the PV controller has a part in: the rest is the command's alone
			points = slices.DeleteFunc(points, func(p string) bool {
				return !strings.Contains(p, "-volume:") && !strings.Contains(p, "finalizers") && !strings.Contains(p, "mark-claim")
			})
		}
		for _, point := range points {
			for _, then := range []string{"run again", "undo"} {
				s.Run(point+", then "+then, func(t *testing.T) {
					s := &story{T: t, in: s.in, client: s.client, ns: s.ns, ctx: s.ctx}
					migrateAndDie(s, point, then, pv, handle, claim)
				})
			}
		}
		if _, err := s.migrateFlex(s.TempDir(), pv); err != nil {
			s.Fatal(err)
		}
		hasData(s, "data")
	})
}

// migratePoints are both sides of each write of the room.
func migratePoints(s *story) (points []string) {
	s.Helper()
	found, _, err := boundaries.Scan(filepath.Join("..", ".."))
	if err != nil {
		s.Fatal(err)
	}
	for _, b := range found {
		if strings.HasPrefix(b.Name, "migrate/") {
			points = append(points, b.Name+":before", b.Name+":after")
		}
	}
	if len(points) < 12 {
		s.Fatalf("only %q were found", points)
	}
	return points
}

// migrateAndDie begins with a FlexVolume volume, dies at point (of the migration, and then of the undo), and ends with one.
func migrateAndDie(s *story, point, then, pv, handle string, claim types.UID) {
	s.Helper()
	dir := s.TempDir()
	isFlex(s, "data", handle, claim)
	dying := &instance.Instance{Bin: s.in.Bin, Dir: s.in.Dir, CommandEnv: []string{"BERTH_KILL_AT=" + point}}
	die := func(args ...string) {
		s.Helper()
		out, err := dying.Berth(s.ctx, append([]string{"migrate", "flexvolume", "--undo-dir", dir}, args...)...)
		if err == nil || !strings.Contains(err.Error(), "killed at "+point) {
			s.Fatalf("the command did not die at %s: %s %v", point, out, err)
		}
	}
	run := func(args ...string) {
		s.Helper()
		if _, err := s.migrateFlex(dir, args...); err != nil {
			s.Fatal(err)
		}
	}
	die(pv)
	begun, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		s.Fatal(err)
	}
	if len(begun) == 0 { // it died before its first act: nothing has happened
		isFlex(s, "data", handle, claim)
		run(pv)
	} else if then == "undo" {
		run("--undo", begun[0])
		isFlex(s, "data", handle, claim)
		return
	} else {
		run(pv)
	}
	isCSI(s, "data", handle, claim)
	file := undoFile(s, dir)
	if then == "undo" { // which of the two commands began does not matter: migrated again after a death in the undo
		die("--undo", file)
		run("--undo", file)
		isFlex(s, "data", handle, claim)
		return
	}
	die("--undo", file)
	run("--undo", file)
	isFlex(s, "data", handle, claim)
}

// An undo file of another cluster, or none at all, changes nothing.
func TestMigrateUndoFilesThatAreNotOurs(t *testing.T) {
	s := tell(t)
	dir := t.TempDir()
	handle := flexVolume(s, "data")
	claim := s.claim("data").UID
	if _, err := s.migrateFlex(dir, s.ns+"-data"); err != nil {
		t.Fatal(err)
	}
	file := undoFile(s, dir)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var content map[string]any
	if err := json.Unmarshal(b, &content); err != nil {
		t.Fatal(err)
	}
	content["cluster"] = "another"
	b, err = json.Marshal(content)
	foreign, rubbish := filepath.Join(t.TempDir(), "f.json"), filepath.Join(t.TempDir(), "f.json")
	if err := errors.Join(err, os.WriteFile(foreign, b, 0o600), os.WriteFile(rubbish, []byte("kind: Pod"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{foreign: "another cluster", rubbish: "no undo file", rubbish + "x": "no such file"} {
		if _, err := s.migrateFlex(dir, "--undo", file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--undo %s: %v, want %q", file, err, want)
		}
	}
	isCSI(s, "data", handle, claim)
	if _, err := s.client.CoreV1().PersistentVolumes().Get(s.ctx, s.ns+"-data", metav1.GetOptions{}); apierrors.IsNotFound(err) {
		t.Error("the volume is gone")
	}
}
