//go:build kubernetes

package kubernetes

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A driver that says attach:false is called by the kubelet alone: mount with the pod's names, its secret and its group,
// and unmount, whereafter nothing of the volume is left in the pod's directory.
func TestFlexVolumeThatOnlyMounts(t *testing.T) {
	s := tell(t)
	driver, calls := s.installFixture("bind")
	source := s.nodeDirectory("bind")
	if err := os.WriteFile(shared.run(source, "before"), []byte("from the node"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.apply(fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: login}
type: %s
stringData: {password: "secret of the test"}
---`, driver) + podYAML("reader", fmt.Sprintf(
		`flexVolume: {driver: %s, fsType: ext4, secretRef: {name: login}, options: {source: "%s", colour: blue}}`, driver, source),
		"  securityContext: {fsGroup: 4711}"))
	pod := s.ready("reader")

	if got := s.inPod("reader", "cat", "/data/before"); got != "from the node" {
		t.Errorf("the pod reads %q", got)
	}
	s.inPod("reader", "sh", "-c", "echo from the pod >/data/after")
	if b, err := os.ReadFile(shared.run(source, "after")); err != nil || string(b) != "from the pod\n" {
		t.Errorf("the node reads %q, %v", b, err)
	}

	mount := calls.one(t, "mount")
	dir := fmt.Sprintf("/var/lib/kubelet/pods/%s/volumes/%s/data", pod.UID, strings.Replace(driver, "/", "~", 1))
	if mount[1] != dir {
		t.Errorf("mounted at %s, not at %s", mount[1], dir)
	}
	var options map[string]string
	if err := json.Unmarshal([]byte(mount[2]), &options); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"kubernetes.io/fsType":              "ext4",
		"kubernetes.io/readwrite":           "rw",
		"kubernetes.io/pvOrVolumeName":      "data",
		"kubernetes.io/pod.name":            "reader",
		"kubernetes.io/pod.namespace":       s.ns,
		"kubernetes.io/pod.uid":             string(pod.UID),
		"kubernetes.io/serviceAccount.name": "default",
		"kubernetes.io/mounterArgs.FsGroup": "4711",
		"kubernetes.io/secret/password":     base64.StdEncoding.EncodeToString([]byte("secret of the test")),
		"source":                            source,
		"colour":                            "blue",
	} {
		if options[key] != want {
			t.Errorf("option %s is %q, not %q", key, options[key], want)
		}
	}

	s.deletePod("reader")
	if unmount := calls.one(t, "unmount"); unmount[1] != dir {
		t.Errorf("unmounted %s, not %s", unmount[1], dir)
	}
	if _, err := os.Stat(shared.run(dir)); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", dir, err)
	}
	if slices.Contains(calls.names(t), "attach") {
		t.Errorf("a driver without attach was asked to attach: %q", calls.names(t))
	}
}

// readOnly of the pod's volume reaches the driver as ro, and the pod cannot write.
func TestFlexVolumeReadOnly(t *testing.T) {
	s := tell(t)
	driver, _ := s.installFixture("bind")
	source := s.nodeDirectory("read-only")
	s.apply(podYAML("reader", fmt.Sprintf(`flexVolume: {driver: %s, readOnly: true, options: {source: "%s"}}`, driver, source)))
	s.ready("reader")
	if options := strings.Split(s.mountInPod("reader", "/data")[3], ","); !slices.Contains(options, "ro") {
		t.Errorf("mounted with %q", options)
	}
}

// What a driver says when it fails is what the user reads in the pod's events; mended, the volume is mounted.
func TestFlexVolumeFailureIsToldAndTriedAgain(t *testing.T) {
	s := tell(t)
	driver, _ := s.installFixture("bind")
	source := "/var/lib/flexvolume-test-" + s.ns
	s.apply(podYAML("reader", fmt.Sprintf(`flexVolume: {driver: %s, options: {source: "%s"}}`, driver, source)))
	s.event("reader", "FailedMount", "there is no directory "+source)
	if err := os.Mkdir(shared.run(source), 0o755); err != nil {
		t.Fatal(err)
	}
	s.ready("reader")
}

// The controller manager attaches before the kubelet mounts, and detaches after it has unmounted; what the first pod
// wrote, the second reads.
func TestFlexVolumeThatAttaches(t *testing.T) {
	s := tell(t)
	driver, calls := s.installFixture("loop")
	volume := s.claim(driver, "64Mi", "ext4", "{}")
	s.apply(podYAML("first", "persistentVolumeClaim: {claimName: data}"))
	s.ready("first")
	s.inPod("first", "sh", "-c", "echo kept >/data/file; sync")
	if view := s.mountInPod("first", "/data"); view[2] != "ext4" || !strings.HasPrefix(view[0], "/dev/loop") {
		t.Errorf("the pod has %q mounted", view)
	}
	if got := s.attached(); !strings.Contains(got, volume) {
		t.Errorf("the node's attached volumes are %q", got)
	}
	calls.inOrder(t, "attach", "waitforattach", "mountdevice", "mount")
	if attach := calls.one(t, "attach"); attach[2] != "node1" {
		t.Errorf("attached to %q", attach[2])
	}
	s.until("the controller manager to ask whether the volume is attached", func() error {
		if !slices.Contains(calls.names(t), "isattached") {
			return fmt.Errorf("calls: %q", calls.names(t))
		}
		return nil
	})

	s.deletePod("first")
	s.detached(volume)
	calls.inOrder(t, "mountdevice", "unmountdevice", "detach")
	if detach := calls.one(t, "detach"); detach[1] != volume || detach[2] != "node1" {
		t.Errorf("detached by %q", detach)
	}
	if devices := s.inside("losetup", "--noheadings", "--associated", "/var/lib/flexvolume-loop/"+volume); devices != "" {
		t.Errorf("left attached: %s", devices)
	}

	s.apply(podYAML("second", "persistentVolumeClaim: {claimName: data}"))
	s.ready("second")
	if got := s.inPod("second", "cat", "/data/file"); got != "kept\n" {
		t.Errorf("the second pod reads %q", got)
	}
}

// claim makes the claim "data" and the PersistentVolume of a FlexVolume driver that it is bound to, and returns that one's
// name. options is YAML.
func (s *story) claim(driver, size, fsType, options string) (volume string) {
	s.Helper()
	volume = "data-" + s.ns
	s.apply(fmt.Sprintf(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: made-by-hand}
provisioner: kubernetes.io/no-provisioner
allowVolumeExpansion: true
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: %[1]s}
spec:
  capacity: {storage: %[4]s}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: made-by-hand
  claimRef: {namespace: %[2]s, name: data}
  flexVolume: {driver: %[3]s, fsType: %[5]s, options: %[6]s}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: made-by-hand
  volumeName: %[1]s
  resources: {requests: {storage: %[4]s}}
`, volume, s.ns, driver, size, fsType, options))
	s.last = append(s.last, func() error {
		_, err := output(shared.inside(context.Background(), "kubectl", "delete", "persistentvolume", volume, "--timeout=60s"))
		return err
	})
	return volume
}

