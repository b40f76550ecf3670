package migrate

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/flexvolume/block"
)

// The drivers of a block volume before and after.
const (
	FlexBlock = "berth/block"
	CSIBlock  = "block.csi.berth.io"
)

// Annotations of a migrated volume and of its claim, and of a volume whose deletion is a provisioner's.
const (
	AnnMigratedFrom = "storage.berth.io/migrated-from"
	// annPolicy is the reclaim policy of a volume that has Retain only because it is being made anew. It comes and goes with the policy,
	// in one write: so a Retain without it is a user's.
	annPolicy        = "storage.berth.io/reclaim-policy"
	annProvisionedBy = "pv.kubernetes.io/provisioned-by"
	annBoundByUs     = "pv.kubernetes.io/bound-by-controller"
	annApplied       = "kubectl.kubernetes.io/last-applied-configuration"
	deletionSecret   = "volume.kubernetes.io/provisioner-deletion-secret-"
)

// RefusedError says why a volume is left as it is. Its text is for a user.
type RefusedError struct{ Volume, Reason string }

func (e *RefusedError) Error() string { return e.Volume + ": " + e.Reason }

func refuse(pv, format string, args ...any) error {
	return &RefusedError{Volume: pv, Reason: fmt.Sprintf(format, args...)}
}

// arriving are FlexVolume drivers of ours whose storage has no CSI driver yet.
var arriving = []string{"nfs", "cifs", "lvm"}

// convertible refuses a volume that cannot become a CSI volume, whatever uses it. blockDrivers are the FlexVolume drivers that are
// Berth's block driver, installed under their vendors' names.
func convertible(pv *v1.PersistentVolume, blockDrivers []string) error {
	flex := pv.Spec.FlexVolume
	if flex == nil {
		return refuse(pv.Name, "it is no FlexVolume volume")
	}
	if !slices.Contains(blockDrivers, flex.Driver) {
		_, driver, _ := strings.Cut(flex.Driver, "/")
		if slices.Contains(arriving, driver) {
			return refuse(pv.Name, "its driver %s has no CSI driver in this version of Berth: only block volumes can be migrated today", flex.Driver)
		}
		return refuse(pv.Name, "its driver %s is not %s; if it is Berth's block driver under another vendor's name, say --block-driver %[1]s", flex.Driver, strings.Join(blockDrivers, " or "))
	}
	if flex.Options[block.OptionVolumeID] == "" {
		return refuse(pv.Name, "its option %s is missing: without it nobody knows which volume it is", block.OptionVolumeID)
	}
	if pv.Spec.VolumeMode != nil && *pv.Spec.VolumeMode != v1.PersistentVolumeFilesystem {
		return refuse(pv.Name, "its volumeMode is %s, which FlexVolume does not have", *pv.Spec.VolumeMode)
	}
	return nil
}

// replaceable refuses a volume that must not be removed and made anew now.
func replaceable(pv *v1.PersistentVolume, claim *v1.PersistentVolumeClaim) error {
	switch {
	case pv.Status.Phase == v1.VolumeReleased || pv.Status.Phase == v1.VolumeFailed:
		return refuse(pv.Name, "it is %s: its claim is gone, and what becomes of it is its reclaim policy's; take spec.claimRef away to keep it", pv.Status.Phase)
	case pv.Spec.ClaimRef != nil && pv.Spec.ClaimRef.UID != "" && claim == nil:
		return refuse(pv.Name, "its claim %s/%s is gone", pv.Spec.ClaimRef.Namespace, pv.Spec.ClaimRef.Name)
	}
	for _, f := range pv.Finalizers {
		if !ours(f) {
			return refuse(pv.Name, "it has the finalizer %s, whose owner would not know that the volume comes back: remove it first", f)
		}
	}
	if claim == nil {
		return nil
	}
	key := claim.Namespace + "/" + claim.Name
	switch {
	case claim.DeletionTimestamp != nil:
		return refuse(pv.Name, "its claim %s is being deleted", key)
	case claim.Spec.VolumeName != pv.Name:
		return refuse(pv.Name, "its claim %s names volume %q: wait until it is Bound", key, claim.Spec.VolumeName)
	case growing(claim, pv):
		return refuse(pv.Name, "its claim %s is being expanded: wait until it is done", key)
	}
	return nil
}

func growing(claim *v1.PersistentVolumeClaim, pv *v1.PersistentVolume) bool {
	for _, c := range claim.Status.Conditions {
		if c.Status == v1.ConditionTrue && (c.Type == v1.PersistentVolumeClaimResizing || c.Type == v1.PersistentVolumeClaimFileSystemResizePending) {
			return true
		}
	}
	request, capacity := claim.Spec.Resources.Requests[v1.ResourceStorage], pv.Spec.Capacity[v1.ResourceStorage]
	return request.Cmp(capacity) > 0
}

