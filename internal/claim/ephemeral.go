package claim

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/component-helpers/storage/ephemeral"
	"k8s.io/utils/ptr"

	"berth.io/berth/internal/boundary"
)

// addEphemeral makes the claims of generic ephemeral volumes (upstream's ephemeral controller). The pod owns them, so
// the garbage collector deletes them with it. A claim that was deleted under a living pod is made again.
func (c *Controller) addEphemeral() error {
	q := newQueue()
	c.parts = append(c.parts, part{"ephemeral", q, c.opts.Workers, c.syncEphemeral})
	enqueue := func(pod *v1.Pod) {
		if pod.DeletionTimestamp != nil {
			return
		}
		for i := range pod.Spec.Volumes {
			if pod.Spec.Volumes[i].Ephemeral != nil {
				q.Add(pod.Namespace + "/" + pod.Name)
				return
			}
		}
	}
	c.onClaimGone = append(c.onClaimGone, func(last *v1.PersistentVolumeClaim) {
		pods, err := c.pods.using(keyOf(last))
		if err != nil {
			c.opts.Log.Error("look for pods of a deleted claim", "claim", keyOf(last), "error", err)
		}
		for _, pod := range pods {
			enqueue(pod)
		}
	})
	// A pod's volumes never change: updates tell nothing, unless they hide a new pod of the same name.
	return handle(c, c.opts.Informers.Core().V1().Pods().Informer(), func(old, now *v1.Pod) {
		if old == nil || old.UID != now.UID {
			enqueue(now)
		}
	}, nil)
}

func (c *Controller) syncEphemeral(ctx context.Context, key string) error {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return nil
	}
	pod, err := c.opts.Informers.Core().V1().Pods().Lister().Pods(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if pod.DeletionTimestamp != nil {
		return nil
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Ephemeral == nil {
			continue
		}
		if err := c.ensureEphemeral(ctx, pod, v); err != nil {
			c.event(pod, warning(reasonFailedBinding, fmt.Sprintf("ephemeral volume %s: %v", v.Name, err)))
			return fmt.Errorf("pod %s, ephemeral volume %s: %w", key, v.Name, err)
		}
	}
	return nil
}

// ensureEphemeral makes the volume's claim, or checks that the one of its name is the pod's own.
func (c *Controller) ensureEphemeral(ctx context.Context, pod *v1.Pod, v *v1.Volume) error {
	name := ephemeral.VolumeClaimName(pod, v)
	if claim := c.claims.get(pod.Namespace + "/" + name); claim != nil {
		return ephemeral.VolumeIsForPod(pod, claim)
	}
	template := v.Ephemeral.VolumeClaimTemplate
	claim := &v1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Labels: template.Labels, Annotations: template.Annotations,
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID,
				Controller: ptr.To(true), BlockOwnerDeletion: ptr.To(true),
			}},
		},
		Spec: template.Spec,
	}
	c.stats.ephemeralMade.Inc()
	err := boundary.Do("claim/create-ephemeral-claim", func() (err error) {
		claim, err = c.opts.Client.CoreV1().PersistentVolumeClaims(pod.Namespace).Create(ctx, claim, metav1.CreateOptions{})
		return err
	})
	if apierrors.IsAlreadyExists(err) {
		// The cache did not have it yet (a restart, a relist): whose is it?
		live, err := c.opts.Client.CoreV1().PersistentVolumeClaims(pod.Namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("read PVC %s: %w", name, err)
		}
		return ephemeral.VolumeIsForPod(pod, live)
	}
	if err != nil {
		c.stats.ephemeralFailed.Inc()
		return fmt.Errorf("create PVC %s: %w", name, err)
	}
	c.claims.put(claim)
	c.claimQueue.Add(keyOf(claim))
	return nil
}
