package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// dataForeign starts a third party's driver that can do all that is tested here, with its default snapshot class.
func dataForeign(s *story, args ...string) *foreign {
	s.Helper()
	f := startForeign(s, "data."+s.ns+".example.com", false, append([]string{"--data"}, args...)...)
	s.apply(fmt.Sprintf(`
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: %[1]s, annotations: {snapshot.storage.kubernetes.io/is-default-class: "true"}}
driver: %[1]s
deletionPolicy: Delete
---
apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshotClass
metadata: {name: %[1]s}
driver: %[1]s
deletionPolicy: Delete
---`, f.name))
	s.Cleanup(func() { _, _ = s.in.Kubectl(s.ctx, "delete", "vsclass,vgsclass", f.name) })
	return f
}

// Any driver that can take snapshots has them: snapshot, restore, clone, group, all by what it says that it can do.
func TestForeignDriverSnapshots(t *testing.T) {
	s := tell(t)
	f := dataForeign(s)
	class := "storageClassName: " + f.name
	s.apply(claimYAML("data", "1Gi", class) + podYAML("app", "data"))
	s.ready("app")
	s.write("app", "f", "old")
	s.apply(snapshotYAML("snap", "data"))
	s.snapshotReady("snap")
	s.write("app", "f", "new")
	s.apply(claimYAML("restored", "2Gi", class, from("VolumeSnapshot", "snap")) + podYAML("again", "restored") +
		claimYAML("twin", "1Gi", class, from("PersistentVolumeClaim", "data")) + podYAML("twin", "twin"))
	s.ready("again")
	s.ready("twin")
	if a, b := s.read("again", "f"), s.read("twin", "f"); a != "old" || b != "new" {
		t.Errorf("restored %q, cloned %q", a, b)
	}
	s.kubectl("label", "pvc/data", "pvc/twin", "app=db")
	s.apply(fmt.Sprintf(`
apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshot
metadata: {name: both}
spec: {volumeGroupSnapshotClassName: %s, source: {selector: {matchLabels: {app: db}}}}
---`, f.name))
	s.until("three snapshots ready", func() (bool, string) {
		out := s.kubectl("get", "vs", "-o", "jsonpath={.items[*].status.readyToUse}")
		return out == "true true true", out
	})
	s.kubectl("delete", "vgs", "both")
	s.kubectl("delete", "vs", "--all")
	s.kubectl("delete", "pod", "--all")
	s.kubectl("delete", "pvc", "--all")
	s.kubectlGone("vs,pvc")
	s.until("nothing left at the driver", func() (bool, string) {
		left, _ := os.ReadDir(f.state)
		return len(left) == 0, fmt.Sprint(left)
	})
}

// A driver that works on after it has taken a snapshot is asked again until it is done, groups too.
func TestSlowSnapshots(t *testing.T) {
	s := tell(t)
	f := dataForeign(s, "--slow", "700ms")
	claim := strings.Replace(claimYAML("data", "1Gi", "storageClassName: "+f.name), "{name: data}", "{name: data, labels: {app: db}}", 1)
	s.apply(claim + podYAML("app", "data") + snapshotYAML("snap", "data"))
	s.ready("app")
	s.snapshotReady("snap")
	s.apply(fmt.Sprintf(`
apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshot
metadata: {name: one}
spec: {volumeGroupSnapshotClassName: %s, source: {selector: {matchLabels: {app: db}}}}
---`, f.name))
	s.until("the group ready", func() (bool, string) {
		out, err := s.in.Kubectl(s.ctx, "-n", s.ns, "get", "vgs", "one", "-o", "jsonpath={.status}")
		return err == nil && strings.Contains(out, `"readyToUse":true`), fmt.Sprint(out, err)
	})
}

