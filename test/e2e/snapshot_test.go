package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// snapshotYAML is a snapshot of a claim, of the default class unless more says otherwise.
func snapshotYAML(name, claim string, more ...string) string {
	return fmt.Sprintf(`
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: %s}
spec:
  source: {persistentVolumeClaimName: %s}
%s
---`, name, claim, indent(more, "  "))
}

// from is the data source of a claim.
func from(kind, name string) string {
	group := ""
	if kind == "VolumeSnapshot" {
		group = "apiGroup: snapshot.storage.k8s.io, "
	}
	return fmt.Sprintf("dataSource: {%skind: %s, name: %s}", group, kind, name)
}

// snapshotReady waits for a snapshot, and returns its content's name.
func (s *story) snapshotReady(name string) string {
	s.Helper()
	s.until("snapshot "+name+" ready", func() (bool, string) {
		out, err := s.in.Kubectl(s.ctx, "-n", s.ns, "get", "vs", name, "-o", "jsonpath={.status}")
		return err == nil && strings.Contains(out, `"readyToUse":true`), fmt.Sprint(out, err)
	})
	return s.kubectl("get", "vs", name, "-o", "jsonpath={.status.boundVolumeSnapshotContentName}")
}

// write puts text into a file of the pod's volume, onto the disk.
func (s *story) write(pod, file, text string) {
	s.Helper()
	f, err := os.Create(filepath.Join(paths(s, s.pod(pod))["data"], file))
	if err != nil {
		s.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		s.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		s.Fatal(err)
	}
}

func (s *story) read(pod, file string) string {
	s.Helper()
	b, err := os.ReadFile(filepath.Join(paths(s, s.pod(pod))["data"], file))
	if err != nil {
		s.Fatal(err)
	}
	return string(b)
}

// kubectlGone waits until kubectl does not find an object.
func (s *story) kubectlGone(args ...string) {
	s.Helper()
	s.until(strings.Join(args, " ")+" gone", func() (bool, string) {
		out, err := s.in.Kubectl(s.ctx, append([]string{"-n", s.ns, "get", "--ignore-not-found", "-o", "name"}, args...)...)
		return err == nil && strings.TrimSpace(out) == "", fmt.Sprint(out, err)
	})
}

// A snapshot keeps what was there: written over afterwards, restored into a larger volume beside the source, and gone
// when it is deleted. The restored volume lives on without it.
func TestSnapshotAndRestore(t *testing.T) {
	s := tell(t)
	s.apply(claimYAML("data", "32Mi") + podYAML("app", "data"))
	s.ready("app")
	s.write("app", "f", "old")
	s.apply(snapshotYAML("before", "data"))
	content := s.snapshotReady("before")
	s.write("app", "f", "new")
	s.apply(claimYAML("restored", "64Mi", from("VolumeSnapshot", "before")) + podYAML("again", "restored"))
	s.ready("again")
	if old, now := s.read("again", "f"), s.read("app", "f"); old != "old" || now != "new" {
		t.Errorf("restored %q, source %q", old, now)
	}
	if have := s.claim("restored").Status.Capacity.Storage().Value(); have < 64<<20 {
		t.Errorf("the restored volume has %d bytes", have)
	}
	if why := s.berth("why", "-n", s.ns, "pvc/data"); !strings.Contains(why, "Snapshotted") {
		t.Errorf("the journey does not tell of the snapshot:\n%s", why)
	}
	if why := s.berth("why", "-n", s.ns, "vs/before"); !strings.Contains(why, "of claim "+s.ns+"/data") || !strings.Contains(why, "before  ready") || !strings.Contains(why, content) {
		t.Errorf("berth why tells of the snapshot:\n%s", why)
	}
	s.kubectl("delete", "vs", "before")
	s.kubectlGone("vsc", content)
	if got := s.read("again", "f"); got != "old" {
		t.Errorf("after the snapshot's deletion %q", got)
	}
}

