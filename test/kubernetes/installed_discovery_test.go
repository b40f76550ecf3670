//go:build kubernetes

package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// discovers installs Berth by Helm's chart with discovery of disks by that ConfigMap. Each directory is the same for
// the node and for its agent.
func (s *story) discovers(in *installation, config map[string]string, directories ...string) {
	s.Helper()
	type directory struct {
		HostDir  string `json:"hostDir"`
		MountDir string `json:"mountDir"`
	}
	var disks []directory
	for _, d := range directories {
		disks = append(disks, directory{d, d})
	}
	values, err := json.Marshal(map[string]any{
		"pool":       map[string]string{"size": "12Gi"},
		"flexVolume": map[string]string{"pluginDir": "/var/lib/kubelet/volumeplugins"},
		"discovery":  map[string]any{"enabled": true, "jobs": true, "config": config, "directories": disks},
	})
	if err != nil {
		s.Fatal(err)
	}
	manifests, err := output(exec.Command("go", "-C", "../deploy", "tool", "helm", "template", "berth", "../../deploy/helm/berth",
		"--namespace", system, "--kube-version", "1.36", "--set-json", "node="+string(values)))
	if err != nil {
		s.Fatal(err)
	}
	cmd := shared.inside(s.ctx, "kubectl", "-n", system, "apply", "--server-side", "--force-conflicts", "-f", "-")
	cmd.Stdin = strings.NewReader(manifests)
	if _, err := output(cmd); err != nil {
		s.Fatal(err)
	}
	// A ConfigMap alone reaches a running agent after a minute or two.
	s.inside("kubectl", "-n", system, "rollout", "restart", agents)
	if err := in.ready(s.ctx); err != nil {
		s.Fatal(err)
	}
}

// eventOf waits for an event on what has no namespace.
func (s *story) eventOf(object, reason, text string) {
	s.Helper()
	other := *s
	other.ns = "default"
	other.event(object, reason, text)
}

// localVolume waits for an Available volume of a class, other than the one of that uid.
func (s *story) localVolume(class string, other *corev1.PersistentVolume) *corev1.PersistentVolume {
	s.Helper()
	var found *corev1.PersistentVolume
	s.until("an Available volume of class "+class, func() error {
		var list corev1.PersistentVolumeList
		if err := s.read(&list, "persistentvolume"); err != nil {
			return err
		}
		var seen []string
		for _, pv := range list.Items {
			if pv.Spec.StorageClassName == class {
				seen = append(seen, fmt.Sprintf("%s %s %s", pv.Name, pv.Status.Phase, pv.Status.Message))
				if pv.Status.Phase == corev1.VolumeAvailable && (other == nil || pv.UID != other.UID) {
					found = &pv
					return nil
				}
			}
		}
		return fmt.Errorf("there are %q", seen)
	})
	return found
}