// The secret that a snapshot class names reaches the driver; without it the snapshot says what is missing, and is taken
// when the secret is there.
func TestSnapshotSecret(t *testing.T) {
	s := tell(t)
	f := dataForeign(s, "--secret", "sesame")
	class := s.ns + "-secret"
	s.apply(fmt.Sprintf(`
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: %s}
driver: %s
deletionPolicy: Delete
parameters: {csi.storage.k8s.io/snapshotter-secret-name: door, csi.storage.k8s.io/snapshotter-secret-namespace: %s}
---`, class, f.name, s.ns) + claimYAML("data", "1Gi", "storageClassName: "+f.name) + podYAML("app", "data"))
	s.ready("app")
	s.apply(snapshotYAML("snap", "data", "volumeSnapshotClassName: "+class))
	s.until("the missing secret to be told", func() (bool, string) {
		out := s.kubectl("get", "vs", "snap", "-o", "jsonpath={.status.error.message}")
		return strings.Contains(out, "credentials") || strings.Contains(out, "secret"), out
	})
	s.kubectl("create", "secret", "generic", "door", "--from-literal=key=sesame")
	s.snapshotReady("snap")
	s.kubectl("delete", "vs", "snap")
	s.kubectlGone("vs", "snap")
	s.kubectl("delete", "vsclass", class)
}

// A claim is made with a VolumeAttributesClass and changed to another; what cannot be is said as a condition and an event,
// and goes through once it can.
func TestVolumeAttributes(t *testing.T) {
	s := tell(t)
	f := dataForeign(s)
	vac := func(name, driver, tier string) string {
		return fmt.Sprintf(`
apiVersion: storage.k8s.io/v1
kind: VolumeAttributesClass
metadata: {name: %s}
driverName: %s
parameters: {tier: %s}
---`, s.ns+"-"+name, driver, tier)
	}
	s.apply(vac("silver", f.name, "silver") + vac("gold", f.name, "gold") + vac("mud", f.name, "mud") + vac("strange", "other.example.com", "gold") +
		claimYAML("data", "1Gi", "storageClassName: "+f.name, "volumeAttributesClassName: "+s.ns+"-silver") + podYAML("app", "data"))
	s.ready("app")
	tier := func() string {
		b, _ := os.ReadFile(filepath.Join(f.state, s.claim("data").Spec.VolumeName+".tier"))
		return string(b)
	}
	has := func(name, want string) {
		s.Helper()
		s.until("the claim to be "+name, func() (bool, string) {
			c := s.claim("data")
			have := ""
			if c.Status.CurrentVolumeAttributesClassName != nil {
				have = *c.Status.CurrentVolumeAttributesClassName
			}
			return have == s.ns+"-"+name && tier() == want && c.Status.ModifyVolumeStatus == nil && len(c.Status.Conditions) == 0,
				fmt.Sprint(have, tier(), c.Status.ModifyVolumeStatus, c.Status.Conditions)
		})
	}
	want := func(name string) {
		s.kubectl("patch", "pvc", "data", "-p", fmt.Sprintf(`{"spec":{"volumeAttributesClassName":"%s-%s"}}`, s.ns, name))
	}
	condition := func(reason, text string) {
		s.Helper()
		s.until("the condition "+reason, func() (bool, string) {
			for _, c := range s.claim("data").Status.Conditions {
				if c.Type == "ModifyVolumeError" && c.Reason == reason && strings.Contains(c.Message, text) {
					return true, ""
				}
			}
			return false, fmt.Sprint(s.claim("data").Status)
		})
		s.event("data", "VolumeModifyFailed", text)
	}
	has("silver", "silver")
	want("gold")
	has("gold", "gold")
	want("mud")
	condition("InvalidArgument", "only tier, gold or silver")
	want("strange")
	condition("InvalidArgument", "name a class of that driver")
	want("later")
	condition("ClassNotFound", "does not exist")
	s.apply(vac("later", f.name, "silver"))
	has("later", "silver")
	if why := s.berth("why", "-n", s.ns, "pvc/data"); !strings.Contains(why, "Modified") {
		t.Errorf("the journey does not tell of the change:\n%s", why)
	}
	s.kubectl("delete", "pod", "app")
	s.kubectl("delete", "pvc", "data")
	for _, name := range []string{"silver", "gold", "mud", "strange", "later"} {
		s.kubectl("delete", "vac", s.ns+"-"+name)
	}
}