// A snapshot whose objects are gone, and which nobody was told to delete, keeps its space: `berth orphans` names it.
func TestSnapshotThatNobodyTellsOf(t *testing.T) {
	in := own(t)
	s := tellOn(t, in)
	s.apply(claimYAML("data", "32Mi") + podYAML("app", "data") + snapshotYAML("before", "data") + snapshotYAML("kept", "data"))
	s.ready("app")
	content := s.snapshotReady("before")
	s.snapshotReady("kept")
	if out := s.berth("orphans"); strings.Contains(out, "snapshot") {
		t.Errorf("orphans while all are known:\n%s", out)
	}
	s.kubectl("patch", "vsc", content, "--type", "merge", "-p", `{"spec":{"deletionPolicy":"Retain"}}`)
	s.kubectl("delete", "vs", "before")
	s.kubectl("delete", "vsc", content)
	s.kubectlGone("vsc", content)
	if out := s.berth("orphans"); strings.Count(out, "snapshot ") != 1 || !strings.Contains(out, "no VolumeSnapshotContent names it") {
		t.Errorf("orphans:\n%s", out)
	}
}

// A volume smaller than its snapshot, or than its source, is refused in words; so is a source in another namespace.
func TestRestoreThatCannotBe(t *testing.T) {
	s := tell(t)
	s.apply(claimYAML("data", "64Mi") + podYAML("app", "data") + snapshotYAML("snap", "data"))
	s.ready("app")
	s.snapshotReady("snap")
	s.apply(claimYAML("small", "32Mi", "storageClassName: berth-block-immediate", from("VolumeSnapshot", "snap")) +
		claimYAML("clone", "32Mi", "storageClassName: berth-block-immediate", from("PersistentVolumeClaim", "data")))
	s.event("small", "ProvisioningFailed", "less than the size")
	s.event("clone", "ProvisioningFailed", "greater than or equal")
	_, err := s.in.BerthInput(s.ctx, claimYAML("foreign", "64Mi", "dataSourceRef: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: snap, namespace: default}"),
		"kubectl", "apply", "-n", s.ns, "-f", "-")
	if err == nil || !strings.Contains(err.Error(), "of its own namespace") {
		t.Errorf("a source in another namespace: %v", err)
	}
}

// A claim is cloned while a pod writes to it; the source, deleted at once, stays until its clone is made, and then goes.
func TestCloneWhileMounted(t *testing.T) {
	s := tell(t)
	s.apply(claimYAML("data", "32Mi") + podYAML("app", "data"))
	s.ready("app")
	s.write("app", "f", "here")
	s.apply(claimYAML("twin", "32Mi", from("PersistentVolumeClaim", "data")) + podYAML("other", "twin"))
	s.ready("other")
	if got := s.read("other", "f"); got != "here" {
		t.Errorf("the clone has %q", got)
	}
	s.write("other", "f", "there")
	if got := s.read("app", "f"); got != "here" {
		t.Errorf("the source has %q", got)
	}
	s.kubectl("delete", "pod/app", "pvc/data")
	s.claimGone("data")
	if got := s.read("other", "f"); got != "there" {
		t.Errorf("the clone has %q after its source went", got)
	}
}