// Local disks are offered, used, emptied when they are released, a device by a Job, and offered again. A configuration that cannot be used, at the
// agent's start or later, or a directory that is not there, is said by an event of the node with the field's name, and the node's volumes go on.
func TestInstalledDiscovery(t *testing.T) {
	s := tell(t)
	in := s.installed()
	root := "/var/lib/disks-" + s.ns
	directories, devices := root+"/directories", root+"/devices"
	s.inside("sh", "-ec", `
		mkdir -p "$1/data" "$1/directories/first" "$1/devices"
		mount --bind "$1/data" "$1/directories/first"
		truncate --size=64M "$1/disk"
		ln -s "$(losetup --find --show "$1/disk")" "$1/devices/first"`, "sh", root)
	s.last = append(s.last, func() error {
		_, err := output(shared.inside(context.Background(), "sh", "-ec", `
			losetup --detach "$(readlink "$1/devices/first")"
			umount "$1/directories/first"
			rm -r --one-file-system "$1"`, "sh", root))
		return err
	})
	files, raw := s.ns+"-files", s.ns+"-raw"
	config := map[string]string{
		"storageClassMap": fmt.Sprintf("%s: {hostDir: %s, mountDir: %[2]s}\n%[3]s: {hostDir: %[4]s, mountDir: %[4]s, volumeMode: Block}\n", files, directories, raw, devices),
		// The Job runs Berth's own image.
		"useJobForCleaning": "true",
	}
	for _, class := range []string{files, raw} {
		s.apply(fmt.Sprintf(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %s}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
`, class))
	}
	s.last = append(s.last, func() error {
		_, err := output(shared.inside(context.Background(), "kubectl", "delete", "--ignore-not-found", "storageclass/"+files, "storageclass/"+raw))
		return err
	})
	s.last = append(s.last, in.apply) // as it is in deploy/
	s.discovers(in, config, directories, devices)
	directory, device := s.localVolume(files, nil), s.localVolume(raw, nil)

	s.apply(fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: files}
spec: {accessModes: [ReadWriteOnce], storageClassName: %s, resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: raw}
spec: {accessModes: [ReadWriteOnce], storageClassName: %s, volumeMode: Block, resources: {requests: {storage: 1Mi}}}
---`, files, raw) + podYAML("files", "persistentVolumeClaim: {claimName: files}") + rawPod("raw"))
	s.ready("files")
	s.ready("raw")
	s.inPod("files", "sh", "-c", "echo kept >/data/file")
	s.inPod("raw", "sh", "-c", "echo kept | dd of=/dev/xvda conv=fsync,notrunc 2>/dev/null")
	if got := s.inside("head", "-c", "5", devices+"/first"); got != "kept\n" {
		t.Errorf("the device begins with %q", got)
	}
	s.deletePod("files")
	s.deletePod("raw")
	s.kubectl("delete", "persistentvolumeclaim", "files", "raw", "--timeout=60s")
	s.localVolume(files, directory)
	s.localVolume(raw, device)
	of := *s
	of.ns = system
	of.event("cleanup-"+device.Name, "Completed", "Job completed")
	if left := s.inside("ls", "-A", root+"/data"); left != "" {
		t.Errorf("in the directory there is %q", left)
	}
	if got := s.inside("head", "-c", "5", devices+"/first"); strings.Trim(got, "\x00") != "" {
		t.Errorf("the device that was cleaned begins with %q", got)
	}

	t.Run("a directory that is not there", func(t *testing.T) {
		s := s.part(t)
		missing := root + "/missing"
		more := map[string]string{"storageClassMap": config["storageClassMap"] + fmt.Sprintf("slip: {hostDir: %s, mountDir: %[1]s}\n", missing)}
		s.discovers(in, more, directories, devices, missing)
		s.eventOf("node1", "DiscoveryDirectory", "class slip: hostDir "+missing+" has nothing")
		more = map[string]string{"storageClassMap": config["storageClassMap"] + "unseen: {hostDir: /srv/unseen, mountDir: /srv/unseen}\n"}
		s.discovers(in, more, directories, devices)
		s.eventOf("node1", "DiscoveryDirectory", "class unseen: open /srv/unseen: no such file or directory")
		s.journey("others")
	})
	t.Run("a configuration that cannot be used", func(t *testing.T) {
		s := s.part(t)
		wrong := map[string]string{"storageClassMap": fmt.Sprintf("%s: {hostDir: late, mountDir: /x}", files)}
		s.discovers(in, wrong, directories, devices)
		s.eventOf("node1", "DiscoveryConfigInvalid", `storageClassMap: `+files+`: hostDir: "late" is not an absolute path; no disk is offered`)
		s.journey("others")
		s.discovers(in, map[string]string{"storageClassMap": files + ": ["}, directories, devices)
		s.eventOf("node1", "DiscoveryConfigInvalid", "discovery configuration /etc/berth/discovery: storageClassMap: ")
		s.journey("still")
		s.get(&corev1.PersistentVolume{}, "persistentvolume", directory.Name) // is still there
	})
	s.discovers(in, config, directories, devices)
	// Taken away before their disks are: nobody has them.
	if err := in.apply(); err != nil {
		t.Fatal(err)
	}
	s.inside("kubectl", "delete", "persistentvolume", directory.Name, device.Name, "--timeout=60s")
}

