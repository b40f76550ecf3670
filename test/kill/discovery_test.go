package kill

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// %[1]s is the host's directory. The directory dir is a mounted disk; raw and shredded are links to devices.
const discoveryClasses = `
dirs: {hostDir: %[1]s/disks/dirs, mountDir: /x}
raw: {hostDir: %[1]s/disks/raw, mountDir: /x, volumeMode: Block}
shredded: {hostDir: %[1]s/disks/shredded, mountDir: /x, volumeMode: Block, blockCleanerCommand: [/scripts/shred.sh, "1"]}
commanded: {hostDir: %[1]s/disks/commanded, mountDir: /x, volumeMode: Block, blockCleanerCommand: [/bin/true]}
`

const discoveryClaims = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %[1]s}
spec: {accessModes: [ReadWriteOnce], volumeMode: %[2]s, storageClassName: %[1]s, resources: {requests: {storage: 8Mi}}}
---
`

// notReady is the taint that waits for the disks.
const notReady = "example.com/disks-not-ready"

var discovered = map[string]string{"dirs": "Filesystem", "raw": "Block", "shredded": "Block", "commanded": "Block"}

// withDiscovery prepares the disks and the configuration.
func (s *script) withDiscovery() []string {
	made := filepath.Join(s.host, "disks")
	must := func(err error) {
		if err != nil {
			panic(err) // the machine is not as the test needs it
		}
	}
	for _, dir := range []string{"dirs/disk", "raw", "shredded", "commanded"} {
		must(os.MkdirAll(filepath.Join(made, dir), 0o755))
	}
	run := func(name string, args ...string) {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			panic(fmt.Sprintf("%s: %v: %s", name, err, out))
		}
	}
	dir := filepath.Join(made, "dirs/disk")
	run("mkfs.ext4", "-q", s.devices[0])
	run("mount", s.devices[0], dir)
	s.atEnd(func() { run("umount", dir) })
	must(os.Symlink(s.devices[1], filepath.Join(made, "raw/disk")))
	for _, name := range []string{"shredded", "commanded"} {
		image := filepath.Join(s.host, name+".img")
		must(os.WriteFile(image, nil, 0o600))
		must(os.Truncate(image, 16<<20))
		out, err := exec.Command("losetup", "--find", "--show", image).Output()
		must(err)
		dev := strings.TrimSpace(string(out))
		s.atEnd(func() { run("losetup", "--detach", dev) })
		must(os.Symlink(dev, filepath.Join(made, name, "disk")))
	}
	config := filepath.Join(s.host, "discovery")
	must(os.MkdirAll(config, 0o755))
	for key, value := range map[string]string{"storageClassMap": fmt.Sprintf(discoveryClasses, s.host), "removeNodeNotReadyTaint": "true", "provisionerNotReadyNodeTaintKey": notReady} {
		must(os.WriteFile(filepath.Join(config, key), []byte(value), 0o644))
	}
	return []string{"--pool-size", "2Gi", "--discovery-config", config}
}

// discoveryLife: disks are offered, claimed, written, released, wiped by each method, offered again, lost, and taken over from the
// original.
func (s *script) discoveryLife() []step {
	return []step{
		{"the node waits for its disks", s.taint},
		{"the classes are applied", func() error { return s.in.Apply(s.ctx, s.discoveryClassObjects()) }},
		{"every disk is offered once", func() error { return s.offered(corev1.VolumeAvailable) }},
		{"the taint is gone", s.untainted},
		{"the claims are bound", s.claimDisks},
		{"data is written", s.writeDisks},
		{"the claims are deleted", s.releaseDisks},
		{"every disk is blank and offered once again", func() error { return errors.Join(s.offered(corev1.VolumeAvailable), s.blank()) }},
		{"the volumes are the original's", s.asTheOriginal},
		{"they are taken over", s.adopted},
		{"a disk in use is lost and found", s.loseDisk},
		{"the disks are gone", s.withdrawDisks},
		{"nothing is left", s.nothingLeftOfDisks},
	}
}

func (s *script) discoveryClassObjects() string {
	text := ""
	for class := range discovered {
		text += "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: " + class + "}\nprovisioner: kubernetes.io/no-provisioner\nvolumeBindingMode: Immediate\n---\n"
	}
	return text
}

func (s *script) theNode() (*corev1.Node, error) {
	nodes, err := s.client.CoreV1().Nodes().List(s.ctx, metav1.ListOptions{})
	if err != nil || len(nodes.Items) != 1 {
		return nil, fmt.Errorf("%d nodes: %w", len(nodes.Items), errors.Join(err))
	}
	return &nodes.Items[0], nil
}

func (s *script) taint() error {
	node, err := s.theNode()
	if err != nil {
		return err
	}
	_, err = s.client.CoreV1().Nodes().Patch(s.ctx, node.Name, types.StrategicMergePatchType,
		[]byte(`{"spec":{"taints":[{"key":"`+notReady+`","effect":"NoSchedule"}]}}`), metav1.PatchOptions{})
	return err
}

func (s *script) untainted() error {
	node, err := s.theNode()
	if err != nil {
		return err
	}
	for _, t := range node.Spec.Taints {
		if t.Key == notReady {
			return errors.New("it is there")
		}
	}
	return nil
}

func (s *script) diskVolumes() (map[string]corev1.PersistentVolume, error) {
	list, err := s.client.CoreV1().PersistentVolumes().List(s.ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	found := map[string]corev1.PersistentVolume{}
	for _, pv := range list.Items {
		if _, twice := found[pv.Spec.StorageClassName]; twice {
			return nil, fmt.Errorf("two volumes for the disk of class %s", pv.Spec.StorageClassName)
		}
		found[pv.Spec.StorageClassName] = pv
	}
	return found, nil
}

func (s *script) offered(phase corev1.PersistentVolumePhase) error {
	volumes, err := s.diskVolumes()
	if err != nil {
		return err
	}
	for class := range discovered {
		if pv, has := volumes[class]; !has || pv.Status.Phase != phase {
			return fmt.Errorf("volume of %s: %s %q", class, pv.Name, pv.Status.Phase)
		}
	}
	return nil
}

func (s *script) claimDisks() error {
	text := ""
	for class, mode := range discovered {
		text += fmt.Sprintf(discoveryClaims, class, mode)
	}
	return errors.Join(s.in.Apply(s.ctx, text), s.offered(corev1.VolumeBound))
}

func (s *script) writeDisks() error {
	dir := filepath.Join(s.host, "disks/dirs/disk")
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "a/b"), 0o755), os.WriteFile(filepath.Join(dir, "a/b/precious"), []byte("x"), 0o600)); err != nil {
		return err
	}
	for _, class := range []string{"raw", "shredded"} {
		dev, err := os.OpenFile(filepath.Join(s.host, "disks", class, "disk"), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = dev.WriteAt([]byte("precious"), 0)
		if err = errors.Join(err, dev.Sync(), dev.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (s *script) releaseDisks() error {
	for class := range discovered {
		if err := s.client.CoreV1().PersistentVolumeClaims(ns).Delete(s.ctx, class, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	claims, err := s.client.CoreV1().PersistentVolumeClaims(ns).List(s.ctx, metav1.ListOptions{})
	if err == nil && len(claims.Items) > 0 {
		err = fmt.Errorf("%d claims are left", len(claims.Items))
	}
	return err
}

func (s *script) blank() error {
	if _, err := os.Stat(filepath.Join(s.host, "disks/dirs/disk/a")); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the directory has data: %w", errors.Join(err))
	}
	for _, class := range []string{"raw", "shredded"} {
		b, err := os.ReadFile(filepath.Join(s.host, "disks", class, "disk"))
		if err != nil || strings.Trim(string(b[:1<<20]), "\x00") != "" {
			return fmt.Errorf("the disk of %s is not blank (%w)", class, errors.Join(err))
		}
	}
	return nil
}

// asTheOriginal takes from a volume what the original does not write.
func (s *script) asTheOriginal() error {
	volumes, err := s.diskVolumes()
	if err != nil {
		return err
	}
	if s.unready { // once
		return nil
	}
	for _, pv := range volumes {
		if _, err := s.client.CoreV1().PersistentVolumes().Patch(s.ctx, pv.Name, types.MergePatchType,
			[]byte(`{"metadata":{"annotations":{"storage.berth.io/disk":null}}}`), metav1.PatchOptions{}); err != nil {
			return err
		}
	}
	s.unready = true
	return nil
}

func (s *script) adopted() error {
	volumes, err := s.diskVolumes()
	if err != nil {
		return err
	}
	for class, pv := range volumes {
		if pv.Annotations["storage.berth.io/disk"] == "" {
			return fmt.Errorf("the volume of %s names no disk", class)
		}
	}
	return s.offered(corev1.VolumeAvailable)
}

// loseDisk unmounts a disk that a claim has, and mounts it again when that was told.
func (s *script) loseDisk() error {
	dir := filepath.Join(s.host, "disks/dirs/disk")
	if err := s.in.Apply(s.ctx, fmt.Sprintf(discoveryClaims, "dirs", "Filesystem")); err != nil {
		return err
	}
	volumes, err := s.diskVolumes()
	if err != nil {
		return err
	}
	pv := volumes["dirs"]
	if pv.Status.Phase != corev1.VolumeBound {
		return fmt.Errorf("it is %q", pv.Status.Phase)
	}
	mounted := exec.Command("mountpoint", "-q", dir).Run() == nil
	switch {
	case mounted && !s.bared[0]:
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		s.bared[0] = true
		return errors.New("just unmounted")
	case !mounted:
		if pv.Status.Reason != "DiskGone" {
			return fmt.Errorf("status %+v", pv.Status)
		}
		if out, err := exec.Command("mount", s.devices[0], dir).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return errors.New("just mounted again")
	case pv.Status.Reason != "":
		return fmt.Errorf("status %+v", pv.Status)
	}
	return nil
}

// withdrawDisks deletes the claim and takes the entries away: volumes that nobody has go with their disks.
func (s *script) withdrawDisks() error {
	if err := s.client.CoreV1().PersistentVolumeClaims(ns).Delete(s.ctx, "dirs", metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	for _, class := range []string{"raw", "shredded", "commanded"} {
		if err := os.Remove(filepath.Join(s.host, "disks", class, "disk")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	volumes, err := s.diskVolumes()
	if err != nil {
		return err
	}
	if pv := volumes["dirs"]; len(volumes) != 1 || pv.Status.Phase != corev1.VolumeAvailable {
		return fmt.Errorf("%d volumes, that of dirs is %q", len(volumes), pv.Status.Phase)
	}
	return nil
}

// nothingLeftOfDisks: one disk is still there, and so is its volume; nothing else is.
func (s *script) nothingLeftOfDisks() error {
	volumes, err := s.diskVolumes()
	if err == nil && len(volumes) != 1 {
		err = fmt.Errorf("%d volumes", len(volumes))
	}
	return err
}
