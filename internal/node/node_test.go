package node

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clienttesting "k8s.io/client-go/testing"
)

func TestNodeLeaseAndCSINodeAreMade(t *testing.T) {
	r := start(t)
	r.eventually(func() string {
		node, err := r.client.CoreV1().Nodes().Get(context.Background(), "node-1", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if node.Annotations[attachDetachAnnotation] != "true" || node.Labels[v1.LabelHostname] != "node-1" || !readyNow(node) {
			return "node " + node.String()
		}
		if !strings.HasPrefix(node.Status.NodeInfo.KubeletVersion, kubernetesVersion+"+berth") || node.Status.Capacity.Pods().Value() != maxPods {
			return "status " + node.Status.String()
		}
		if promise := node.Annotations[keepsInUseAnnotation]; promise != node.Status.NodeInfo.KubeletVersion {
			return "no promise of this version: " + promise
		}
		var lease *coordinationv1.Lease
		if lease, err = r.client.CoordinationV1().Leases(v1.NamespaceNodeLease).Get(context.Background(), "node-1", metav1.GetOptions{}); err != nil {
			return err.Error()
		}
		if *lease.Spec.HolderIdentity != "node-1" || lease.Spec.RenewTime.IsZero() {
			return "lease " + lease.String()
		}
		_, err = r.client.StorageV1().CSINodes().Get(context.Background(), "node-1", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		return ""
	})
}

// What others put into the Node stays; what is ours and wrong is put right.
func TestNodeIsAdopted(t *testing.T) {
	r := start(t, &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "node-1", UID: "old", ResourceVersion: "5", Labels: map[string]string{"zone": "z"}},
		Spec:       v1.NodeSpec{Unschedulable: true},
		Status: v1.NodeStatus{
			Conditions:   []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionUnknown, Reason: "NodeStatusUnknown"}},
			VolumesInUse: []v1.UniqueVolumeName{"v"},
			Addresses:    []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: "203.0.113.7"}, {Type: v1.NodeExternalIP, Address: "203.0.113.8"}},
		},
	})
	r.eventually(func() string {
		node, err := r.client.CoreV1().Nodes().Get(context.Background(), "node-1", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if !readyNow(node) || node.Labels["zone"] != "z" || !node.Spec.Unschedulable || len(node.Status.VolumesInUse) != 1 {
			return "node " + node.String()
		}
		return ""
	})
}

// Somebody deletes the Node of a live machine: the one that is made again says from its first moment which volumes are in use.
func TestNodeIsMadeAgainWithItsVolumesInUse(t *testing.T) {
	r := start(t)
	nodes := r.client.CoreV1().Nodes()
	r.eventually(func() string {
		if _, err := nodes.Get(t.Context(), "node-1", metav1.GetOptions{}); err != nil {
			return err.Error()
		}
		// The fake API loses what happens between an informer's list and its watch.
		for _, a := range r.client.Actions() {
			if a.Matches("watch", "nodes") {
				return ""
			}
		}
		return "the nodes are not watched yet"
	})
	r.mounts.mu.Lock()
	r.mounts.inUse = []v1.UniqueVolumeName{"kubernetes.io/csi/d^v"}
	r.mounts.mu.Unlock()
	if err := nodes.Delete(t.Context(), "node-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.eventually(func() string {
		for _, a := range r.client.Actions() {
			if c, ok := a.(clienttesting.CreateAction); ok && a.GetResource().Resource == "nodes" {
				if node := c.GetObject().(*v1.Node); len(node.Status.VolumesInUse) == 1 {
					return ""
				}
			}
		}
		return "no Node was made with the volumes in use"
	})
}

func TestNodePatchReplacesAddresses(t *testing.T) {
	old := &v1.Node{Status: v1.NodeStatus{Addresses: []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: "203.0.113.7"}}}}
	wanted := old.DeepCopy()
	wanted.Status.Addresses = []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: "203.0.113.9"}, {Type: v1.NodeHostName, Address: "h"}}
	patch, err := nodePatch(old, wanted)
	if err != nil {
		t.Fatal(err)
	}
	var tree struct {
		Status struct {
			Addresses []map[string]string `json:"addresses"`
		} `json:"status"`
	}
	if err := json.Unmarshal(patch, &tree); err != nil {
		t.Fatal(err)
	}
	list := tree.Status.Addresses
	if len(list) != 3 || list[0]["$patch"] != "replace" || list[1]["address"] != "203.0.113.9" {
		t.Errorf("patch %s", patch)
	}
}

func TestDescribeTwiceIsTheSame(t *testing.T) {
	n := &nodeObject{opts: &Options{Node: "n", DataDir: t.TempDir()}, hostname: "h"}
	first := n.describe(&v1.Node{})
	second := n.describe(first.DeepCopy())
	a, _ := json.Marshal(first)
	b, _ := json.Marshal(second)
	if string(a) != string(b) {
		t.Errorf("an unchanged node would be written again:\n%s\n%s", a, b)
	}
}

func TestNodeNames(t *testing.T) {
	for name, ok := range map[string]bool{"host": true, "Host.Example": true, "": false, "a_b": false, "-x": false} {
		_, err := New(Options{Node: name})
		refused := err != nil && strings.HasPrefix(err.Error(), "node name")
		if refused == ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// A node that attaches by itself must not be the controller's, also when an earlier start said that it is.
func TestNodeThatAttachesByItself(t *testing.T) {
	for _, alone := range []bool{true, false} {
		n := &nodeObject{opts: &Options{Node: "node-1", DataDir: t.TempDir(), AttachOnNode: alone}}
		got := n.describe(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1", Annotations: map[string]string{attachDetachAnnotation: "true", "other": "x"}}})
		if _, managed := got.Annotations[attachDetachAnnotation]; managed == alone || got.Annotations["other"] != "x" {
			t.Errorf("alone %v: %v", alone, got.Annotations)
		}
	}
}
