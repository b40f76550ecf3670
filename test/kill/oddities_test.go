package kill

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// oddLife has the controllers put right what a mishap, another cluster's past or an administrator's hand leaves behind.
func (s *script) oddLife() []step {
	return []step{
		{"a claim gets the default class late", s.lateDefault},
		{"the oddities are applied", func() error { return s.in.Apply(s.ctx, fmt.Sprintf(oddities, s.host, "1Gi")) }},
		{"a pod waits for a claim that never comes", s.unschedulable},
		{"the migrated volume is named so", s.migrated},
		{"protection comes back", s.protected},
		{"a claim has lost its volume", s.lost},
		{"a volume that nobody is bound to is free", s.stray},
		{"the node's object is put right", s.nodeReady},
		{"the node's object is made anew", s.nodeAnew},
		{"the class is gone", s.classGone},
		{"claims and pod are deleted", s.deleteAll},
		{"nothing is left", s.nothingLeft},
	}
}

// lateDefault makes a claim without a class while there is no default one.
func (s *script) lateDefault() error {
	def := func(is string) error {
		_, err := s.client.StorageV1().StorageClasses().Patch(s.ctx, "berth-block", types.MergePatchType,
			[]byte(`{"metadata":{"annotations":{"storageclass.kubernetes.io/is-default-class":"`+is+`"}}}`), metav1.PatchOptions{})
		return err
	}
	claims := s.client.CoreV1().PersistentVolumeClaims(ns)
	c, err := claims.Get(s.ctx, "late", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if err := def("false"); err != nil {
			return err
		}
		c, err = claims.Create(s.ctx, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "late"}, Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("16Mi")}},
		}}, metav1.CreateOptions{})
	}
	if err != nil {
		return err
	}
	if err := def("true"); err != nil {
		return err
	}
	if c.Spec.StorageClassName == nil || *c.Spec.StorageClassName != "berth-block" {
		return fmt.Errorf("its class is %v", c.Spec.StorageClassName)
	}
	return nil
}

func (s *script) unschedulable() error {
	p, err := s.client.CoreV1().Pods(ns).Get(s.ctx, "waits", metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return nil
		}
	}
	return fmt.Errorf("nothing says so: %+v", p.Status.Conditions)
}

// migrated wants the names of the CSI driver that took over from the plugin, also for an expansion.
func (s *script) migrated() error {
	pv, err := s.client.CoreV1().PersistentVolumes().Get(s.ctx, "migrated", metav1.GetOptions{})
	if err != nil {
		return err
	}
	c, err := s.client.CoreV1().PersistentVolumeClaims(ns).Get(s.ctx, "migrated", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if c.Status.Phase != corev1.ClaimBound {
		return fmt.Errorf("the claim is %s", c.Status.Phase)
	}
	if c, err = s.client.CoreV1().PersistentVolumeClaims(ns).Patch(s.ctx, "migrated", types.MergePatchType,
		[]byte(`{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}`), metav1.PatchOptions{}); err != nil {
		return err
	}
	for of, got := range map[string]string{
		"volume":  pv.Annotations["pv.kubernetes.io/migrated-to"],
		"claim":   c.Annotations["pv.kubernetes.io/migrated-to"],
		"resizer": c.Annotations["volume.kubernetes.io/storage-resizer"],
	} {
		if got != "ebs.csi.aws.com" {
			return fmt.Errorf("%s: %q", of, got)
		}
	}
	return nil
}

// protected takes finalizers away, as somebody does who has lost patience, and wants them back.
func (s *script) protected() error {
	none := []byte(`{"metadata":{"finalizers":null}}`)
	v1, storage := s.client.CoreV1(), s.client.StorageV1()
	for _, o := range []struct {
		what, finalizer string
		patch           func(data []byte) (metav1.Object, error)
		mark            *bool
	}{
		{"claim", "kubernetes.io/pvc-protection", func(d []byte) (metav1.Object, error) {
			return v1.PersistentVolumeClaims(ns).Patch(s.ctx, "late", types.MergePatchType, d, metav1.PatchOptions{})
		}, &s.bared[0]},
		{"volume", "kubernetes.io/pv-protection", func(d []byte) (metav1.Object, error) {
			return v1.PersistentVolumes().Patch(s.ctx, "migrated", types.MergePatchType, d, metav1.PatchOptions{})
		}, &s.bared[1]},
		{"class", "kubernetes.io/vac-protection", func(d []byte) (metav1.Object, error) {
			return storage.VolumeAttributesClasses().Patch(s.ctx, "gold", types.MergePatchType, d, metav1.PatchOptions{})
		}, &s.bared[2]},
	} {
		data := none
		if *o.mark {
			data = []byte(`{}`)
		}
		got, err := o.patch(data)
		if err != nil {
			return fmt.Errorf("%s: %w", o.what, err)
		}
		*o.mark = true
		if !slices.Contains(got.GetFinalizers(), o.finalizer) {
			return fmt.Errorf("%s has finalizers %q", o.what, got.GetFinalizers())
		}
	}
	return nil
}

// lost deletes the volume of a bound claim by force.
func (s *script) lost() error {
	volumes := s.client.CoreV1().PersistentVolumes()
	pv, err := volumes.Get(s.ctx, "lost", metav1.GetOptions{})
	switch {
	case err == nil && pv.DeletionTimestamp == nil && pv.Status.Phase != corev1.VolumeBound:
		return fmt.Errorf("the volume is %s", pv.Status.Phase)
	case err == nil:
		if err := volumes.Delete(s.ctx, "lost", metav1.DeleteOptions{}); err != nil {
			return err
		}
		_, err = volumes.Patch(s.ctx, "lost", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	c, err := s.client.CoreV1().PersistentVolumeClaims(ns).Get(s.ctx, "lost", metav1.GetOptions{})
	if err == nil && c.Status.Phase != corev1.ClaimLost {
		err = fmt.Errorf("the claim is %s", c.Status.Phase)
	}
	return err
}

// stray says that a volume is bound to a claim which has another one: what a crash of upstream's controller leaves.
func (s *script) stray() error {
	c, err := s.client.CoreV1().PersistentVolumeClaims(ns).Get(s.ctx, "migrated", metav1.GetOptions{})
	if err != nil {
		return err
	}
	volumes := s.client.CoreV1().PersistentVolumes()
	pv, err := volumes.Get(s.ctx, "stray", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		pv, err = volumes.Create(s.ctx, &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "stray", Annotations: map[string]string{"pv.kubernetes.io/bound-by-controller": "yes"}},
			Spec: corev1.PersistentVolumeSpec{
				Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
				AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
				StorageClassName:              "migrated",
				ClaimRef:                      &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: ns, Name: c.Name, UID: c.UID},
				PersistentVolumeSource:        corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: s.host}},
			},
		}, metav1.CreateOptions{})
	}
	if err == nil && (pv.Status.Phase != corev1.VolumeAvailable || pv.Spec.ClaimRef != nil) {
		err = fmt.Errorf("it is %s, of %v", pv.Status.Phase, pv.Spec.ClaimRef)
	}
	return err
}