// rawPod is a pod that sleeps, with the claim of its name as the device /dev/xvda.
func rawPod(name string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - name: app
    image: busybox:1.37
    command: [sh, -c, "trap exit TERM; sleep infinity & wait"]
    volumeDevices: [{name: data, devicePath: /dev/xvda}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: %[1]s}}]
---`, name)
}

// A node vanishes: a local volume that nobody has goes with it, one that somebody has says so, its claim too, and takes it back when the node
// comes again. A pool's object goes with its node as well.
func TestInstalledNodeVanishes(t *testing.T) {
	s := tell(t)
	s.installed()
	var pool struct {
		Metadata struct {
			OwnerReferences []struct{ Kind, Name string }
		}
	}
	s.get(&pool, "blockpools.storage.berth.io", "node1")
	if o := pool.Metadata.OwnerReferences; len(o) != 1 || o[0].Kind != "Node" || o[0].Name != "node1" {
		t.Errorf("the pool of node1 belongs to %v", o)
	}
	node := fmt.Sprintf(`
apiVersion: v1
kind: Node
metadata: {name: %[1]s, labels: {kubernetes.io/hostname: %[1]s}}
---`, s.ns)
	volume := func(name string) string {
		return fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolume
metadata:
  name: %[1]s-%[2]s
  annotations: {pv.kubernetes.io/provisioned-by: local-volume-provisioner-%[1]s}
spec:
  capacity: {storage: 64Mi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Delete
  storageClassName: %[1]s
  local: {path: /mnt/disks/%[2]s}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%[1]s]}]}]}}
---`, s.ns, name)
	}
	// A volume of ours on a node that will not come back.
	s.apply(fmt.Sprintf(`
apiVersion: storage.berth.io/v1alpha1
kind: BlockVolume
metadata: {name: vol-%[1]s, labels: {storage.berth.io/node: gone-%[1]s}, finalizers: [storage.berth.io/node]}
spec: {node: gone-%[1]s, name: lost, sizeBytes: 67108864}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: %[1]s-lost, annotations: {pv.kubernetes.io/provisioned-by: %[2]s}}
spec:
  capacity: {storage: 64Mi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Delete
  storageClassName: %[1]s
  claimRef: {namespace: %[1]s, name: was-here, uid: 00000000-0000-0000-0000-000000000001}
  csi: {driver: %[2]s, volumeHandle: vol-%[1]s}
`, s.ns, driverName))
	s.inside("kubectl", "wait", "--for=delete", "--timeout=120s", "persistentvolume/"+s.ns+"-lost", "blockvolume/vol-"+s.ns)
	s.apply(node + volume("had") + fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: claim}
spec: {accessModes: [ReadWriteOnce], storageClassName: %[1]s, volumeName: %[1]s-had, resources: {requests: {storage: 64Mi}}}
`, s.ns))
	s.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", "--timeout=60s", "persistentvolumeclaim/claim")
	s.apply(volume("free"))
	s.inside("kubectl", "wait", "--for=jsonpath={.status.phase}=Available", "--timeout=60s", "persistentvolume/"+s.ns+"-free")

	s.inside("kubectl", "delete", "node", s.ns)
	s.inside("kubectl", "wait", "--for=delete", "--timeout=120s", "persistentvolume/"+s.ns+"-free")
	s.eventOf(s.ns+"-had", "NodeGone", s.ns)
	s.event("claim", "ReferencedNodeDeleted", s.ns)
	reason := func() string {
		return s.inside("kubectl", "get", "persistentvolume", s.ns+"-had", "-o", "jsonpath={.status.phase} {.status.reason}")
	}
	if got := reason(); got != "Bound NodeGone" {
		t.Errorf("the volume that somebody has is %q", got)
	}
	s.apply(node)
	s.eventOf(s.ns+"-had", "NodeBack", s.ns)
	if got := strings.TrimSpace(reason()); got != "Bound" {
		t.Errorf("when the node is back the volume is %q", got)
	}
	s.kubectl("delete", "persistentvolumeclaim", "claim", "--timeout=60s")
	s.inside("kubectl", "delete", "node", s.ns)
	// Released, it would wait ten minutes for the node.
	s.inside("kubectl", "delete", "persistentvolume", s.ns+"-had", "--timeout=60s")
}
