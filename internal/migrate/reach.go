package migrate

import (
	"context"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// reach finds from where the CSI driver serves the volume, for its node affinity: FlexVolume volumes seldom have one, and without it a
// pod could be placed where the volume's pool is not.
func (m *Migration) reach(ctx context.Context, pv *v1.PersistentVolume) (*v1.VolumeNodeAffinity, error) {
	if _, err := m.Client.StorageV1().CSIDrivers().Get(ctx, CSIBlock, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		return nil, refuse(pv.Name, "the CSI driver %s is not installed here", CSIBlock)
	} else if err != nil {
		return nil, fmt.Errorf("read CSIDriver %s: %w", CSIBlock, err)
	}
	if pv.Spec.NodeAffinity != nil {
		return pv.Spec.NodeAffinity, nil
	}
	list, err := m.Client.StorageV1().CSINodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("look where CSI driver %s runs: %w", CSIBlock, err)
	}
	keys := map[string][]string{} // of the nodes that have the driver
	var nodes []string
	for _, n := range list.Items {
		for _, d := range n.Spec.Drivers {
			if d.Name == CSIBlock && (m.Node == "" || m.Node == n.Name) {
				keys[n.Name] = d.TopologyKeys
				nodes = append(nodes, n.Name)
			}
		}
	}
	slices.Sort(nodes)
	switch {
	case len(nodes) == 0 && m.Node != "":
		return nil, refuse(pv.Name, "CSI driver %s does not run on node %s", CSIBlock, m.Node)
	case len(nodes) == 0:
		return nil, refuse(pv.Name, "CSI driver %s runs on no node", CSIBlock)
	case len(nodes) > 1:
		return nil, refuse(pv.Name, "it has no node affinity, and CSI driver %s runs on %s: name the node whose pool has it with --node", CSIBlock, strings.Join(nodes, ", "))
	}
	node, err := m.Client.CoreV1().Nodes().Get(ctx, nodes[0], metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read node %s: %w", nodes[0], err)
	}
	return affinity(node, keys[node.Name])
}

// affinity is that of a volume which the provisioner makes on the node.
func affinity(node *v1.Node, keys []string) (*v1.VolumeNodeAffinity, error) {
	if len(keys) == 0 {
		return nil, nil // the driver serves every node alike
	}
	var term v1.NodeSelectorTerm
	for _, key := range slices.Sorted(slices.Values(keys)) {
		value, ok := node.Labels[key]
		if !ok {
			return nil, fmt.Errorf("node %s has no label %s, which its CSI driver puts there when it registers: wait for it", node.Name, key)
		}
		term.MatchExpressions = append(term.MatchExpressions, v1.NodeSelectorRequirement{Key: key, Operator: v1.NodeSelectorOpIn, Values: []string{value}})
	}
	return &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{term}}}, nil
}