func (s *script) node() (*corev1.Node, error) {
	list, err := s.client.CoreV1().Nodes().List(s.ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	if len(list.Items) != 1 {
		return nil, fmt.Errorf("%d nodes", len(list.Items))
	}
	return &list.Items[0], nil
}

// nodeReady says that the node is not ready, as the node lifecycle controller of another cluster would.
func (s *script) nodeReady() error {
	n, err := s.node()
	if err != nil {
		return err
	}
	for i, c := range n.Status.Conditions {
		if c.Type != corev1.NodeReady {
			continue
		}
		if s.unready && c.Status == corev1.ConditionTrue {
			return nil
		}
		if !s.unready {
			n.Status.Conditions[i].Status = corev1.ConditionUnknown
			if _, err := s.client.CoreV1().Nodes().UpdateStatus(s.ctx, n, metav1.UpdateOptions{}); err != nil {
				return err
			}
			s.unready = true
		}
	}
	return fmt.Errorf("the node is not ready: %+v", n.Status.Conditions)
}

// nodeAnew deletes the Node; a CSINode that belongs to the new one must come.
func (s *script) nodeAnew() error {
	n, err := s.node()
	if err != nil {
		return err
	}
	if s.oldNode == "" {
		// Without its owner's name, so that the garbage collector does not take the CSINode away before the node does.
		_, err := s.client.StorageV1().CSINodes().Patch(s.ctx, n.Name, types.MergePatchType, []byte(`{"metadata":{"ownerReferences":null}}`), metav1.PatchOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		if err := s.client.CoreV1().Nodes().Delete(s.ctx, n.Name, metav1.DeleteOptions{}); err != nil {
			return err
		}
		s.oldNode = n.UID
	}
	c, err := s.client.StorageV1().CSINodes().Get(s.ctx, n.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if n.UID == s.oldNode || len(c.Spec.Drivers) == 0 || len(c.OwnerReferences) != 1 || c.OwnerReferences[0].UID != n.UID {
		return fmt.Errorf("node %s; CSINode of %+v with %d drivers", n.UID, c.OwnerReferences, len(c.Spec.Drivers))
	}
	return nil
}

func (s *script) classGone() error {
	classes := s.client.StorageV1().VolumeAttributesClasses()
	if err := classes.Delete(s.ctx, "gold", metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if _, err := classes.Get(s.ctx, "gold", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return fmt.Errorf("the class is still there (%v)", err)
	}
	return nil
}
