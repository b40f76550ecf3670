package cluster

import (
	"context"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/block/objects"
)

// node is the Node object of that name; nil when the cache has none.
func (b *Backend) node(name string) *v1.Node {
	n, err := b.o.Nodes.Lister().Get(name)
	if err != nil {
		return nil
	}
	return n
}

// whyAway says why the node cannot be expected to answer now; empty when it can.
func (b *Backend) whyAway(name string) string {
	if name == "" {
		return ""
	}
	n := b.node(name)
	if n == nil {
		return fmt.Sprintf("there is no Node %s", name)
	}
	for _, c := range n.Status.Conditions {
		if c.Type == v1.NodeReady && c.Status != v1.ConditionTrue {
			return fmt.Sprintf("node %s is not ready since %s (%s)", name, c.LastTransitionTime.UTC().Format(time.RFC3339), c.Message)
		}
	}
	pools := objects.Of[api.BlockPool](b.pools, byNode, name)
	if len(pools) == 0 {
		return fmt.Sprintf("node %s has no pool: does the node agent run there?", name)
	}
	for _, p := range pools {
		if p.Status.Ready {
			return ""
		}
	}
	return fmt.Sprintf("the pool of node %s is not ready (%s)", name, reasonOf(pools[0]))
}

func reasonOf(p *api.BlockPool) string {
	for _, c := range p.Status.Conditions {
		if c.Type == api.ConditionReady && c.Message != "" {
			return c.Message
		}
	}
	return "its agent has not said anything yet"
}

// seemsLost says why the node will not come back with its data, as far as the caches know; empty when it may.
func (b *Backend) seemsLost(name string, of ...metav1.Object) string {
	for _, p := range objects.Of[api.BlockPool](b.pools, byNode, name) {
		of = append(of, p)
	}
	for _, o := range of {
		if o.GetAnnotations()[api.AnnotationNodeLost] == name {
			return fmt.Sprintf("node %s is lost: %s says so by its annotation %s", name, o.GetName(), api.AnnotationNodeLost)
		}
	}
	if b.o.Nodes.Informer().HasSynced() && b.node(name) == nil {
		return fmt.Sprintf("node %s is lost: its Node object is gone", name)
	}
	return ""
}

// lost says the same for certain: whether there is a Node is asked of the API server, since a cache can be old. What follows
// gives up data.
func (b *Backend) lost(ctx context.Context, name string, of ...metav1.Object) (why string, err error) {
	if why = b.seemsLost(name, of...); why == "" {
		return "", nil
	}
	if b.node(name) != nil {
		return why, nil // an annotation says so
	}
	_, err = b.o.Kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return why, nil
	case err != nil:
		return "", fmt.Errorf("look whether node %s is gone: %w", name, err)
	}
	for _, o := range of {
		if o.GetAnnotations()[api.AnnotationNodeLost] == name {
			return why, nil
		}
	}
	return "", nil
}

// outOfService: an administrator says that nothing runs on the node any more
// (https://kubernetes.io/docs/concepts/cluster-administration/node-shutdown). Its data may come back with it.
func (b *Backend) outOfService(name string) bool {
	n := b.node(name)
	if n == nil {
		return false
	}
	for _, t := range n.Spec.Taints {
		if t.Key == v1.TaintNodeOutOfService {
			return true
		}
	}
	return false
}
