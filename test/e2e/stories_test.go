package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Every filesystem that the driver makes, by a class of its own.
func TestFilesystems(t *testing.T) {
	s := tell(t)
	for _, c := range []struct{ fs, size string }{{"ext4", "32Mi"}, {"xfs", "320Mi"}, {"btrfs", "160Mi"}} {
		t.Run(c.fs, func(t *testing.T) {
			class := s.ns + "-" + c.fs
			s.apply(fmt.Sprintf(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %s}
provisioner: block.csi.berth.io
parameters: {csi.storage.k8s.io/fstype: %s}
mountOptions: [noatime]
volumeBindingMode: WaitForFirstConsumer
---`, class, c.fs) + claimYAML(c.fs, c.size, "storageClassName: "+class) + podYAML(c.fs, c.fs))
			t.Cleanup(func() { _, _ = s.in.Kubectl(s.ctx, "delete", "sc", class) })
			m := mountAt(s, paths(s, s.ready(c.fs))["data"])
			if m.FSType != c.fs {
				t.Errorf("mounted as %s", m.FSType)
			}
			if !strings.Contains(m.Options, "noatime") {
				t.Errorf("options %q lack noatime", m.Options)
			}
		})
	}
}

// A volume grows while its pod runs, and while nobody uses it. The kernel lets only who has CAP_SYS_RESOURCE grow a
// mounted ext4; without it (some containers and virtual machines) the claim says so and the next mount grows it.
func TestExpansion(t *testing.T) {
	s := tell(t)
	for _, c := range []struct {
		fs                    string
		size, online, offline string
		onlineMin, offlineMin uint64
		needsSysResource      bool
	}{
		{fs: "xfs", size: "320Mi", online: "400Mi", offline: "480Mi", onlineMin: 300 << 20, offlineMin: 380 << 20},
		{fs: "btrfs", size: "160Mi", online: "256Mi", offline: "320Mi", onlineMin: 250 << 20, offlineMin: 310 << 20},
		{fs: "ext4", size: "32Mi", online: "64Mi", offline: "96Mi", onlineMin: 50 << 20, offlineMin: 80 << 20, needsSysResource: true},
	} {
		t.Run(c.fs, func(t *testing.T) {
			s := s.as(t)
			class := s.ns + "-grow-" + c.fs
			s.apply(fmt.Sprintf(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %s}
provisioner: block.csi.berth.io
parameters: {csi.storage.k8s.io/fstype: %s}
allowVolumeExpansion: true
---`, class, c.fs) + claimYAML(c.fs, c.size, "storageClassName: "+class) + podYAML(c.fs, c.fs))
			t.Cleanup(func() { _, _ = s.in.Kubectl(s.ctx, "delete", "sc", class) })
			dir := paths(s, s.ready(c.fs))["data"]
			s.grow(c.fs, c.online)
			if c.needsSysResource && !hasSysResource(t) {
				s.until("the claim to say why it cannot grow now", func() (bool, string) {
					text := fmt.Sprint(s.claim(c.fs).Status.Conditions)
					return strings.Contains(text, "CAP_SYS_RESOURCE"), text
				})
				// As upstream: one growth is finished, on the next mount, before another one begins.
				s.kubectl("delete", "pod", c.fs)
				s.podGone(c.fs)
				s.apply(podYAML(c.fs, c.fs))
				s.ready(c.fs)
				s.until(c.online+" on the next mount", s.hasGrown(c.fs, c.online))
			} else {
				s.until(c.online+" online", s.hasGrown(c.fs, c.online))
				if size := fsSize(t, dir); size < c.onlineMin {
					t.Errorf("the filesystem has %d bytes after growing to %s", size, c.online)
				}
			}
			s.kubectl("delete", "pod", c.fs)
			s.podGone(c.fs)
			s.grow(c.fs, c.offline)
			s.until("the volume to grow offline", func() (bool, string) {
				pv, err := s.client.CoreV1().PersistentVolumes().Get(s.ctx, s.claim(c.fs).Spec.VolumeName, metav1.GetOptions{})
				if err != nil {
					return false, err.Error()
				}
				got := pv.Spec.Capacity[corev1.ResourceStorage]
				return got.Cmp(resource.MustParse(c.offline)) == 0, got.String()
			})
			s.apply(podYAML(c.fs, c.fs))
			dir = paths(s, s.ready(c.fs))["data"]
			s.until(c.offline+" on the next mount", s.hasGrown(c.fs, c.offline))
			if size := fsSize(t, dir); size < c.offlineMin {
				t.Errorf("the filesystem has %d bytes after growing to %s", size, c.offline)
			}
		})
	}
}

// as tells the rest of the story in a subtest.
func (s *story) as(t *testing.T) *story {
	sub := *s
	sub.T = t
	return &sub
}

