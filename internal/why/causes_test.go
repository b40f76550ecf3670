package why

import (
	"strings"
	"testing"
)

// TestWordings: error messages as the components tell them, and what they mean.
func TestWordings(t *testing.T) {
	for message, want := range map[string]string{
		`failed to provision volume with StorageClass "x": error getting handle for DataSource Type VolumeSnapshot by Name before: snapshot before is not Ready`: "source-not-ready",
		`MountVolume.NewMounter initialization failed for volume "l" : path "/mnt/disks/a" does not exist`:                                                       "local-path-missing",
		`create Pod web-1 in StatefulSet web failed error: admission webhook "policy.example.com" denied the request: sign it`:                                   "webhook",
		`Internal error occurred: failed calling webhook "policy.example.com": failed to call webhook: Post "https://p.svc:443": connection refused`:             "webhook-down",
		`AttachVolume.Attach failed for volume "v" : CSINode n1 does not contain driver foo.csi.example.com`:                                                     "driver-not-registered",
		`AttachVolume.Attach failed for volume "v" : timed out waiting for external-attacher of foo.csi.example.com CSI driver to attach volume h`:               "attacher-silent",
		`VAC "fast" does not exist.`: "attributes-class-missing",
		`Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox "1": plugin failed`:                                        "sandbox",
		`rpc error: code = Internal desc = RequestLimitExceeded: Request limit exceeded.`:                                                                              "throttled",
		`running PreBind plugin "VolumeBinding": binding volumes: context deadline exceeded`:                                                                           "unbound-claim",
		`0/1 nodes are available: persistentvolumeclaim "data" not found.`:                                                                                             "claim-not-found",
		`0/1 nodes are available: persistentvolumeclaim "data" is being deleted.`:                                                                                      "claim-deleting",
		`0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.`:                                                                                   "unbound-claim",
		`0/2 nodes are available: 2 node(s) did not have enough free storage.`:                                                                                         "no-free-storage",
		`0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind.`:                                                                         "no-matching-volume",
		`0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity.`:                                                                            "node-affinity-conflict",
		`0/2 nodes are available: 1 node(s) had volume node affinity conflict, 1 Insufficient memory.`:                                                                 "node-affinity-conflict",
		`0/1 nodes are available: 1 Insufficient nvidia.com/gpu.`:                                                                                                      "insufficient",
		`0/1 nodes are available: 1 node(s) exceed max volume count.`:                                                                                                  "volume-limit",
		`0/1 nodes are available: 1 node(s) had untolerated taint(s).`:                                                                                                 "tainted",
		`0/1 nodes are available: 1 Too many pods.`:                                                                                                                    "too-many-pods",
		`no nodes available to schedule pods`:                                                                                                                          "no-nodes",
		`0/1 nodes are available: 1 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod.`:                 "claim-in-use-by-one",
		`0/1 nodes are available: the pod demands spec.resourceClaims (dynamic resource allocation), which Berth's scheduler does not support; remove them.`:           "not-supported",
		`binding volumes: provisioning failed for PVC "data"`:                                                                                                          "provisioning-failed",
		`failed to provision volume with StorageClass "x": rpc error: code = ResourceExhausted desc = not enough room`:                                                 "pool-full",
		`write /dev/loop0: no space left on device`:                                                                                                                    "pool-full",
		`rpc error: code = InvalidArgument desc = access mode MULTI_NODE_MULTI_WRITER is not supported`:                                                                "access-mode",
		`storageclass.storage.k8s.io "no-such-class" not found`:                                                                                                        "class-not-found",
		`Multi-Attach error for volume "pvc-1" Volume is already exclusively attached to one node`:                                                                     "multi-attach",
		`MountVolume.SetUp failed for volume "s" : secret "app-secret" not found`:                                                                                      "secret-missing",
		`MountVolume.SetUp failed for volume "c" : configmaps "app" not found`:                                                                                         "configmap-missing",
		`MountVolume.SetUp failed for volume "c" : references non-existent config key: nginx.conf`:                                                                     "key-missing",
		`waiting for a node that serves volumes of type "rbd" (volume "x")`:                                                                                            "not-served",
		`volume "x" is of type "rbd", which this node does not serve`:                                                                                                  "not-served",
		`kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: driver name foo.csi.example.com not found in the list of registered CSI drivers`: "driver-not-registered",
		`mount failed: exit status 32 mount: wrong fs type, bad option, bad superblock on /dev/loop3`:                                                                  "wrong-filesystem",
		`mount: unknown mount option 'nobarier'`:                                                                                                                       "mount-option",
		`rpc error: code = NotFound desc = volume "x" not found`:                                                                                                       "volume-not-found",
		`rpc error: code = DeadlineExceeded desc = context deadline exceeded`:                                                                                          "driver-slow",
		`rpc error: code = Unavailable desc = connection error: dial unix /p/csi.sock: connect: connection refused`:                                                    "driver-down",
		`rpc error: code = PermissionDenied desc = no`:                                                                                                                 "forbidden",
		`hostPath type check failed: /data is not a directory`:                                                                                                         "host-path",
		`pods "x" is forbidden: exceeded quota: small, requested: requests.storage=1Gi`:                                                                                "quota",
		`Job pods need a container runtime; this node only holds volumes`:                                                                                              "runtime-needed",
		`access mode MULTI_NODE_MULTI_WRITER is not served: a volume of this pool is usable on one node (ReadWriteOnce or ReadWriteOncePod) (InvalidArgument)`:         "access-mode",
		`size out of range: larger than the pool: 943718400 MiB are wanted, the pool holds at most 2821 MiB (OutOfRange)`:                                              "pool-full",
		`volume is ReadWriteOncePod and pod default/old has it on this node`:                                                                                           "claim-in-use-by-one",
		`size out of range: 104857600 bytes are too few for xfs, which needs at least 300 MiB (OutOfRange)`:                                                            "too-small",
		`in use: grow the ext4 at /p: it can be grown only while it is not mounted (this process lacks CAP_SYS_RESOURCE)`:                                              "grow-unmounted",
		`MountVolume.SetUp failed for volume "s" : secret "app" does not exist in namespace "default"; the volume is mounted as soon as it does`:                       "secret-missing",
		`MountVolume.SetUp failed for volume "s" : configMap "app" does not exist in namespace "default"; the volume is mounted as soon as it does`:                    "configmap-missing",
		`MountVolume.SetUp failed for volume "s" : configMap "app" has no key "nope"`:                                                                                  "key-missing",
		`fsType "zfs" is not served (ext4, xfs or btrfs) (InvalidArgument)`:                                                                                            "filesystem-not-served",
		`error getting deleter volume plugin for volume "hp": no deletable volume plugin matched`:                                                                      "no-deleter",
		`No recycler plugin found for the volume!`:                                                                                                                     "no-recycler",
		`something that nobody has seen before`:                                                                                                                        "",
	} {
		p := inPlainWords(message)
		got := ""
		if p != nil {
			got = p.Cause
		}
		if got != want {
			t.Errorf("%s\n\tgot %q, want %q", message, got, want)
		}
	}
}

// TestWordingsAreWhole: each has a name of its own, words and advice.
func TestWordingsAreWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, w := range wordings {
		if seen[w.name] || w.what == "" || w.advice == "" || !strings.ContainsAny(w.what[len(w.what)-1:], ".1") {
			t.Errorf("%s: %q %q", w.name, w.what, w.advice)
		}
		seen[w.name] = true
	}
	seen = map[string]bool{} // a cause that is also known by its words has the same name
	for _, c := range causes {
		if seen[c.name] || c.find == nil {
			t.Errorf("%s twice, or without a question", c.name)
		}
		seen[c.name] = true
	}
}

// FuzzInPlainWords: messages come from drivers; whatever they say, the answer is whole.
func FuzzInPlainWords(f *testing.F) {
	f.Add("0/1 nodes are available: 1 Insufficient cpu.")
	f.Add("secret \"\" not found")
	f.Fuzz(func(t *testing.T, message string) {
		if p := inPlainWords(message); p != nil && (p.What == "" || p.Cause == "") {
			t.Fatalf("%+v", p)
		}
	})
}
