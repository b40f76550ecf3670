//go:build kubernetes

package kubernetes

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	api "berth.io/berth/api/v1alpha1"
)

const examplesDir = "../../examples"

// example is what a file in examples/ comes to in a cluster.
type example struct {
	pods   []string
	claims []string
	// prepare edits the text as the comment on top of the file says.
	prepare func(s *story, text string) string
	then    func(s *story)
	delete  string // what outlives the namespace
	// not says why this cluster cannot run it, and where it is run.
	not string
}

var examples = map[string]example{
	"quickstart.yaml": {pods: []string{"quickstart"}, claims: []string{"quickstart"}, delete: "sc/quickstart", then: func(s *story) {
		s.keeps("quickstart", "/data")
	}},
	"static-csi.yaml": {pods: []string{"example-static-csi"}, claims: []string{"example-static-csi"}, prepare: func(s *story, text string) string {
		return strings.NewReplacer("[NODE]", "[node1]", "VOLUME-ID", s.lent("64Mi", "ext4")).Replace(text)
	}, then: func(s *story) {
		if got := s.inPod("example-static-csi", "cat", "/data/lent"); got != "kept\n" {
			s.Errorf("the volume that was there has %q", got)
		}
	}, delete: "pv/example-static-csi"},
	"static-local.yaml": {pods: []string{"example-local"}, claims: []string{"example-local"}, prepare: func(s *story, text string) string {
		return strings.NewReplacer("[NODE]", "[node1]", "/srv/example-local", s.nodeDirectory("example-local")).Replace(text)
	}, delete: "pv/example-local sc/example-local"},
	"raw-block.yaml": {pods: []string{"example-raw"}, claims: []string{"example-raw"}, then: func(s *story) {
		if out := s.inPod("example-raw", "blockdev", "--getsize64", "/dev/xvda"); strings.TrimSpace(out) != fmt.Sprint(64<<20) {
			s.Errorf("size of the device: %s", out)
		}
	}},
	"snapshot.yaml": {pods: []string{"example-source", "example-restored"}, claims: []string{"example-source", "example-restored"}},
	"clone.yaml":    {pods: []string{"example-original", "example-clone"}, claims: []string{"example-original", "example-clone"}},
	"expansion.yaml": {pods: []string{"example-grow"}, claims: []string{"example-grow"}, then: func(s *story) {
		before := s.sizeOf("example-grow", "/data")
		s.kubectl("patch", "pvc", "example-grow", "-p", `{"spec":{"resources":{"requests":{"storage":"512Mi"}}}}`)
		s.kubectl("wait", "--for=jsonpath={.status.capacity.storage}=512Mi", "--timeout=120s", "pvc/example-grow")
		if after := s.sizeOf("example-grow", "/data"); after-before < 180<<20 {
			s.Errorf("the filesystem had %d bytes and has %d", before, after)
		}
	}, delete: "sc/example-grow"},
	"generic-ephemeral.yaml": {pods: []string{"example-scratch"}, claims: []string{"example-scratch-tmp"}},
	"inline-volume.yaml": {pods: []string{"example-inline"}, then: func(s *story) {
		if view := s.mountInPod("example-inline", "/scratch"); view[2] != "xfs" {
			s.Errorf("the inline volume is mounted as %q", view)
		}
	}},
	"read-write-once-pod.yaml": {claims: []string{"example-alone"}, then: func(s *story) {
		s.oneAlone("example-alone-a", "example-alone-b")
	}},
	"topology.yaml": {pods: []string{"example-topology"}, claims: []string{"example-topology"}, prepare: func(s *story, text string) string {
		return strings.ReplaceAll(text, "[NODE]", "[node1]")
	}, delete: "sc/example-topology"},
	"statefulset.yaml": {pods: []string{"example-db-0", "example-db-1"}, claims: []string{"data-example-db-0", "data-example-db-1"}, then: func(s *story) {
		s.keeps("example-db-1", "/data")
	}},
	"volume-attributes.yaml": {pods: []string{"example-attributes"}, claims: []string{"example-attributes"}, then: func(s *story) {
		s.kubectl("patch", "pvc", "example-attributes", "-p", `{"spec":{"volumeAttributesClassName":"example-streaming"}}`)
		s.kubectl("wait", "--for=jsonpath={.status.currentVolumeAttributesClassName}=example-streaming", "--timeout=120s", "pvc/example-attributes")
	}, delete: "vac/example-random vac/example-streaming"},
	"group-snapshot.yaml": {pods: []string{"example-group"}, claims: []string{"example-log", "example-data"}, then: func(s *story) {
		s.kubectl("wait", "--for=jsonpath={.status.readyToUse}=true", "--timeout=120s", "volumegroupsnapshot/example-group")
		s.until("its two members to be ready", func() error {
			out := s.kubectl("get", "volumesnapshots", "-o", "jsonpath={.items[*].status.readyToUse}")
			if strings.TrimSpace(out) != "true true" {
				return fmt.Errorf("they are %q", out)
			}
			return nil
		})
		s.kubectl("delete", "volumegroupsnapshot", "example-group")
	}},
	"snapshot-schedule.yaml": {pods: []string{"example-scheduled"}, claims: []string{"example-scheduled"}, then: func(s *story) {
		s.kubectl("patch", "snapsched", "example-hourly", "--type=merge", "-p", `{"spec":{"schedule":"@every 1s"}}`)
		s.until("a snapshot by schedule", func() error {
			if out := s.kubectl("get", "volumesnapshots", "-o", "name"); out == "" {
				return fmt.Errorf("there is none: %s", s.kubectl("get", "snapsched", "example-hourly", "-o", "jsonpath={.status}"))
			}
			return nil
		})
		s.kubectl("delete", "snapsched", "example-hourly")
		s.apply(`
apiVersion: storage.berth.io/v1alpha1
kind: SnapshotSchedule
metadata: {name: together}
spec: {schedule: "@every 1s", group: true, keep: 1, selector: {matchLabels: {backup: hourly}}}
`)
		groups := func(but string) (first string, err error) {
			names := strings.Fields(s.kubectl("get", "volumegroupsnapshots", "-o", "name"))
			if len(names) == 0 || slices.Contains(names, but) {
				return "", fmt.Errorf("there are %q", names)
			}
			return names[0], nil
		}
		var first string
		s.until("a group by schedule", func() (err error) {
			first, err = groups("")
			return err
		})
		s.until("a later group in the place of "+first, func() error {
			_, err := groups(first)
			return err
		})
		s.kubectl("delete", "snapsched", "together")
		s.kubectl("delete", "volumegroupsnapshots", "--all", "--timeout=60s")
	}},
	// The node's agent offers disks by the DaemonSet's configuration; its own test has disks.
	"discovery.yaml": {then: func(s *story) {
		s.event("example-disks-0", "FailedScheduling", "persistent volumes to bind")
	}, delete: "sc/example-disks"},
	"statefulset-local.yaml": {then: func(s *story) {
		s.event("example-local-0", "FailedScheduling", "persistent volumes to bind")
	}, delete: "sc/example-raw-disks"},
	"flexvolume-block.yaml": {pods: []string{"example-flexvolume-block"}, claims: []string{"example-flexvolume-block"}, prepare: func(s *story, text string) string {
		return strings.ReplaceAll(text, "VOLUME-ID", s.lent("256Mi", "ext4"))
	}, then: func(s *story) {
		if got := s.inPod("example-flexvolume-block", "cat", "/data/lent"); got != "kept\n" {
			s.Errorf("the volume that was there has %q", got)
		}
	}, delete: "pv/example-flexvolume-block"},
	"flexvolume-nfs.yaml":  {not: "this kernel has no NFS client; test/vm runs it"},
	"flexvolume-cifs.yaml": {not: "this kernel has no SMB client; test/vm runs it"},
	"flexvolume-lvm.yaml":  {not: "this kernel has no device-mapper; test/vm runs it"},
	"other-driver.yaml":    {not: "it is another driver's, installed by its own manifests"},
}

