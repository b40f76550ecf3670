package main

import (
	"context"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// volume is a PersistentVolume as external-provisioner leaves it, for a claim that names it.
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

// grow makes n PersistentVolumes, taking the drivers in turn, with their claims, and waits until upstream's controller has bound all.
func (c *cluster) grow(ctx context.Context, run string, n int, drivers []string) error {
	fmt.Fprintf(os.Stderr, "%s: making %d volumes and claims\n", run, n)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := inParallel(n, func(i int) error {
		driver := drivers[i%len(drivers)]
		pv := volume(run, i, driver)
		if _, err := c.client.CoreV1().PersistentVolumes().Create(ctx, pv, metav1.CreateOptions{}); err != nil {
			return err
		}
		pvc := claim(run, i, driver, "1Gi")
		pvc.Spec.VolumeName = pv.Name
		_, err := c.client.CoreV1().PersistentVolumeClaims(namespace).Create(ctx, pvc, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return err
	}
	for {
		l, err := c.client.CoreV1().PersistentVolumeClaims(namespace).List(ctx, metav1.ListOptions{LabelSelector: runLabel + "=" + run, ResourceVersion: "0"})
		if err != nil {
			return err
		}
		bound := 0
		for i := range l.Items {
			if l.Items[i].Status.Phase == corev1.ClaimBound {
				bound++
			}
		}
		if bound == n {
			return nil
		}
		fmt.Fprintf(os.Stderr, "%s: %d of %d are bound\n", run, bound, n)
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d claims are bound: %w", bound, n, ctx.Err())
		case <-time.After(5 * time.Second):
		}
	}
}
