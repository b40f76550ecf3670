package cluster

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"

	"berth.io/berth/internal/discovery"
)

// runDiscovery offers this node's local disks as volumes, where that is asked for. Only then this process watches volumes.
func (n *node) runDiscovery(ctx context.Context) error {
	if n.DiscoveryConfig == "" {
		return nil
	}
	lower, stop := context.WithCancel(context.WithoutCancel(ctx))
	f := informers.NewSharedInformerFactoryWithOptions(n.client, 0, informers.WithTransform(leanLocal))
	defer f.Shutdown()
	defer stop()
	d, err := discovery.New(discovery.Options{Client: n.client, Informers: f, Node: n.NodeName, Config: n.DiscoveryConfig, InContainer: true, Patient: n.servesVolumes(),
		Jobs:   discovery.JobsFromEnvironment(n.namespace),
		Events: n.recorder("local-volume-provisioner"), Log: n.log, Metrics: n.metrics})
	if err != nil {
		return err
	}
	f.Start(lower.Done())
	return d.Run(ctx)
}

// leanLocal keeps of a volume that is not local its name alone: a node has no use for the others of the cluster. Nodes keep what
// discovery writes back.
func leanLocal(o any) (any, error) {
	switch o := o.(type) {
	case *corev1.PersistentVolume:
		if o.Spec.Local == nil {
			return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: o.Name, UID: o.UID, ResourceVersion: o.ResourceVersion}}, nil
		}
		o.ManagedFields = nil
	case *corev1.Node:
		o.ManagedFields = nil
		o.Status.Images = nil // an update of the node writes no status
	default:
		return lean(o)
	}
	return o, nil
}