// Every file in examples/ does in a cluster what its comment says, and leaves nothing in the node's pool.
func TestInstalledExamples(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(examplesDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		t.Run(name, func(t *testing.T) {
			e, known := examples[name]
			if !known {
				t.Fatal("nothing is expected of this example: add it to the table")
			}
			if e.not != "" {
				t.Skip(e.not)
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := tell(t)
			s.installed()
			s.try(e, string(text))
		})
	}
}

func (s *story) try(e example, text string) {
	s.Helper()
	before := s.onDisk()
	if e.prepare != nil {
		text = e.prepare(s, text)
	}
	s.apply(text)
	for _, pod := range e.pods {
		s.exists("pod/" + pod)
		s.ready(pod)
	}
	for _, claim := range e.claims {
		var c corev1.PersistentVolumeClaim
		if s.get(&c, "persistentvolumeclaim", claim); c.Status.Phase != corev1.ClaimBound {
			s.Errorf("claim %s is %s", claim, c.Status.Phase)
		}
	}
	if e.then != nil {
		e.then(s)
	}
	s.empty()
	if e.delete != "" {
		s.kubectl(append([]string{"delete", "--timeout=60s"}, strings.Fields(e.delete)...)...)
	}
	for _, away := range s.takeLast() {
		if err := away(); err != nil {
			s.Error(err)
		}
	}
	s.until("the pool to have nothing of it", func() error {
		// Of what was there before, something may be on its way out.
		left := slices.DeleteFunc(s.onDisk(), func(id string) bool { return slices.Contains(before, id) })
		if len(left) > 0 {
			return fmt.Errorf("it has %q", left)
		}
		return nil
	})
}

// exists waits for an object that a controller makes.
func (s *story) exists(object string) {
	s.Helper()
	s.until(object+" to be made", func() error {
		_, err := output(shared.inside(s.ctx, "kubectl", "-n", s.ns, "get", object))
		return err
	})
}

// empty deletes what the story has in its namespace, and waits until it is gone. The pods' programs do not care for SIGTERM.
func (s *story) empty() {
	s.Helper()
	s.kubectl("delete", "statefulset", "--all", "--cascade=orphan")
	s.kubectl("delete", "pod", "--all", "--grace-period=1", "--timeout=120s")
	s.kubectl("delete", "volumesnapshot,persistentvolumeclaim", "--all", "--timeout=120s")
	s.until("no volume of the story", func() error {
		var list corev1.PersistentVolumeList
		if err := s.read(&list, "persistentvolume"); err != nil {
			return err
		}
		for _, pv := range list.Items {
			if pv.Spec.ClaimRef != nil && pv.Spec.ClaimRef.Namespace == s.ns && pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
				return fmt.Errorf("%s is %s: %s", pv.Name, pv.Status.Phase, pv.Status.Message)
			}
		}
		return nil
	})
}