func (s *story) grow(claim, to string) {
	s.Helper()
	s.kubectl("patch", "pvc", claim, "-p", fmt.Sprintf(`{"spec":{"resources":{"requests":{"storage":%q}}}}`, to))
}

func (s *story) hasGrown(claim, to string) func() (bool, string) {
	want := resource.MustParse(to)
	return func() (bool, string) {
		c := s.claim(claim)
		got := c.Status.Capacity[corev1.ResourceStorage]
		return got.Cmp(want) >= 0 && len(c.Status.Conditions) == 0, fmt.Sprintf("capacity %s, conditions %+v", got.String(), c.Status.Conditions)
	}
}

// hasSysResource reads the effective capabilities; CAP_SYS_RESOURCE is number 24.
func hasSysResource(t *testing.T) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "CapEff:\t")
	line, _, _ := strings.Cut(rest, "\n")
	caps, err := strconv.ParseUint(line, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return caps&(1<<24) != 0
}

func fsSize(t *testing.T, dir string) uint64 {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * uint64(st.Bsize)
}

// A raw block volume is a device node of its exact size.
func TestRawBlock(t *testing.T) {
	s := tell(t)
	s.apply(claimYAML("raw", "16Mi", "volumeMode: Block") + `
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  containers:
  - {name: app, image: busybox, volumeDevices: [{name: data, devicePath: /dev/data}]}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: raw}}
`)
	dev := paths(s, s.ready("app"))["data"]
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || fi.Mode()&os.ModeDevice == 0 {
		t.Fatalf("%s is %v, want a device (%v)", dev, fi.Mode(), err)
	}
	if end, err := f.Seek(0, 2); err != nil || end != 16<<20 {
		t.Errorf("the device has %d bytes, want %d (%v)", end, 16<<20, err)
	}
	if _, err := f.WriteAt([]byte("raw"), 0); err != nil {
		t.Error(err)
	}
	out := s.berth("exec", "-n", s.ns, "app", "--", "sh", "-c", "head -c 3 /dev/data")
	if out != "raw" {
		t.Errorf("exec reads %q", out)
	}
}

// ReadWriteOncePod: the second pod waits, with the reason, until the first is gone.
func TestReadWriteOncePod(t *testing.T) {
	s := tell(t)
	s.apply(strings.Replace(claimYAML("data", "16Mi"), "ReadWriteOnce", "ReadWriteOncePod", 1) + podYAML("first", "data"))
	s.ready("first")
	s.apply(podYAML("second", "data"))
	s.event("second", "FailedScheduling", "ReadWriteOncePod")
	s.kubectl("delete", "pod", "first")
	s.ready("second")
}

// The volumes that admission and people put into every pod are served, and refreshed.
func TestPodVolumes(t *testing.T) {
	s := tell(t)
	s.apply(`
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {key: one}
---
apiVersion: v1
kind: Secret
metadata: {name: sec}
stringData: {password: hunter2}
---
apiVersion: v1
kind: Pod
metadata: {name: app, labels: {color: blue}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: app
    image: busybox
    volumeMounts:
    - {name: conf, mountPath: /conf}
    - {name: sec, mountPath: /sec}
    - {name: down, mountPath: /down}
    - {name: all, mountPath: /all}
    - {name: tmp, mountPath: /tmp/x}
  volumes:
  - {name: conf, configMap: {name: conf}}
  - {name: sec, secret: {secretName: sec, defaultMode: 0400}}
  - {name: down, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - name: all
    projected:
      sources:
      - configMap: {name: conf}
      - serviceAccountToken: {path: token, expirationSeconds: 600}
  - {name: tmp, emptyDir: {}}
`)
	p := paths(s, s.ready("app"))
	for file, want := range map[string]string{
		filepath.Join(p["conf"], "key"):     "one",
		filepath.Join(p["sec"], "password"): "hunter2",
		filepath.Join(p["down"], "labels"):  `color="blue"`,
		filepath.Join(p["all"], "key"):      "one",
		filepath.Join(p["all"], "token"):    "ey", // a JWT
	} {
		if b, err := os.ReadFile(file); err != nil || !strings.HasPrefix(string(b), want) {
			t.Errorf("%s: %.20q, %v; want %q", file, b, err, want)
		}
	}
	var token string
	for name, dir := range p {
		if strings.HasPrefix(name, "kube-api-access-") {
			b, err := os.ReadFile(filepath.Join(dir, "token"))
			if err != nil {
				t.Error(err)
			}
			token = string(b)
		}
	}
	if token == "" {
		t.Error("the service account's token is not there")
	}
	s.kubectl("create", "configmap", "other", "--from-literal=x=y")
	s.kubectl("patch", "configmap", "conf", "-p", `{"data":{"key":"two"}}`)
	s.kubectl("label", "pod", "app", "--overwrite", "color=red")
	for file, want := range map[string]string{
		filepath.Join(p["conf"], "key"):    "two",
		filepath.Join(p["all"], "key"):     "two",
		filepath.Join(p["down"], "labels"): `color="red"`,
	} {
		s.until(file+" refreshed", func() (bool, string) {
			b, err := os.ReadFile(file)
			return strings.HasPrefix(string(b), want), fmt.Sprintf("%q %v", b, err)
		})
	}
}

