package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const examplesDir = "../../examples"

// example is what a file in examples/ comes to.
type example struct {
	pods []string
	// alone are pods of which only one may be Ready at a time.
	alone  []string
	claims []string
	then   func(s *story)
	// prepare edits the text as the comment on top of the file says.
	prepare func(s *story, text string) string
	delete  string // what outlives the namespace
}

var examples = map[string]example{
	"quickstart.yaml":  {pods: []string{"quickstart"}, claims: []string{"quickstart"}, delete: "sc/quickstart"},
	"statefulset.yaml": {pods: []string{"example-db-0", "example-db-1"}, claims: []string{"data-example-db-0", "data-example-db-1"}},
	"raw-block.yaml": {pods: []string{"example-raw"}, claims: []string{"example-raw"}, then: func(s *story) {
		if out := s.berth("exec", "-n", s.ns, "example-raw", "--", "blockdev", "--getsize64", "/dev/xvda"); strings.TrimSpace(out) != fmt.Sprint(64<<20) {
			s.Errorf("size of the device: %s", out)
		}
	}},
	"static-local.yaml": {pods: []string{"example-local"}, claims: []string{"example-local"}, prepare: func(s *story, text string) string {
		return strings.NewReplacer("[NODE]", "["+s.node()+"]", "/srv/example-local", s.TempDir()).Replace(text)
	}, delete: "pv/example-local sc/example-local"},
	"static-csi.yaml": {pods: []string{"example-static-csi"}, claims: []string{"example-static-csi"}, prepare: func(s *story, text string) string {
		return strings.NewReplacer("[NODE]", "["+s.node()+"]", "VOLUME-ID", lent(s, "static", "64Mi", "ext4")).Replace(text)
	}, then: func(s *story) {
		holds(s.T, paths(s, s.pod("example-static-csi"))["data"])
	}, delete: "pv/example-static-csi"},
	"topology.yaml": {pods: []string{"example-topology"}, claims: []string{"example-topology"}, prepare: func(s *story, text string) string {
		return strings.ReplaceAll(text, "[NODE]", "["+s.node()+"]")
	}, delete: "sc/example-topology"},
	"generic-ephemeral.yaml": {pods: []string{"example-scratch"}, claims: []string{"example-scratch-tmp"}},
	"expansion.yaml": {pods: []string{"example-grow"}, claims: []string{"example-grow"}, then: func(s *story) {
		s.kubectl("patch", "pvc", "example-grow", "-p", `{"spec":{"resources":{"requests":{"storage":"512Mi"}}}}`)
		s.until("the volume to have grown", func() (bool, string) {
			have := s.claim("example-grow").Status.Capacity.Storage().String()
			return have == "512Mi", have
		})
	}, delete: "sc/example-grow"},
	"inline-volume.yaml": {pods: []string{"example-inline"}, then: func(s *story) {
		if out := s.berth("exec", "-n", s.ns, "example-inline", "--", "df", "--output=fstype", "/scratch"); !strings.Contains(out, "xfs") {
			s.Errorf("filesystem of the inline volume: %s", out)
		}
	}},
	"snapshot.yaml": {pods: []string{"example-source", "example-restored"}, claims: []string{"example-source", "example-restored"}},
	"clone.yaml":    {pods: []string{"example-original", "example-clone"}, claims: []string{"example-original", "example-clone"}},
	"group-snapshot.yaml": {pods: []string{"example-group"}, claims: []string{"example-log", "example-data"}, then: func(s *story) {
		s.until("the group snapshot and its two members to be ready", func() (bool, string) {
			group := s.kubectl("get", "volumegroupsnapshot", "example-group", "-o", "jsonpath={.status.readyToUse}")
			members := s.kubectl("get", "volumesnapshots", "-o", "jsonpath={.items[*].status.readyToUse}")
			return strings.TrimSpace(group) == "true" && strings.TrimSpace(members) == "true true", group + ": " + members
		})
		s.kubectl("delete", "volumegroupsnapshot", "example-group")
	}},
	// Its StatefulSet runs in TestLocalDisksBecomeVolumes, which has disks; without, its pods wait for volumes.
	"discovery.yaml": {then: func(s *story) {
		s.until("a pod that waits for a volume", func() (bool, string) {
			out := s.kubectl("get", "pod", "example-disks-0", "--ignore-not-found", "-o", "jsonpath={.status.conditions[*].message}")
			return strings.Contains(out, "persistent volumes to bind"), out
		})
	}, delete: "sc/example-disks"},
	// TestStatefulSetOnLocalDisks has disks for it.
	"statefulset-local.yaml": {then: func(s *story) {
		s.until("a pod that waits for a volume", func() (bool, string) {
			out := s.kubectl("get", "pod", "example-local-0", "--ignore-not-found", "-o", "jsonpath={.status.conditions[*].message}")
			return strings.Contains(out, "persistent volumes to bind"), out
		})
	}, delete: "sc/example-raw-disks"},
	"read-write-once-pod.yaml": {alone: []string{"example-alone-a", "example-alone-b"}, claims: []string{"example-alone"}},
	"other-driver.yaml": {pods: []string{"example-other"}, claims: []string{"example-other"}, prepare: func(s *story, text string) string {
		const name = "example.test.berth.io"
		startForeign(s, name, false)
		s.kubectl("delete", "csidriver", name) // the example makes it
		return strings.ReplaceAll(text, "hostpath.csi.k8s.io", name)
	}, delete: "sc/example-other"},
}

// node is the name of the instance's only node.
func (s *story) node() string {
	s.Helper()
	nodes, err := s.client.CoreV1().Nodes().List(s.ctx, metav1.ListOptions{})
	if err != nil {
		s.Fatal(err)
	}
	return nodes.Items[0].Name
}

// Every file in examples/ does what its comment says, on an instance that has just been started.
func TestExamples(t *testing.T) {
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
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(string(b), "# ") {
				t.Error("no comment on top says how to use it")
			}
			s := tell(t)
			s.try(e, string(b))
		})
	}
}

func (s *story) try(e example, text string) {
	if e.prepare != nil {
		text = e.prepare(s, text)
	}
	s.apply(text)
	for _, p := range e.pods {
		s.ready(p)
	}
	if len(e.alone) > 0 {
		s.oneAlone(e.alone)
	}
	for _, c := range e.claims {
		if phase := s.claim(c).Status.Phase; phase != corev1.ClaimBound {
			s.Errorf("claim %s is %s", c, phase)
		}
	}
	if e.then != nil {
		e.then(s)
	}
	s.deleteNamespace()
	if e.delete != "" {
		s.kubectl(append([]string{"delete"}, strings.Fields(e.delete)...)...)
	}
}

// oneAlone waits until one of the pods is Ready, deletes it, and waits for the next.
func (s *story) oneAlone(pods []string) {
	for len(pods) > 0 {
		var first string
		s.until("one pod Ready", func() (bool, string) {
			ready := slices.DeleteFunc(slices.Clone(pods), func(p string) bool { return !isReady(s.pod(p)) })
			if len(ready) > 1 {
				s.Fatalf("Ready at once: %v", ready)
			}
			first = strings.Join(ready, "")
			return len(ready) == 1, ""
		})
		s.kubectl("delete", "pod", first, "--grace-period=1")
		pods = slices.DeleteFunc(slices.Clone(pods), func(p string) bool { return p == first })
	}
}