// keeps writes a file in a pod, deletes the pod, makes it again from its own manifest, unless a controller does, and reads the file.
func (s *story) keeps(pod, dir string) {
	s.Helper()
	s.inPod(pod, "sh", "-c", "echo kept >"+dir+"/file")
	var was corev1.Pod
	s.get(&was, "pod", pod)
	again := s.kubectl("get", "pod", pod, "-o", `jsonpath={.metadata.annotations.kubectl\.kubernetes\.io/last-applied-configuration}`)
	s.kubectl("delete", "pod", pod, "--grace-period=1", "--timeout=120s")
	if again != "" {
		s.apply(again)
	}
	s.exists("pod/" + pod)
	if is := s.ready(pod); is.UID == was.UID {
		s.Errorf("pod %s is still the first one", pod)
	}
	if got := s.inPod(pod, "cat", dir+"/file"); got != "kept\n" {
		s.Errorf("the second pod %s reads %q", pod, got)
	}
}

// oneAlone waits until one of the pods is Ready, deletes it, and waits for the next.
func (s *story) oneAlone(pods ...string) {
	s.Helper()
	for len(pods) > 0 {
		var first string
		s.until("one pod Ready", func() error {
			var ready []string
			for _, pod := range pods {
				out := s.kubectl("get", "pod", pod, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
				if out == "True" {
					ready = append(ready, pod)
				}
			}
			if len(ready) != 1 {
				return fmt.Errorf("Ready are %q", ready)
			}
			first = ready[0]
			return nil
		})
		s.kubectl("delete", "pod", first, "--grace-period=1", "--timeout=120s")
		pods = slices.DeleteFunc(slices.Clone(pods), func(p string) bool { return p == first })
	}
}

// sizeOf is how many bytes a filesystem in a pod has.
func (s *story) sizeOf(pod, dir string) int64 {
	s.Helper()
	var block, blocks int64
	out := s.inPod(pod, "stat", "-f", "-c", "%S %b", dir)
	if _, err := fmt.Sscan(out, &block, &blocks); err != nil {
		s.Fatalf("%q: %v", out, err)
	}
	return block * blocks
}

// lent makes a volume with a claim, puts a file into it, and takes its objects away: what stays is the volume, whose id it returns, until
// the end of the story.
func (s *story) lent(size, fsType string) (id string) {
	s.Helper()
	s.apply(fmt.Sprintf(`
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %[1]s}
provisioner: %[2]s
reclaimPolicy: Retain
parameters: {csi.storage.k8s.io/fstype: %[3]s}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: lender}
spec: {accessModes: [ReadWriteOnce], storageClassName: %[1]s, resources: {requests: {storage: %[4]s}}}
---`, s.ns, driverName, fsType, size) + podYAML("lender", "persistentVolumeClaim: {claimName: lender}"))
	s.ready("lender")
	s.inPod("lender", "sh", "-c", "echo kept >/data/lent")
	var claim corev1.PersistentVolumeClaim
	s.get(&claim, "persistentvolumeclaim", "lender")
	var volume corev1.PersistentVolume
	s.get(&volume, "persistentvolume", claim.Spec.VolumeName)
	s.deletePod("lender")
	s.kubectl("delete", "--timeout=60s", "persistentvolumeclaim/lender", "storageclass/"+s.ns)
	s.kubectl("delete", "--timeout=60s", "persistentvolume", volume.Name)
	id = volume.Spec.CSI.VolumeHandle
	s.last = append(s.last, func() error {
		volume := "blockvolumes.storage.berth.io/" + id
		_, err := output(shared.inside(s.ctx, "kubectl", "annotate", volume, api.AnnotationDeleteData+"="+id))
		if err == nil {
			_, err = output(shared.inside(s.ctx, "kubectl", "delete", "--timeout=60s", volume))
		}
		return err
	})
	return id
}

// takeLast hands over what is to be taken away when the story's pods have gone.
func (s *story) takeLast() []func() error {
	last := s.last
	s.last = nil
	return last
}
