package claim

import (
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

type pvOption func(*v1.PersistentVolume)
type pvcOption func(*v1.PersistentVolumeClaim)

func volume(name, size string, options ...pvOption) *v1.PersistentVolume {
	pv := &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), Finalizers: []string{volumeProtection}},
		Spec: v1.PersistentVolumeSpec{
			Capacity:                      v1.ResourceList{v1.ResourceStorage: resource.MustParse(size)},
			AccessModes:                   []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
			VolumeMode:                    ptr.To(v1.PersistentVolumeFilesystem),
			PersistentVolumeReclaimPolicy: v1.PersistentVolumeReclaimRetain,
			PersistentVolumeSource:        v1.PersistentVolumeSource{HostPath: &v1.HostPathVolumeSource{Path: "/x"}},
		},
		Status: v1.PersistentVolumeStatus{Phase: v1.VolumeAvailable},
	}
	for _, o := range options {
		o(pv)
	}
	return pv
}

func claim(name, size string, options ...pvcOption) *v1.PersistentVolumeClaim {
	c := &v1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: types.UID("uid-" + name), Finalizers: []string{claimProtection}},
		Spec: v1.PersistentVolumeClaimSpec{
			AccessModes:      []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
			VolumeMode:       ptr.To(v1.PersistentVolumeFilesystem),
			StorageClassName: ptr.To(""),
			Resources:        v1.VolumeResourceRequirements{Requests: v1.ResourceList{v1.ResourceStorage: resource.MustParse(size)}},
		},
		Status: v1.PersistentVolumeClaimStatus{Phase: v1.ClaimPending},
	}
	for _, o := range options {
		o(c)
	}
	return c
}

func ofClass(name string) pvcOption {
	return func(c *v1.PersistentVolumeClaim) { c.Spec.StorageClassName = &name }
}

func noClass(c *v1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil }

func naming(volume string) pvcOption {
	return func(c *v1.PersistentVolumeClaim) { c.Spec.VolumeName = volume }
}

func annotated(keysAndValues ...string) pvcOption {
	return func(c *v1.PersistentVolumeClaim) {
		for i := 0; i < len(keysAndValues); i += 2 {
			metav1.SetMetaDataAnnotation(&c.ObjectMeta, keysAndValues[i], keysAndValues[i+1])
		}
	}
}

func volumeAnnotated(keysAndValues ...string) pvOption {
	return func(pv *v1.PersistentVolume) {
		for i := 0; i < len(keysAndValues); i += 2 {
			metav1.SetMetaDataAnnotation(&pv.ObjectMeta, keysAndValues[i], keysAndValues[i+1])
		}
	}
}

func volumeOfClass(name string) pvOption {
	return func(pv *v1.PersistentVolume) { pv.Spec.StorageClassName = name }
}

func inPhase(p v1.PersistentVolumePhase) pvOption {
	return func(pv *v1.PersistentVolume) { pv.Status.Phase = p }
}

func reclaimed(p v1.PersistentVolumeReclaimPolicy) pvOption {
	return func(pv *v1.PersistentVolume) { pv.Spec.PersistentVolumeReclaimPolicy = p }
}

func claimedBy(name, uid string) pvOption {
	return func(pv *v1.PersistentVolume) {
		pv.Spec.ClaimRef = &v1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: "ns", Name: name, UID: types.UID(uid)}
	}
}

func modes(m ...v1.PersistentVolumeAccessMode) pvOption {
	return func(pv *v1.PersistentVolume) { pv.Spec.AccessModes = m }
}

func class(name, provisioner string, mode storagev1.VolumeBindingMode, options ...func(*storagev1.StorageClass)) *storagev1.StorageClass {
	sc := &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &mode,
		ReclaimPolicy: ptr.To(v1.PersistentVolumeReclaimDelete),
	}
	for _, o := range options {
		o(sc)
	}
	return sc
}

func isDefault(sc *storagev1.StorageClass) {
	metav1.SetMetaDataAnnotation(&sc.ObjectMeta, "storageclass.kubernetes.io/is-default-class", "true")
}
