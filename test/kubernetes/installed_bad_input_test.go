//go:build kubernetes

package kubernetes

import (
	"fmt"
	"strings"
	"testing"
)

// What is wrong in an object is said in an event of the object that the user made, with the field's name; and others go on.
func TestInstalledBadInput(t *testing.T) {
	claim := func(name, class, size string) string {
		return fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec: {accessModes: [ReadWriteOnce], storageClassName: %s, resources: {requests: {storage: %s}}}
---`, name, class, size)
	}
	class := func(name, fields string) string {
		return fmt.Sprintf(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %s}
provisioner: %s
%s
---`, name, driverName, fields)
	}
	static := func(name, handle string) string {
		return fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: %[1]s}
spec:
  capacity: {storage: 64Mi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: %[1]s
  csi: {driver: %[2]s, volumeHandle: '%[3]s'}
---`, name, driverName, handle) + claim("claim", name, "64Mi") + podYAML("pod", "persistentVolumeClaim: {claimName: claim}")
	}
	for _, test := range []struct {
		name           string
		yaml           func(unique string) string
		object, reason string
		words          []string
		delete         string // what has no namespace, by the unique name
	}{
		{"a parameter that there is not", func(u string) string {
			return class(u, "parameters: {colour: blue}") + claim("claim", u, "64Mi")
		}, "claim", "ProvisioningFailed", []string{`colour`, "parameter"}, "storageclass"},
		{"a secret that there is not", func(u string) string {
			return class(u, "parameters: {csi.storage.k8s.io/provisioner-secret-name: nobodys, csi.storage.k8s.io/provisioner-secret-namespace: default}") + claim("claim", u, "64Mi")
		}, "claim", "ProvisioningFailed", []string{`secret`, `nobodys`}, "storageclass"},
		{"a secret without its namespace", func(u string) string {
			return class(u, "parameters: {csi.storage.k8s.io/provisioner-secret-name: nobodys}") + claim("claim", u, "64Mi")
		}, "claim", "ProvisioningFailed", []string{"Provisioner secrets", "Both must be specified"}, "storageclass"},
		{"larger than any pool", func(u string) string {
			return class(u, "") + claim("claim", u, "900Ti")
		}, "claim", "ProvisioningFailed", []string{"pool"}, "storageclass"},
		{"a filesystem that there is not", func(u string) string {
			return class(u, "parameters: {csi.storage.k8s.io/fstype: reiserfs}") + claim("claim", u, "64Mi")
		}, "claim", "ProvisioningFailed", []string{"reiserfs", "ext4"}, "storageclass"},
		{"a node that there is not", func(u string) string {
			return class(u, "allowedTopologies: [{matchLabelExpressions: [{key: topology.block.csi.berth.io/node, values: [elsewhere]}]}]") + claim("claim", u, "64Mi")
		}, "claim", "ProvisioningFailed", []string{"elsewhere"}, "storageclass"},
		{"a topology that contradicts the pod's node", func(u string) string {
			return class(u, "volumeBindingMode: WaitForFirstConsumer\nallowedTopologies: [{matchLabelExpressions: [{key: topology.block.csi.berth.io/node, values: [elsewhere]}]}]") +
				claim("claim", u, "64Mi") + podYAML("pod", "persistentVolumeClaim: {claimName: claim}", "  nodeSelector: {kubernetes.io/hostname: node1}")
		}, "pod", "FailedScheduling", []string{"node"}, "storageclass"},
		{"a volume that is not ours", func(u string) string { return static(u, "vol-0123456789abcdef0") }, "pod", "FailedAttachVolume", []string{"vol-0123456789abcdef0"}, "persistentvolume"},
		{"a handle that leads elsewhere", func(u string) string { return static(u, "../../etc") }, "pod", "FailedAttachVolume", []string{`invalid volume id`}, "persistentvolume"},
		{"a handle for a shell", func(u string) string { return static(u, "$(touch /var/lib/berth/it-ran);`id`|x") }, "pod", "FailedAttachVolume", []string{`invalid volume id`}, "persistentvolume"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := tell(t)
			s.installed()
			s.last = append(s.last, func() error {
				_, err := output(shared.inside(s.ctx, "kubectl", "delete", "--timeout=60s", test.delete, s.ns))
				return err
			})
			s.apply(test.yaml(s.ns))
			for _, words := range test.words {
				s.event(test.object, test.reason, words)
			}
			if strings.Contains(s.inside("ls", "/var/lib/berth"), "it-ran") {
				t.Error("a handle reached a shell")
			}
		})
	}
	s := tell(t)
	s.installed()
	s.journey("others")
}
