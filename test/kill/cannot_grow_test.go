package kill

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// withoutSysResource runs berth up as in a container that may not grow a mounted ext4.
var withoutSysResource = []string{"setpriv", "--bounding-set", "-sys_resource"}

const growsUnmounted = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], storageClassName: berth-block, resources: {requests: {storage: 64Mi}}}
`

const podThatGrows = `---
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  containers:
  - {name: app, image: busybox, volumeMounts: [{name: data, mountPath: /data}]}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data}}
`

// cannotGrowLife grows an ext4 where only an unmounted one can be: the claim waits, and the next mount grows it.
func (s *script) cannotGrowLife() []step {
	const larger = "128Mi"
	return []step{
		{"the manifests are applied", func() error { return s.in.Apply(s.ctx, growsUnmounted+podThatGrows) }},
		{"the pod is Ready", s.podReady},
		{"data is written and fsynced", s.write},
		{"the claim asks for more", func() error {
			_, err := s.client.CoreV1().PersistentVolumeClaims(ns).Patch(s.ctx, "data", types.MergePatchType,
				[]byte(`{"spec":{"resources":{"requests":{"storage":"`+larger+`"}}}}`), metav1.PatchOptions{})
			return err
		}},
		{"the volume has grown, and its filesystem waits", func() error {
			c, err := s.client.CoreV1().PersistentVolumeClaims(ns).Get(s.ctx, "data", metav1.GetOptions{})
			if err != nil {
				return err
			}
			pv, err := s.client.CoreV1().PersistentVolumes().Get(s.ctx, c.Spec.VolumeName, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if got := pv.Spec.Capacity[corev1.ResourceStorage]; got.Cmp(resource.MustParse(larger)) < 0 {
				return fmt.Errorf("the volume has %s", got.String())
			}
			return nil
		}},
		{"the pod is deleted", func() error { return s.deletePod("app") }},
		{"a new pod is Ready", func() error {
			if _, err := s.pod(); apierrors.IsNotFound(err) {
				return s.in.Apply(s.ctx, podThatGrows)
			}
			return s.podReady()
		}},
		{"the data is there", s.read},
		{"the claim has grown", func() error {
			c, err := s.client.CoreV1().PersistentVolumeClaims(ns).Get(s.ctx, "data", metav1.GetOptions{})
			if err != nil {
				return err
			}
			if got := c.Status.Capacity[corev1.ResourceStorage]; got.Cmp(resource.MustParse(larger)) < 0 {
				return fmt.Errorf("the claim has %s: %+v", got.String(), c.Status.Conditions)
			}
			return nil
		}},
		{"claims and pod are deleted", s.deleteAll},
		{"nothing is left", s.nothingLeft},
	}
}
