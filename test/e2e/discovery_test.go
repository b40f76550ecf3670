package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/test/instance"
)

// localDisks is a directory of disks: what an administrator has before the discovery.
type localDisks struct {
	*testing.T
	dir string
}

func newLocalDisks(t *testing.T) *localDisks {
	t.Helper()
	dir, err := os.MkdirTemp("", "berth-disks-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("something is left mounted: %v", err)
		}
	})
	return &localDisks{t, dir}
}

func (d *localDisks) command(name string, args ...string) {
	d.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		d.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

func (d *localDisks) path(name string) string { return filepath.Join(d.dir, name) }

func (d *localDisks) mkdir(name string) string {
	d.Helper()
	if err := os.MkdirAll(d.path(name), 0o755); err != nil {
		d.Fatal(err)
	}
	return d.path(name)
}

// mounted is a filesystem on a disk of its own, in a directory.
func (d *localDisks) mounted(name string) string {
	d.Helper()
	dev := rawDevice(d.T, 64<<20)
	d.command("mkfs.ext4", "-q", dev)
	at := d.mkdir(name)
	d.command("mount", dev, at)
	d.Cleanup(func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			d.Errorf("umount %s: %v: %s", at, err, out)
		}
	})
	return at
}

// linked is a raw disk, with a link to it.
func (d *localDisks) linked(name string) string {
	d.Helper()
	dev := rawDevice(d.T, 32<<20)
	d.mkdir(filepath.Dir(name))
	if err := os.Symlink(dev, d.path(name)); err != nil {
		d.Fatal(err)
	}
	return dev
}

// config writes the data of a ConfigMap as a pod has it mounted.
func (d *localDisks) config(classes string) string {
	d.Helper()
	if err := os.WriteFile(filepath.Join(d.mkdir("config"), "storageClassMap"), []byte(strings.ReplaceAll(classes, "DIR", d.dir)), 0o644); err != nil {
		d.Fatal(err)
	}
	return d.path("config")
}

// volumeAt is the volume of the disk at path, in a phase.
func (s *story) volumeAt(path string, phase corev1.PersistentVolumePhase) (found *corev1.PersistentVolume) {
	s.Helper()
	s.until(fmt.Sprintf("the volume of %s to be %s", path, phase), func() (bool, string) {
		list, err := s.client.CoreV1().PersistentVolumes().List(s.ctx, metav1.ListOptions{})
		if err != nil {
			return false, err.Error()
		}
		state := "there is none"
		for _, pv := range list.Items {
			if pv.Spec.Local != nil && pv.Spec.Local.Path == path {
				found, state = pv.DeepCopy(), string(pv.Status.Phase)
				return pv.Status.Phase == phase, state
			}
		}
		return false, state
	})
	return found
}

func (s *story) nodeSays(text string) {
	s.Helper()
	s.until(fmt.Sprintf("an event with %q", text), func() (bool, string) {
		list, err := s.client.CoreV1().Events("default").List(s.ctx, metav1.ListOptions{})
		if err != nil {
			return false, err.Error()
		}
		said := ""
		for _, e := range list.Items {
			said += e.Message + "\n"
		}
		return strings.Contains(said, text), said
	})
}