// ours are the finalizers that mean "in use" or "its deletion is a provisioner's", which this room has made sure of otherwise.
func ours(finalizer string) bool {
	return finalizer == "kubernetes.io/pv-protection" || finalizer == "kubernetes.io/pv-controller" ||
		finalizer == "external-provisioner.volume.kubernetes.io/finalizer" || strings.HasPrefix(finalizer, "external-attacher/")
}

// manifest is what of an object is written anew.
func manifest(pv *v1.PersistentVolume) *v1.PersistentVolume {
	out := &v1.PersistentVolume{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolume"},
		ObjectMeta: metav1.ObjectMeta{Name: pv.Name, Labels: maps.Clone(pv.Labels), Annotations: maps.Clone(pv.Annotations), OwnerReferences: pv.OwnerReferences},
		Spec:       *pv.Spec.DeepCopy(),
	}
	if out.Spec.ClaimRef != nil {
		out.Spec.ClaimRef.ResourceVersion = ""
	}
	out.Spec.PersistentVolumeReclaimPolicy = policyOf(pv)
	delete(out.Annotations, annPolicy)
	return out
}

// policyOf is the reclaim policy that a volume has when nobody makes it anew.
func policyOf(pv *v1.PersistentVolume) v1.PersistentVolumeReclaimPolicy {
	is := pv.Spec.PersistentVolumeReclaimPolicy
	if was := v1.PersistentVolumeReclaimPolicy(pv.Annotations[annPolicy]); is == v1.PersistentVolumeReclaimRetain &&
		(was == v1.PersistentVolumeReclaimDelete || was == v1.PersistentVolumeReclaimRecycle) {
		return was
	}
	return is
}

// toCSI is the CSI form of a FlexVolume volume. reach is where its pool is: used unless the volume says so itself.
func toCSI(pv *v1.PersistentVolume, driver string, reach *v1.VolumeNodeAffinity) *v1.PersistentVolume {
	out := manifest(pv)
	flex := pv.Spec.FlexVolume
	out.Spec.PersistentVolumeSource = v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{
		Driver: driver, VolumeHandle: flex.Options[block.OptionVolumeID], FSType: flex.FSType, ReadOnly: flex.ReadOnly,
	}}
	if out.Spec.NodeAffinity == nil {
		out.Spec.NodeAffinity = reach
	}
	maps.DeleteFunc(out.Annotations, func(key, _ string) bool {
		// Of the FlexVolume form: kubectl would compare with it, and another provisioner's secrets are not this driver's.
		return key == annApplied || strings.HasPrefix(key, deletionSecret)
	})
	metav1.SetMetaDataAnnotation(&out.ObjectMeta, annProvisionedBy, driver)
	metav1.SetMetaDataAnnotation(&out.ObjectMeta, AnnMigratedFrom, migratedFrom(pv))
	return out
}

func migratedFrom(pv *v1.PersistentVolume) string { return "flexvolume/" + pv.Spec.FlexVolume.Driver }

// refreshed is form's storage with everything else as the volume has it now: it may have changed since form was made.
func refreshed(form, now *v1.PersistentVolume) *v1.PersistentVolume {
	out := manifest(now)
	form = form.DeepCopy()
	out.Spec.PersistentVolumeSource, out.Spec.NodeAffinity = form.Spec.PersistentVolumeSource, form.Spec.NodeAffinity
	out.Spec.VolumeAttributesClassName = form.Spec.VolumeAttributesClassName // a FlexVolume volume has none
	maps.DeleteFunc(out.Annotations, func(key, _ string) bool { return ofForm(key) })
	for key, value := range form.Annotations {
		if ofForm(key) {
			metav1.SetMetaDataAnnotation(&out.ObjectMeta, key, value)
		}
	}
	return out
}

// ofForm are annotations that belong to one of the two forms only.
func ofForm(annotation string) bool {
	return annotation == annApplied || annotation == annProvisionedBy || annotation == AnnMigratedFrom || strings.HasPrefix(annotation, deletionSecret)
}

// sameSource says whether two objects mean the same storage by the same driver.
func sameSource(a, b *v1.PersistentVolume) bool {
	switch {
	case a.Spec.CSI != nil && b.Spec.CSI != nil:
		return a.Spec.CSI.Driver == b.Spec.CSI.Driver && a.Spec.CSI.VolumeHandle == b.Spec.CSI.VolumeHandle
	case a.Spec.FlexVolume != nil && b.Spec.FlexVolume != nil:
		return a.Spec.FlexVolume.Driver == b.Spec.FlexVolume.Driver && maps.Equal(a.Spec.FlexVolume.Options, b.Spec.FlexVolume.Options)
	}
	return false
}

// describe names a volume's storage for a user.
func describe(pv *v1.PersistentVolume) string {
	if c := pv.Spec.CSI; c != nil {
		return fmt.Sprintf("volume %s of CSI driver %s", c.VolumeHandle, c.Driver)
	}
	return fmt.Sprintf("volume %s of FlexVolume driver %s", pv.Spec.FlexVolume.Options[block.OptionVolumeID], pv.Spec.FlexVolume.Driver)
}