// attached are the volumes that the controller manager says are attached to the node.
func (s *story) attached() string {
	s.Helper()
	return s.kubectl("get", "node", "-o", "jsonpath={.items[*].status.volumesAttached[*].name}")
}

// detached waits until a volume is attached no more.
func (s *story) detached(volume string) {
	s.Helper()
	s.until(volume+" detached", func() error {
		if got := s.attached(); strings.Contains(got, volume) {
			return fmt.Errorf("the node's attached volumes are %q", got)
		}
		return nil
	})
}

// nodeDirectory makes a directory on the node, as the node knows it: below /var/lib.
func (s *story) nodeDirectory(name string) string {
	s.Helper()
	dir := fmt.Sprintf("/var/lib/%s-%s", name, s.ns)
	if err := os.Mkdir(shared.run(dir), 0o755); err != nil {
		s.Fatal(err)
	}
	return dir
}

// calls are what a fixture driver was called with, the oldest first.
type calls string

// installFixture installs a driver of testdata under a vendor of this story alone.
func (s *story) installFixture(name string) (driver string, made calls) {
	s.Helper()
	driver = s.installDriver(s.ns, name, filepath.Join("testdata", "flexvolume", name))
	return driver, calls(shared.run("run", strings.Replace(driver, "/", "~", 1)+".calls"))
}

func (c calls) all(t *testing.T) [][]string {
	t.Helper()
	b, err := os.ReadFile(string(c))
	if err != nil {
		t.Fatal(err)
	}
	var all [][]string
	for call := range strings.SplitSeq(strings.TrimSuffix(string(b), "\n\n"), "\n\n") {
		all = append(all, strings.Split(call, "\n"))
	}
	return all
}

func (c calls) names(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, call := range c.all(t) {
		names = append(names, call[0])
	}
	return names
}

// one is the only call of that name.
func (c calls) one(t *testing.T, name string) []string {
	t.Helper()
	var found [][]string
	for _, call := range c.all(t) {
		if call[0] == name {
			found = append(found, call)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d calls of %s among %q", len(found), name, c.names(t))
	}
	return found[0]
}

// inOrder says whether the first calls of these names came in this order.
func (c calls) inOrder(t *testing.T, names ...string) {
	t.Helper()
	made, last := c.names(t), -1
	for _, name := range names {
		at := slices.Index(made, name)
		if at <= last {
			t.Errorf("wanted %q in order, the calls were %q", names, made)
			return
		}
		last = at
	}
}
