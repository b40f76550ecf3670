//go:build kubernetes

package kubernetes

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth.io/berth/internal/why"
)

// plugin builds kubectl-berth where the cluster sees it, and puts it on kubectl's PATH as a user does.
func (s *story) plugin() (run func(args ...string) (string, error)) {
	s.Helper()
	dir := filepath.Join(shared.state, "plugin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.Fatal(err)
	}
	s.last = append(s.last, func() error { return os.RemoveAll(dir) })
	build := exec.CommandContext(s.ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "kubectl-berth"), "berth.io/berth/cmd/kubectl-berth")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // nothing of the machine's libraries is needed
	if _, err := output(build); err != nil {
		s.Fatal(err)
	}
	return func(args ...string) (string, error) {
		return output(shared.inside(s.ctx, append([]string{"sh", "-c", `PATH=$0:$PATH; exec kubectl berth "$@"`, dir}, append(args, "-n", s.ns)...)...))
	}
}

// says asks until the answer has all of the texts: the kubelet and the controllers tell what they met a moment later.
func (s *story) says(run func(...string) (string, error), args []string, texts ...string) string {
	s.Helper()
	var out string
	s.until("kubectl berth "+strings.Join(args, " "), func() (err error) {
		if out, err = run(args...); err != nil {
			return err
		}
		for _, text := range texts {
			if !strings.Contains(out, text) {
				return fmt.Errorf("does not say %q:\n%s", text, out)
			}
		}
		return nil
	})
	return out
}

// What the plugin says of volumes as the real scheduler, controllers and kubelet leave them: local volumes that run, that miss their
// node and that miss their directory, a CSI volume whose driver is nowhere, and claims that wait.
func TestKubectlBerthInARealCluster(t *testing.T) {
	s := tell(t)
	run := s.plugin()
	class := "local-" + s.ns
	node := strings.TrimSpace(s.inside("kubectl", "get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"))
	disk := filepath.Join(shared.state, "disk-"+s.ns)
	if err := os.MkdirAll(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	s.last = append(s.last, func() error { return os.RemoveAll(disk) })
	volumes := []string{"runs", "nowhere", "nodirectory", "nodriver"}
	s.last = append(s.last, func() error {
		args := []string{"kubectl", "delete", "--ignore-not-found", "storageclass/" + class}
		for _, v := range volumes {
			args = append(args, "pv/"+v+"-"+s.ns)
		}
		_, err := output(shared.inside(s.ctx, args...))
		return err
	})
	s.apply(fmt.Sprintf("apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: %s}\nprovisioner: kubernetes.io/no-provisioner\nvolumeBindingMode: WaitForFirstConsumer\n---\n", class))
	at := func(name, source, node string) string {
		return fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: %[1]s-%[2]s}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {storage: 1Gi}
  claimRef: {namespace: %[2]s, name: %[1]s}
  storageClassName: %[3]s
  persistentVolumeReclaimPolicy: Retain
  %[4]s
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%[5]s]}]}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %[1]s}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}, storageClassName: %[3]s}
---`, name, s.ns, class, source, node)
	}
	local := fmt.Sprintf("local: {path: %s}", disk)
	s.apply(at("runs", local, node) + at("nowhere", local, "no-such-node") + at("nodirectory", "local: {path: /nonexistent/directory}", node) +
		at("nodriver", "csi: {driver: disk.example.com, volumeHandle: h}", node) + fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: lonely}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}, storageClassName: %s}
---`, class))
	s.says(run, []string{"why", "lonely"}, "no pod uses it", "This is no error.")
	for _, name := range volumes {
		s.apply(podYAML(name, fmt.Sprintf("persistentVolumeClaim: {claimName: %s}", name)))
	}
	s.ready("runs")
	out := s.says(run, []string{"why", "pod/runs"}, "Claimed", "Bound", "Scheduled", "Published", "the pod is Ready")
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[0] == "ok" && fields[1] != "Scheduled" && fields[2] == "-" {
			t.Errorf("a step without its time: %s%s", line, out)
		}
	}
	s.says(run, []string{"why", "pod/nowhere"}, "Waits for   a node", "kubernetes.io/hostname is no-such-node, and there is no such node")
	s.says(run, []string{"why", "pod/nodirectory"}, "Waits for   node "+node+" to mount the volume", "Held by     kubelet of node "+node, "/nonexistent/directory")
	s.says(run, []string{"why", "pvc/nodriver"}, "CSI driver disk.example.com is not registered on node "+node, "FailedAttachVolume", "What to do")
	var all why.Chains
	if err := json.Unmarshal([]byte(s.says(run, []string{"why", "-A", "-o", "json"}, "nodirectory")), &all); err != nil {
		t.Fatal(err)
	}
	found := 0
	for i := range all.Links {
		if l := &all.Links[i]; l.Namespace == s.ns && l.Claim != "" {
			found++
			if (l.Waiting == nil && l.Problem == nil) != (l.Pod == "runs") {
				t.Errorf("%+v", l)
			}
		}
	}
	if found != len(volumes)+1 { // and the claim that no pod uses
		t.Errorf("%d lines of the story's %d volumes", found, len(volumes)+1)
	}
	out, err := run("why", "pod/runs", "--as", "system:serviceaccount:"+s.ns+":default")
	if err == nil || !strings.Contains(err.Error(), "you may not read pods") {
		t.Errorf("without any rights: %v\n%s", err, out)
	}
	s.kubectl("create", "rolebinding", "look", "--clusterrole=view", "--serviceaccount="+s.ns+":default")
	s.says(run, []string{"why", "pod/runs", "--as", "system:serviceaccount:" + s.ns + ":default"}, "the pod is Ready", "you may not read persistentvolumes")
}
