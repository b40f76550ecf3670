package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.io/berth/internal/kubectlberth"
	"berth.io/berth/internal/why"
)

// plugin runs kubectl-berth on the instance's API as on any cluster's: it is given a kubeconfig and nothing else of Berth's.
func (s *story) plugin(args ...string) (out string, code int) {
	s.Helper()
	return s.pluginAs("kubectl-berth", args...)
}

func (s *story) pluginAs(name string, args ...string) (out string, code int) {
	var b, errors bytes.Buffer
	line := append([]string{name}, args...)
	line = append(line, "--kubeconfig", filepath.Join(s.in.Dir, "kubeconfig"), "-n", s.ns)
	if strings.Contains(name, "kubectl_complete") { // the last word is the one to complete
		line = append([]string{name, "--kubeconfig", filepath.Join(s.in.Dir, "kubeconfig"), "-n", s.ns}, args...)
	}
	code = kubectlberth.Run(s.ctx, "test", line, &b, &errors)
	return b.String() + errors.String(), code
}

func (s *story) pluginSays(args []string, texts ...string) string {
	s.Helper()
	out, code := s.plugin(args...)
	if code != 0 {
		s.Errorf("kubectl berth %s ended with %d:\n%s", strings.Join(args, " "), code, out)
	}
	for _, text := range texts {
		if !strings.Contains(out, text) {
			s.Errorf("kubectl berth %s does not say %q:\n%s", strings.Join(args, " "), text, out)
		}
	}
	return out
}

// The plugin tells of a mounted volume from the API alone, as text, as a table, and as JSON.
func TestKubectlBerthTellsFromTheAPIAlone(t *testing.T) {
	s := tell(t)
	s.apply(claimYAML("data", "32Mi") + podYAML("app", "data"))
	s.ready("app")
	out := s.pluginSays([]string{"why", "pod/app"}, "Claimed", "Provisioned", "by block.csi.berth.io", "Bound", "Attached", "the pod is Ready")
	if strings.Contains(out, "Staged") || strings.Contains(out, "journal") {
		t.Errorf("tells what only the journal knows:\n%s", out)
	}
	s.pluginSays([]string{"why", "pvc", "data"}, "claim "+s.ns+"/data")
	s.pluginSays([]string{"why", "pvc/data", "pod/app"}, "----")
	var j why.Journey
	if err := json.Unmarshal([]byte(s.pluginSays([]string{"why", "data", "-o", "json"})), &j); err != nil || len(j.Volumes) != 1 || j.Volumes[0].Waiting != nil || j.Volumes[0].Disk == "" {
		t.Errorf("%v: %+v", err, j.Volumes)
	}
	s.kubectl("label", "pod/app", "app=db")
	table := s.pluginSays([]string{"why", "-l", "app=db"}, "POD", "DISK", "app", "data", "Ready")
	if lines := strings.Count(table, "\n"); lines != 2 {
		t.Errorf("%d lines:\n%s", lines, table)
	}
	s.pluginSays([]string{"why", "-l", "app=db", "-o", "wide"}, "VOLUMEATTACHMENT", "block.csi.berth.io")
	s.pluginSays([]string{"why", "-l", "app=other"}, "No pods or claims found.")
	var all why.Chains
	if err := json.Unmarshal([]byte(s.pluginSays([]string{"why", "-A", "-o", "json"})), &all); err != nil || len(all.Links) == 0 {
		t.Errorf("%v: %+v", err, all)
	}
	for _, wrong := range [][]string{{"why"}, {"why", "node/x"}, {"why", "-l", "a in"}, {"why", "data", "-A"}, {"why", "-A", "-w"}, {"why", "data", "-o", "xml"}, {"why", "--no-such-flag"}} {
		if out, code := s.plugin(wrong...); code != 2 {
			t.Errorf("%s: %d\n%s", wrong, code, out)
		}
	}
	if out, code := s.plugin("why", "pvc/dat"); code != 1 || !strings.Contains(out, "did you mean pvc/data?") || strings.Contains(out, "journal") {
		t.Errorf("%d: %s", code, out)
	}
}