// A volume type that is not served is refused by an event that names it.
func TestVolumeTypeNotServed(t *testing.T) {
	s := tell(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  containers: [{name: app, image: busybox, volumeMounts: [{name: v, mountPath: /v}]}]
  volumes: [{name: v, iscsi: {targetPortal: "127.0.0.1", iqn: "iqn.2000-01.com.example:x", lun: 0}}]
`)
	s.event("app", "FailedMount", "iscsi")
}

// A StatefulSet gets a claim for each pod, a Deployment shares one on this node.
func TestStatefulSetAndDeployment(t *testing.T) {
	s := tell(t)
	s.apply(claimYAML("shared", "16Mi") + `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: app, image: busybox, volumeMounts: [{name: data, mountPath: /data}]}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 16Mi}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: app, image: busybox, volumeMounts: [{name: data, mountPath: /data}]}]
      volumes: [{name: data, persistentVolumeClaim: {claimName: shared}}]
`)
	s.kubectl("rollout", "status", "statefulset/db", "--timeout=60s")
	s.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	a, b := paths(s, s.pod("db-0"))["data"], paths(s, s.pod("db-1"))["data"]
	if err := os.WriteFile(filepath.Join(a, "who"), []byte("db-0"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(b, "who")); err == nil {
		t.Error("the two pods of the StatefulSet share a volume")
	}
	s.kubectl("delete", "pod", "db-0")
	s.until("db-0 again with its data", func() (bool, string) {
		p, err := s.client.CoreV1().Pods(s.ns).Get(s.ctx, "db-0", metav1.GetOptions{})
		if err != nil || !isReady(p) || p.DeletionTimestamp != nil {
			return false, errText(err)
		}
		got, err := os.ReadFile(filepath.Join(paths(s, p)["data"], "who"))
		return string(got) == "db-0", errText(err)
	})
}

// A generic ephemeral volume lives and dies with its pod.
func TestGenericEphemeralVolume(t *testing.T) {
	s := tell(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: app, image: busybox, volumeMounts: [{name: scratch, mountPath: /scratch}]}]
  volumes:
  - name: scratch
    ephemeral:
      volumeClaimTemplate:
        spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 16Mi}}}
`)
	s.ready("app")
	volume := s.claim("app-scratch").Spec.VolumeName
	s.kubectl("delete", "pod", "app")
	s.claimGone("app-scratch")
	s.volumeGone(volume)
}

// Static volumes: a hostPath PV by label, a local PV with node affinity; Retain releases and keeps the data.
func TestStaticVolumes(t *testing.T) {
	s := tell(t)
	dir := t.TempDir()
	node := s.kubectl("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
	for _, kind := range []string{"hostPath", "local"} {
		if err := os.MkdirAll(filepath.Join(dir, kind), 0o777); err != nil {
			t.Fatal(err)
		}
		source := fmt.Sprintf("hostPath: {path: %s/hostPath}", dir)
		if kind == "local" {
			source = fmt.Sprintf(`local: {path: %s/local}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%s]}]}]}}`, dir, node)
		}
		name := s.ns + "-" + strings.ToLower(kind)
		claim := strings.ToLower(kind)
		s.apply(fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: %s, labels: {story: %s, kind: %s}}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
  %s
---`, name, s.ns, claim, source) + claimYAML(claim, "500Mi", `storageClassName: ""`,
			fmt.Sprintf("selector: {matchLabels: {story: %s, kind: %s}}", s.ns, claim)) + podYAML(claim, claim))
		t.Cleanup(func() { _, _ = s.in.Kubectl(s.ctx, "delete", "pv", name, "--wait=false") })
		p := paths(s, s.ready(claim))["data"]
		if err := os.WriteFile(filepath.Join(p, "kept"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		s.kubectl("delete", "pod", claim)
		s.kubectl("delete", "pvc", claim)
		s.until("volume Released", func() (bool, string) {
			pv, err := s.client.CoreV1().PersistentVolumes().Get(s.ctx, name, metav1.GetOptions{})
			if err != nil {
				return false, err.Error()
			}
			return pv.Status.Phase == corev1.VolumeReleased, string(pv.Status.Phase)
		})
		if _, err := os.Stat(filepath.Join(dir, kind, "kept")); err != nil {
			t.Errorf("Retain kept nothing: %v", err)
		}
	}
}
