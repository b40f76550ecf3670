package claim

import (
	"context"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	csitrans "k8s.io/csi-translation-lib"

	"berth.io/berth/internal/boundary"
)

// inTree is the prefix of the provisioners that are plugins and not programs of their own.
const inTree = "kubernetes.io/"

// migratedTo returns the CSI driver that has taken over an in-tree provisioner ("kubernetes.io/aws-ebs"), "" when
// none has. All translations that the library knows are on in Kubernetes 1.36.
func migratedTo(provisioner string) string {
	if !strings.HasPrefix(provisioner, inTree) {
		return ""
	}
	t := csitrans.New()
	if !t.IsMigratableIntreePluginByName(provisioner) {
		return ""
	}
	driver, err := t.GetCSINameFromInTreeName(provisioner)
	if err != nil {
		return ""
	}
	return driver
}

// migration compares the migrated-to annotation with what the provisioner in it should have. set is nil to remove it.
func migration(annotations map[string]string, provisionerKeys ...string) (set any, differs bool) {
	for _, key := range provisionerKeys {
		provisioner, ok := annotations[key]
		if !ok {
			continue
		}
		driver, have := migratedTo(provisioner), annotations[storagehelpers.AnnMigratedTo]
		switch {
		case driver == have:
			return nil, false
		case driver == "":
			return nil, true
		}
		return driver, true
	}
	return nil, false
}

// alignClaim keeps the migrated-to annotation of a claim right.
func (c *Controller) alignClaim(ctx context.Context, claim *v1.PersistentVolumeClaim) (*v1.PersistentVolumeClaim, error) {
	set, differs := migration(claim.Annotations, storagehelpers.AnnStorageProvisioner, storagehelpers.AnnBetaStorageProvisioner)
	if !differs {
		return claim, nil
	}
	p := newPatch(claim).annotate(storagehelpers.AnnMigratedTo, set)
	err := boundary.Do("claim/claim-migrated-to", func() (err error) {
		claim, err = c.opts.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType, p.json(), metav1.PatchOptions{})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("set migrated-to on claim: %w", err)
	}
	c.claims.put(claim)
	return claim, nil
}

// alignVolumePatch keeps the migrated-to annotation and the deletion finalizer of a provisioned volume right; nil
// when both are. The finalizer keeps an in-tree volume from vanishing before its data: it is there while the policy is Delete.
func alignVolumePatch(pv *v1.PersistentVolume) patch {
	provisioner, ok := pv.Annotations[storagehelpers.AnnDynamicallyProvisioned]
	if !ok || !strings.HasPrefix(provisioner, inTree) {
		return nil
	}
	set, differs := migration(pv.Annotations, storagehelpers.AnnDynamicallyProvisioned)
	want := slices.Clone(pv.Finalizers)
	without := func(f string) {
		want = slices.DeleteFunc(want, func(have string) bool { return have == f })
	}
	switch policy := pv.Spec.PersistentVolumeReclaimPolicy; {
	case migratedTo(provisioner) != "":
		without(storagehelpers.PVDeletionInTreeProtectionFinalizer)
	case policy == v1.PersistentVolumeReclaimDelete:
		without(storagehelpers.PVDeletionProtectionFinalizer)
		if !slices.Contains(want, storagehelpers.PVDeletionInTreeProtectionFinalizer) && pv.DeletionTimestamp == nil {
			want = append(want, storagehelpers.PVDeletionInTreeProtectionFinalizer)
		}
	case policy == v1.PersistentVolumeReclaimRetain, policy == v1.PersistentVolumeReclaimRecycle:
		without(storagehelpers.PVDeletionProtectionFinalizer)
		without(storagehelpers.PVDeletionInTreeProtectionFinalizer)
	}
	same := slices.Equal(want, pv.Finalizers)
	if !differs && same {
		return nil
	}
	p := newPatch(pv).guarded(pv)
	if differs {
		p.annotate(storagehelpers.AnnMigratedTo, set)
	}
	if !same {
		p.finalizers(want)
	}
	return p
}

func (c *Controller) alignVolume(ctx context.Context, pv *v1.PersistentVolume) (*v1.PersistentVolume, error) {
	p := alignVolumePatch(pv)
	if p == nil {
		return pv, nil
	}
	err := boundary.Do("claim/volume-finalizer", func() (err error) {
		pv, err = c.opts.Client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, p.json(), metav1.PatchOptions{})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("set finalizers of volume: %w", err)
	}
	c.volumes.put(pv)
	return pv, nil
}
