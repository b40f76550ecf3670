package main

import (
	"context"
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// volume is a PersistentVolume as external-provisioner leaves it.
func volume(run string, i int, driver string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:        fmt.Sprintf("%s-%d", run, i),
			Labels:      map[string]string{runLabel: run},
			Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": driver, "volume.kubernetes.io/provisioner-deletion-secret-name": "", "volume.kubernetes.io/provisioner-deletion-secret-namespace": ""},
			Finalizers:  []string{"external-provisioner.volume.kubernetes.io/finalizer", "kubernetes.io/pv-protection"},
		},
		Spec: corev1.PersistentVolumeSpec{
			StorageClassName:              driver,
			AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			ClaimRef:                      &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: namespace, Name: fmt.Sprintf("%s-%d", run, i)},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: driver, VolumeHandle: fmt.Sprintf("noop-%s-%d", run, i),
				VolumeAttributes: map[string]string{"storage.kubernetes.io/csiProvisionerIdentity": "1700000000000-1-" + driver},
			}},
		},
	}
}

// grow makes n PersistentVolumes, taking the drivers in turn, each bound to its claim. The API server runs without volume controllers from
// here on: upstream's binds one claim after the other, some ten in a second here, and the bench writes what it would have written.
func (c *cluster) grow(ctx context.Context, run string, n int, drivers []string) error {
	fmt.Fprintf(os.Stderr, "%s: making %d volumes and claims\n", run, n)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := c.serve(ctx, "berth"); err != nil {
		return err
	}
	claims, volumes := c.client.CoreV1().PersistentVolumeClaims(namespace), c.client.CoreV1().PersistentVolumes()
	return inParallel(n, func(i int) error {
		driver := drivers[i%len(drivers)]
		pv, pvc := volume(run, i, driver), claim(run, i, driver, "1Gi")
		pvc.Spec.VolumeName = pv.Name
		pvc.Finalizers = []string{"kubernetes.io/pvc-protection"}
		pvc.Annotations = map[string]string{"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes",
			"volume.beta.kubernetes.io/storage-provisioner": driver, "volume.kubernetes.io/storage-provisioner": driver}
		pvc, err := claims.Create(ctx, pvc, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		pv.Spec.ClaimRef.UID = pvc.UID
		if pv, err = volumes.Create(ctx, pv, metav1.CreateOptions{}); err != nil {
			return err
		}
		pv.Status.Phase = corev1.VolumeBound
		if _, err := volumes.UpdateStatus(ctx, pv, metav1.UpdateOptions{}); err != nil {
			return err
		}
		pvc.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound, AccessModes: pv.Spec.AccessModes, Capacity: pv.Spec.Capacity}
		_, err = claims.UpdateStatus(ctx, pvc, metav1.UpdateOptions{})
		return err
	})
}