// A snapshot outlives its claim and is restored; one whose class says Retain leaves its content, which can be bound again.
func TestSnapshotOutlivesItsClaim(t *testing.T) {
	s := tell(t)
	class := s.ns + "-keep"
	s.apply(fmt.Sprintf(`
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: %s}
driver: block.csi.berth.io
deletionPolicy: Retain
---`, class) + claimYAML("data", "32Mi") + podYAML("app", "data"))
	s.ready("app")
	s.write("app", "f", "kept")
	s.apply(snapshotYAML("snap", "data", "volumeSnapshotClassName: "+class))
	content := s.snapshotReady("snap")
	volume := s.claim("data").Spec.VolumeName
	s.kubectl("delete", "pod/app", "pvc/data")
	s.volumeGone(volume)
	s.apply(claimYAML("restored", "32Mi", from("VolumeSnapshot", "snap")) + podYAML("again", "restored"))
	s.ready("again")
	if got := s.read("again", "f"); got != "kept" {
		t.Errorf("restored %q", got)
	}
	s.kubectl("delete", "vs", "snap")
	s.kubectlGone("vs", "snap")
	handle := s.kubectl("get", "vsc", content, "-o", "jsonpath={.status.snapshotHandle}")
	if handle == "" {
		t.Fatal("the retained content has lost its handle")
	}
	s.kubectl("delete", "vsc", content)
	s.kubectlGone("vsc", content)
	s.apply(fmt.Sprintf(`
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotContent
metadata: {name: %[1]s}
spec:
  deletionPolicy: Delete
  driver: block.csi.berth.io
  source: {snapshotHandle: %[2]s}
  volumeSnapshotRef: {name: found, namespace: %[1]s}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: found}
spec: {source: {volumeSnapshotContentName: %[1]s}}
---`, s.ns, handle))
	s.snapshotReady("found")
	s.kubectl("delete", "vs", "found")
	s.kubectlGone("vsc", s.ns)
	s.kubectl("delete", "vsclass", class)
}

// Two mounted claims are snapshotted at one instant; the group's deletion takes its snapshots along, and one alone cannot
// be deleted.
func TestGroupSnapshot(t *testing.T) {
	s := tell(t)
	class := s.ns + "-group"
	labelled := func(name string) string {
		return strings.Replace(claimYAML(name, "32Mi"), "{name: "+name+"}", "{name: "+name+", labels: {app: db}}", 1)
	}
	s.apply(fmt.Sprintf(`
apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshotClass
metadata: {name: %s}
driver: block.csi.berth.io
deletionPolicy: Delete
---`, class) + labelled("data") + labelled("log") + podYAML("a", "data") + podYAML("b", "log"))
	s.ready("a")
	s.ready("b")
	s.write("a", "f", "1")
	s.write("b", "f", "1")
	s.apply(fmt.Sprintf(`
apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshot
metadata: {name: both}
spec: {volumeGroupSnapshotClassName: %s, source: {selector: {matchLabels: {app: db}}}}
---`, class))
	s.until("the group snapshot ready", func() (bool, string) {
		out, err := s.in.Kubectl(s.ctx, "-n", s.ns, "get", "vgs", "both", "-o", "jsonpath={.status}")
		return err == nil && strings.Contains(out, `"readyToUse":true`), fmt.Sprint(out, err)
	})
	s.until("two snapshots ready", func() (bool, string) {
		out := s.kubectl("get", "vs", "-o", "jsonpath={.items[*].status.readyToUse}")
		return out == "true true", out
	})
	if why := s.berth("why", "-n", s.ns, "vgs/both"); !strings.Contains(why, "both  ready") || !strings.Contains(why, "of claim data  ready") || !strings.Contains(why, "of claim log  ready") {
		t.Errorf("berth why tells of the group:\n%s", why)
	}
	s.write("a", "f", "2")
	of := func(claim string) string {
		return s.kubectl("get", "vs", "-o", fmt.Sprintf("jsonpath={.items[?(@.spec.source.persistentVolumeClaimName=='%s')].metadata.name}", claim))
	}
	s.apply(claimYAML("restored", "32Mi", from("VolumeSnapshot", of("data"))) + podYAML("again", "restored"))
	s.ready("again")
	if got := s.read("again", "f"); got != "1" {
		t.Errorf("restored %q", got)
	}
	s.kubectl("delete", "vgs", "both")
	s.kubectlGone("vs")
	s.kubectl("delete", "vgsclass", class)
}

