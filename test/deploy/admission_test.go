package deploy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// TestNodesKeepToThemselves: a node's agent may write what is of its node, as the kubelet's token names it, and nothing of another's.
func TestNodesKeepToThemselves(t *testing.T) {
	kubectl := startAPI(t, bin(t))
	kubectl("apply", "-k", root+"/deploy/kubernetes")
	kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
	discovery := ""
	for _, u := range render(t, values(t, everything)) { // its role is not among the defaults
		if strings.HasPrefix(u.GetName(), "berth-node") && strings.HasPrefix(u.GetKind(), "ClusterRole") {
			text, err := u.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			discovery += string(text) + "\n---\n"
		}
	}
	apply(t, kubectl, discovery)
	objects := ""
	for _, node := range []string{"a", "b"} {
		objects += strings.ReplaceAll(`
apiVersion: v1
kind: Node
metadata: {name: NODE}
---
apiVersion: storage.berth.io/v1alpha1
kind: BlockVolume
metadata: {name: vol-NODE}
spec: {node: NODE, name: pvc-NODE, sizeBytes: 1048576}
---
apiVersion: storage.berth.io/v1alpha1
kind: BlockSnapshot
metadata: {name: snap-NODE}
spec: {node: NODE, name: snapshot-NODE, volume: vol-NODE}
---
`, "NODE", node)
	}
	const volume = `
apiVersion: v1
kind: PersistentVolume
metadata: {name: NAME}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {storage: 1Gi}
  storageClassName: other
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [a]}]}]}}
  SOURCE
---
`
	objects += strings.NewReplacer("NAME", "disk", "SOURCE", "local: {path: /mnt/disk}").Replace(volume)
	objects += strings.NewReplacer("NAME", "somebodys", "SOURCE", "csi: {driver: of.somebody.else, volumeHandle: x}").Replace(volume)
	apply(t, kubectl, objects)

	config, err := clientcmd.RESTConfigFromKubeConfig([]byte(kubectl("config", "view", "--raw", "--flatten")))
	if err != nil {
		t.Fatal(err)
	}
	as := func(extra map[string][]string) dynamic.Interface {
		t.Helper()
		c := rest.CopyConfig(config)
		c.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:berth-system:berth-node", Groups: []string{"system:serviceaccounts", "system:authenticated"}, Extra: extra}
		client, err := dynamic.NewForConfig(c)
		if err != nil {
			t.Fatal(err)
		}
		return client
	}
	onA := as(map[string][]string{"authentication.kubernetes.io/node-name": {"a"}})
	nowhere := as(nil) // a token that no kubelet asked for
	ours := func(resource string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Group: "storage.berth.io", Version: "v1alpha1", Resource: resource}
	}
	core := func(resource string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Version: "v1", Resource: resource}
	}
	pool := func(node string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "storage.berth.io/v1alpha1", "kind": "BlockPool",
			"metadata": map[string]any{"name": node}, "spec": map[string]any{"node": node}}}
	}
	patch := func(by dynamic.Interface, of schema.GroupVersionResource, name, text string, sub ...string) func() error {
		return func() error {
			_, err := by.Resource(of).Patch(t.Context(), name, types.MergePatchType, []byte(text), metav1.PatchOptions{}, sub...)
			return err
		}
	}
	create := func(by dynamic.Interface, of schema.GroupVersionResource, o *unstructured.Unstructured) func() error {
		return func() error {
			_, err := by.Resource(of).Create(t.Context(), o, metav1.CreateOptions{})
			return err
		}
	}
	const finalizer, status = `{"metadata":{"finalizers":["storage.berth.io/node"]}}`, `{"status":{"problem":"x"}}`
	refused := []struct {
		what string
		try  func() error
	}{
		{"the pool of another node", create(onA, ours("blockpools"), pool("b"))},
		{"the finalizer of another node's volume", patch(onA, ours("blockvolumes"), "vol-b", finalizer)},
		{"the status of another node's volume", patch(onA, ours("blockvolumes"), "vol-b", status, "status")},
		{"the status of another node's snapshot", patch(onA, ours("blocksnapshots"), "snap-b", status, "status")},
		{"another Node", patch(onA, core("nodes"), "b", `{"spec":{"taints":null,"unschedulable":true}}`)},
		{"a volume, by a token without a node", patch(nowhere, ours("blockvolumes"), "vol-a", finalizer)},
		{"a PersistentVolume that is none of ours", patch(onA, core("persistentvolumes"), "somebodys", `{"metadata":{"labels":{"x":"y"}}}`)},
		{"the end of such a PersistentVolume", func() error { // last: it cannot be tried twice
			return onA.Resource(core("persistentvolumes")).Delete(t.Context(), "somebodys", metav1.DeleteOptions{})
		}},
	}
	// A policy holds a moment after it was written.
	deadline := time.Now().Add(30 * time.Second)
	for _, r := range refused {
		for {
			err := r.try()
			if err != nil && strings.Contains(err.Error(), "ValidatingAdmissionPolicy 'berth-node-") {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("%s: %v", r.what, err)
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	for what, try := range map[string]func() error{
		"its pool":                    create(onA, ours("blockpools"), pool("a")),
		"the finalizer of its volume": patch(onA, ours("blockvolumes"), "vol-a", finalizer),
		"the status of its volume":    patch(onA, ours("blockvolumes"), "vol-a", status, "status"),
		"the status of its snapshot":  patch(onA, ours("blocksnapshots"), "snap-a", status, "status"),
		"its Node":                    patch(onA, core("nodes"), "a", `{"metadata":{"labels":{"x":"y"}}}`),
		"a local PersistentVolume":    patch(onA, core("persistentvolumes"), "disk", `{"metadata":{"labels":{"x":"y"}}}`),
		"the end of the PersistentVolume": func() error {
			return onA.Resource(core("persistentvolumes")).Delete(t.Context(), "disk", metav1.DeleteOptions{})
		},
	} {
		if err := try(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func apply(t *testing.T, kubectl func(args ...string) string, text string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "objects.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl("apply", "-f", file)
}