// A driver that is not Berth's, and not there: the class names it, the claim is handed to it, and nobody takes it up.
func TestKubectlBerthOfAnotherDriver(t *testing.T) {
	s := tell(t)
	class := "foreign-" + s.ns
	s.apply(fmt.Sprintf("apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: %s}\nprovisioner: disk.example.com\n---", class) +
		claimYAML("data", "1Gi", "storageClassName: "+class) + claimYAML("misspelt", "1Gi", "storageClassName: no-such-class"))
	t.Cleanup(func() { s.kubectl("delete", "storageclass", class) })
	s.until("the claim is handed to its driver", func() (bool, string) {
		by := s.claim("data").Annotations["volume.kubernetes.io/storage-provisioner"]
		return by == "disk.example.com", by
	})
	s.pluginSays([]string{"why", "data"}, "driver disk.example.com to make the volume", "no driver of this name has registered", "Matched", "handed to provisioner disk.example.com")
	s.pluginSays([]string{"why", "misspelt"}, `StorageClass "no-such-class" does not exist.`)
}

// Who may read the objects of the namespace and no others gets an answer; what could not be read is said.
func TestKubectlBerthWithFewRights(t *testing.T) {
	s := tell(t)
	s.apply(claimYAML("data", "32Mi") + podYAML("app", "data") + `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: look}
rules: [{apiGroups: [""], resources: [pods, persistentvolumeclaims, events], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: look}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: look}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: jane}]
---`)
	s.ready("app")
	out := s.pluginSays([]string{"why", "pod/app", "--as", "jane"}, "the pod is Ready", "you may not read persistentvolumes; what follows leaves them out")
	for _, wrong := range []string{"does not exist", "not registered", "to be created", "Why  "} {
		if strings.Contains(out, wrong) {
			t.Errorf("concludes %q from what may not be read:\n%s", wrong, out)
		}
	}
	s.pluginSays([]string{"why", "-l", "", "--as", "jane"}, "app", "Ready", "Note: you may not read persistentvolumes")
	for _, args := range [][]string{{"why", "pod/app", "--as", "nobody"}, {"why", "pv/x", "--as", "jane"}, {"why", "vs/x", "--as", "jane"}} {
		if out, code := s.plugin(args...); code != 1 || !strings.Contains(out, "you may not read") {
			t.Errorf("%s: %d: %s", args, code, out)
		}
	}
}

// --watch tells the journey again until the pod runs, and ends then.
func TestKubectlBerthFollowsUntilThePodRuns(t *testing.T) {
	s := tell(t)
	s.apply(claimYAML("data", "32Mi"))
	var out safeBuffer
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	ended := make(chan int, 1)
	go func() {
		ended <- kubectlberth.Run(ctx, "test", []string{"kubectl-berth", "why", "data", "-w", "-n", s.ns, "--kubeconfig", filepath.Join(s.in.Dir, "kubeconfig")}, &out, &out)
	}()
	s.until("the first answer", func() (bool, string) { return strings.Contains(out.String(), "no pod uses it"), out.String() })
	s.apply(podYAML("app", "data"))
	if code := <-ended; code != 0 || !strings.Contains(out.String(), "the pod is Ready") {
		t.Errorf("ended with %d:\n%s", code, out.String())
	}
}

// Called by the name that kubectl completes with, it offers the objects.
func TestKubectlBerthCompletes(t *testing.T) {
	s := tell(t)
	s.apply(claimYAML("data", "32Mi"))
	for _, c := range []struct {
		args []string
		want string
	}{{[]string{"why", "pvc/"}, "pvc/data\n"}, {[]string{"why", "pvc", ""}, "data\n"}, {[]string{"why", "-o", ""}, "wide\n"}, {[]string{"w"}, "why\t"}, {[]string{"why", "--namespace", ""}, s.ns + "\n"}} {
		out, code := s.pluginAs("/usr/local/bin/kubectl_complete-berth", c.args...)
		if code != 0 || !strings.Contains(out, c.want) || !strings.Contains(out, "\n:4\n") {
			t.Errorf("%q: %d: %q", c.args, code, out)
		}
	}
}

// safeBuffer is read while it is written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