// What cannot be snapshotted says why, on the snapshot and in `berth why`, and is taken as soon as the reason is gone.
func TestWhyASnapshotIsNotTaken(t *testing.T) {
	s := tell(t)
	s.apply(claimYAML("waits", "32Mi") + snapshotYAML("of-unbound", "waits") + snapshotYAML("of-nothing", "nobody") +
		snapshotYAML("of-unknown-class", "waits", "volumeSnapshotClassName: nowhere"))
	s.event("of-unbound", "SnapshotWaiting", "not bound")
	s.event("of-nothing", "SnapshotWaiting", "does not exist")
	if why := s.berth("why", "-n", s.ns, "pvc/waits"); !strings.Contains(why, "of-un") {
		t.Errorf("berth why does not tell of the snapshot:\n%s", why)
	}
	s.apply(podYAML("app", "waits"))
	s.ready("app")
	s.snapshotReady("of-unbound")
	s.event("of-unknown-class", "SnapshotWaiting", `"nowhere" does not exist`)
	name := "without." + s.ns + ".example.com"
	startForeign(s, name, false)
	s.apply(claimYAML("other", "1Gi", "storageClassName: "+name) + podYAML("other", "other") + snapshotYAML("of-other", "other", "volumeSnapshotClassName: berth-block"))
	s.ready("other")
	s.event("of-other", "SnapshotWaiting", "cannot take snapshots")
	s.until("the other driver's class to be refused", func() (bool, string) {
		out := s.kubectl("get", "vs", "of-other", "-o", "jsonpath={.status.error.message}")
		return strings.Contains(out, "name a class of that driver"), out
	})
	s.kubectl("delete", "vs", "--all", "--timeout=60s")
	s.kubectlGone("vs")
}

// A claim that is being deleted takes no new snapshot, and says so.
func TestSnapshotOfAClaimBeingDeleted(t *testing.T) {
	s := tell(t)
	s.apply(claimYAML("data", "32Mi") + podYAML("app", "data"))
	s.ready("app")
	s.kubectl("delete", "pvc", "data", "--wait=false") // the pod keeps it
	s.until("the claim to be terminating", func() (bool, string) {
		return s.claim("data").DeletionTimestamp != nil, ""
	})
	s.apply(snapshotYAML("late", "data"))
	s.event("late", "SnapshotWaiting", "is being deleted")
	s.kubectl("delete", "vs", "late")
	s.kubectlGone("vs", "late")
	s.kubectl("delete", "pod", "app")
	s.claimGone("data")
}

// The instance is killed while snapshots are being taken and restored; the next start finishes all of it, once.
func TestSnapshotsSurviveAKill(t *testing.T) {
	in := own(t)
	s := tellOn(t, in)
	s.apply(claimYAML("data", "32Mi") + podYAML("app", "data"))
	s.ready("app")
	s.write("app", "f", "old")
	s.apply(snapshotYAML("first", "data"))
	s.snapshotReady("first")
	var many strings.Builder
	for i := range 5 {
		fmt.Fprint(&many, snapshotYAML(fmt.Sprint("more-", i), "data"))
	}
	fmt.Fprint(&many, claimYAML("restored", "32Mi", "storageClassName: berth-block-immediate", from("VolumeSnapshot", "first")))
	s.apply(many.String())
	time.Sleep(30 * time.Millisecond) // into the middle of it
	if err := in.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := in.Start(s.ctx); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		s.snapshotReady(fmt.Sprint("more-", i))
	}
	s.until("the restored claim bound", func() (bool, string) {
		c := s.claim("restored")
		return c.Status.Phase == corev1.ClaimBound, string(c.Status.Phase)
	})
	s.kubectl("delete", "vs", "--all")
	s.kubectlGone("vsc")
	s.kubectl("delete", "pod/app", "pvc/data", "pvc/restored")
	s.until("no volumes left", func() (bool, string) {
		list, err := s.client.CoreV1().PersistentVolumes().List(s.ctx, metav1.ListOptions{})
		return err == nil && len(list.Items) == 0, fmt.Sprint(err)
	})
	if out := s.berth("orphans"); strings.Contains(out, "pvc-") || strings.Contains(out, "snap") {
		t.Errorf("orphans:\n%s", out)
	}
}
