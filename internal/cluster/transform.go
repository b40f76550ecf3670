package cluster

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/apiclient"
)

// lean keeps of each object what is read here: it is the larger part of the process's memory in a cluster with many.
//
// Objects that somebody here writes back whole (claims, volumes, attachments) lose their managedFields alone: a field that an update
// does not carry would be taken away, and managedFields are the exception.
func lean(o any) (any, error) {
	switch o := o.(type) {
	case *corev1.Pod:
		return leanPod(o), nil
	case *corev1.Node:
		o.Status = leanNodeStatus(o.Status)
		o.Annotations = nil
	}
	return apiclient.WithoutManagedFields(o)
}

// leanNodeStatus keeps whether the node is ready: the list of images alone may have 50 entries.
func leanNodeStatus(s corev1.NodeStatus) (out corev1.NodeStatus) {
	for _, c := range s.Conditions {
		if c.Type == corev1.NodeReady {
			out.Conditions = []corev1.NodeCondition{c}
		}
	}
	return out
}

// leanPod keeps what external-resizer reads: which claims a pod uses, and whether it has ended.
func leanPod(p *corev1.Pod) *corev1.Pod {
	out := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, UID: p.UID, ResourceVersion: p.ResourceVersion}}
	out.Status.Phase = p.Status.Phase
	for _, v := range p.Spec.Volumes {
		if v.PersistentVolumeClaim != nil {
			out.Spec.Volumes = append(out.Spec.Volumes, v)
		}
	}
	return out
}