// The example as it is: a disk for each pod of a StatefulSet. The pod that is made anew has its disk and data again; a claim
// that is deleted gives its disk back, emptied. What can't be served is told, and nothing else is disturbed by it.
func TestLocalDisksBecomeVolumes(t *testing.T) {
	d := newLocalDisks(t)
	one, two := d.mounted("disks/disk1"), d.mounted("disks/disk2")
	b, err := os.ReadFile(filepath.Join(examplesDir, "discovery.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	manifest := d.path("example.yaml")
	if err := os.WriteFile(manifest, []byte(strings.ReplaceAll(string(b), "/srv/example-disks", d.path("disks"))), 0o644); err != nil {
		t.Fatal(err)
	}
	d.command("ln", "-s", d.mkdir("elsewhere"), d.path("disks/linked"))
	d.mkdir("disks/plain")
	full := d.mounted("disks/full")
	if err := os.WriteFile(filepath.Join(full, "whose"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := tellOn(t, own(t, "--discovery-config", manifest))
	text, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	s.apply(string(text))

	data := map[string]string{} // pod → its disk
	for _, pod := range []string{"example-disks-0", "example-disks-1"} {
		at := paths(s, s.ready(pod))["data"]
		if err := os.WriteFile(filepath.Join(at, "who"), []byte(pod), 0o600); err != nil {
			t.Fatal(err)
		}
		pv, err := s.client.CoreV1().PersistentVolumes().Get(s.ctx, s.claim("data-"+pod).Spec.VolumeName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		data[pod] = pv.Spec.Local.Path
		if b, err := os.ReadFile(filepath.Join(data[pod], "who")); err != nil || string(b) != pod {
			t.Errorf("on the disk at %s: %q, %v", data[pod], b, err)
		}
	}
	if data["example-disks-0"] == data["example-disks-1"] || !strings.HasPrefix(one+two, d.dir) {
		t.Fatalf("disks of the pods: %v", data)
	}
	for _, refusal := range []string{"/disks/linked is not offered in class example-disks: it is a link to the directory",
		"/disks/plain is not offered in class example-disks: it is a directory and nothing is mounted there",
		"/disks/full is not offered in class example-disks: there is data in it (whose)"} {
		s.nodeSays(refusal)
	}

	before := s.pod("example-disks-1").UID
	s.kubectl("delete", "pod", "example-disks-1")
	s.until("another pod of the name", func() (bool, string) {
		p, err := s.client.CoreV1().Pods(s.ns).Get(s.ctx, "example-disks-1", metav1.GetOptions{})
		return err == nil && p.UID != before && isReady(p), errText(err)
	})
	if b, err := os.ReadFile(filepath.Join(paths(s, s.pod("example-disks-1"))["data"], "who")); err != nil || string(b) != "example-disks-1" {
		t.Errorf("the new pod has %q, %v", b, err)
	}

	was := s.volumeAt(data["example-disks-1"], corev1.VolumeBound)
	s.kubectl("scale", "statefulset/example-disks", "--replicas=1")
	s.podGone("example-disks-1")
	s.kubectl("delete", "pvc", "data-example-disks-1")
	now := s.volumeAt(data["example-disks-1"], corev1.VolumeAvailable)
	if now.UID == was.UID || now.Name != was.Name {
		t.Errorf("volume %s %s, before %s %s", now.Name, now.UID, was.Name, was.UID)
	}
	if _, err := os.Stat(filepath.Join(data["example-disks-1"], "who")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the data of the deleted claim: %v", err)
	}
	if _, err := os.Stat(filepath.Join(data["example-disks-0"], "who")); err != nil {
		t.Errorf("the other pod's data: %v", err)
	}
	if _, err := os.Stat(filepath.Join(full, "whose")); err != nil {
		t.Errorf("data that nobody offered: %v", err)
	}
	s.kubectl("delete", "statefulset", "example-disks")
	s.podGone("example-disks-0")
	s.kubectl("delete", "pvc", "--all")
	s.volumeAt(data["example-disks-0"], corev1.VolumeAvailable)
}

// The example as it is: each pod of a StatefulSet has a raw disk of its own, formatted at its first use, finds it again when it is made anew,
// and gives it back wiped when the set and its claims are deleted.
func TestStatefulSetOnLocalDisks(t *testing.T) {
	d := newLocalDisks(t)
	var disks []string
	for _, name := range []string{"a", "b", "c"} {
		d.linked("raw/" + name)
		disks = append(disks, d.path("raw/"+name))
	}
	b, err := os.ReadFile(filepath.Join(examplesDir, "statefulset-local.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	manifest, text := d.path("example.yaml"), strings.ReplaceAll(string(b), "/srv/example-raw-disks", d.path("raw"))
	if err := os.WriteFile(manifest, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s := tellOn(t, own(t, "--discovery-config", manifest))
	s.apply(text)
	of := map[string]string{} // disk → pod
	for _, pod := range []string{"example-local-0", "example-local-1", "example-local-2"} {
		at := paths(s, s.ready(pod))["data"]
		if m := mountAt(s, at); m.FSType != "ext4" {
			t.Errorf("%s has %+v", pod, m)
		}
		if err := os.WriteFile(filepath.Join(at, "who"), []byte(pod), 0o600); err != nil {
			t.Fatal(err)
		}
		pv, err := s.client.CoreV1().PersistentVolumes().Get(s.ctx, s.claim("data-"+pod).Spec.VolumeName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if other := of[pv.Spec.Local.Path]; other != "" {
			t.Errorf("%s and %s have the same disk", pod, other)
		}
		of[pv.Spec.Local.Path] = pod
	}
	for _, disk := range disks {
		if of[disk] == "" {
			t.Errorf("no pod has %s: %v", disk, of)
		}
	}
	before := s.pod("example-local-1").UID
	s.kubectl("delete", "pod", "example-local-1")
	s.until("another pod of the name", func() (bool, string) {
		p, err := s.client.CoreV1().Pods(s.ns).Get(s.ctx, "example-local-1", metav1.GetOptions{})
		return err == nil && p.UID != before && isReady(p), errText(err)
	})
	if b, err := os.ReadFile(filepath.Join(paths(s, s.pod("example-local-1"))["data"], "who")); err != nil || string(b) != "example-local-1" {
		t.Errorf("the new pod has %q, %v", b, err)
	}
	s.kubectl("delete", "statefulset", "example-local")
	for _, pod := range of {
		s.podGone(pod)
	}
	s.kubectl("delete", "pvc", "--all")
	for _, disk := range disks {
		s.volumeAt(disk, corev1.VolumeAvailable)
		b, err := os.ReadFile(disk)
		if err != nil || strings.Trim(string(b[:1<<20]), "\x00") != "" {
			t.Errorf("%s is not blank (%v)", disk, err)
		}
	}
}

// Raw disks, and disks that get a filesystem when they are used; a directory that is not there yet disturbs nobody and is
// served when it comes.
func TestRawLocalDisks(t *testing.T) {
	d := newLocalDisks(t)
	raw := d.linked("raw/disk")
	d.linked("formatted/disk")
	config := d.config(`
raw: {hostDir: DIR/raw, mountDir: /mnt/raw, volumeMode: Block, blockCleanerCommand: [/scripts/dd_zero.sh]}
formatted: {hostDir: DIR/formatted, mountDir: /mnt/formatted, fsType: ext4}
late: {hostDir: DIR/late, mountDir: /mnt/late}
`)
	s := tellOn(t, own(t, "--discovery-config", config))
	for _, class := range []string{"raw", "formatted", "late"} {
		s.apply("apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: " + class + "}\nprovisioner: kubernetes.io/no-provisioner\nvolumeBindingMode: WaitForFirstConsumer\n")
	}
	s.nodeSays("late: no such file or directory")
	s.apply(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: raw}
spec: {accessModes: [ReadWriteOnce], volumeMode: Block, storageClassName: raw, resources: {requests: {storage: 8Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: formatted}
spec: {accessModes: [ReadWriteOnce], storageClassName: formatted, resources: {requests: {storage: 8Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  containers: [{name: app, image: busybox, volumeDevices: [{name: raw, devicePath: /dev/raw}], volumeMounts: [{name: formatted, mountPath: /data}]}]
  volumes:
  - {name: raw, persistentVolumeClaim: {claimName: raw}}
  - {name: formatted, persistentVolumeClaim: {claimName: formatted}}
`)
	if fs := mountAt(s, paths(s, s.ready("app"))["formatted"]).FSType; fs != "ext4" {
		t.Errorf("the formatted disk has %s", fs)
	}
	s.berth("exec", "-n", s.ns, "app", "--", "sh", "-c", "printf precious | dd of=/dev/raw bs=512 seek=20000 conv=fsync,notrunc,sync status=none && touch /data/x")
	// Not while it is in use: the claim waits for the pod, the disk for the claim.
	s.kubectl("delete", "pvc", "--all", "--wait=false")
	if b, err := os.ReadFile(raw); err != nil || !strings.Contains(string(b), "precious") {
		t.Errorf("what the pod wrote is not on the disk: %v", err)
	}
	s.kubectl("delete", "pod", "app")
	for _, path := range []string{"raw/disk", "formatted/disk"} {
		s.volumeAt(d.path(path), corev1.VolumeAvailable)
		b, err := os.ReadFile(d.path(path))
		if err != nil || strings.Trim(string(b[:1<<20]), "\x00") != "" || path == "raw/disk" && strings.Contains(string(b), "precious") {
			t.Errorf("%s is not blank (%v)", path, err)
		}
	}
	late := d.mounted("late/disk")
	s.volumeAt(late, corev1.VolumeAvailable)
}

// A wrong configuration is refused before anything is started, in words that name the field.
func TestWrongDiscoveryConfiguration(t *testing.T) {
	d := newLocalDisks(t)
	for want, classes := range map[string]string{
		"storageClassMap: c: hostDir: it is missing":                    "c: {mountDir: /a}",
		"storageClassMap: c: hostDir: \"/a/../etc\" has a .. in it":     "c: {hostDir: /a/../etc, mountDir: /a}",
		"storageClassMap: c: volumeMode: \"block\" is neither":          "c: {hostDir: /a, mountDir: /a, volumeMode: block}",
		"storageClassMap: b: hostDir: /a is that of a, too":             "a: {hostDir: /a, mountDir: /a}\nb: {hostDir: /a, mountDir: /b}",
		"unknown field \"namePatern\"":                                  "c: {hostDir: /a, mountDir: /a, namePatern: x}",
		"storageClassMap: c: blockCleanerCommand: stat /no/such: no su": "c: {hostDir: /a, mountDir: /a, blockCleanerCommand: [/no/such]}",
	} {
		in, err := instance.New(t.TempDir(), "--discovery-config", d.config(classes))
		if err != nil {
			t.Fatal(err)
		}
		refused(t, in, want)
		if entries, _ := os.ReadDir(in.Dir); len(entries) > 0 {
			t.Errorf("%s: %d entries in the data directory", want, len(entries))
		}
	}
	in, err := instance.New(t.TempDir(), "--discovery-config", d.path("none.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	refused(t, in, "none.yaml: no such file")
}
