package why

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

// Finalizers whose keepers are known: who takes them off, and when.
var finalizerKeepers = []struct{ prefix, keeper, until string }{
	{"kubernetes.io/pvc-protection", "kube-controller-manager", "no pod uses the claim"},
	{"kubernetes.io/pv-protection", "kube-controller-manager", "no claim is bound to the volume"},
	{"kubernetes.io/pv-controller", "kube-controller-manager", "the volume's storage is deleted"},
	{"external-provisioner.volume.kubernetes.io/finalizer", "the driver's external-provisioner", "the volume's storage is deleted"},
	{"external-attacher/", "the driver's external-attacher", "the volume is detached from all nodes"},
	{"snapshot.storage.kubernetes.io/pvc-as-source-protection", "the snapshot-controller", "the snapshots that are being taken of the claim are done"},
	{"provisioner.storage.kubernetes.io/cloning-protection", "the driver's external-provisioner", "the clones that are being made of the claim are done"},
	{"storage.berth.io/", "the Berth agent of the volume's node", "the data is deleted"},
}

// keeperOf tells who takes a finalizer off. One that is not known is its writer's, as managed fields have it.
func keeperOf(o metav1.Object, finalizer string) (keeper, until string) {
	for _, k := range finalizerKeepers {
		if strings.HasPrefix(finalizer, k.prefix) {
			return k.keeper, k.until
		}
	}
	if w := held(o, finalizer); w.by != "" {
		return w.by + ", which put it there", ""
	}
	return "", ""
}

func holdersOf(o metav1.Object, finalizers []string) string {
	var all []string
	for _, f := range finalizers {
		if keeper, _ := keeperOf(o, f); keeper != "" && !slices.Contains(all, keeper) {
			all = append(all, keeper)
		}
	}
	return strings.Join(all, ", ")
}

func finalizerWords(o metav1.Object) string {
	var all []string
	for _, f := range o.GetFinalizers() {
		keeper, until := keeperOf(o, f)
		switch {
		case until != "":
			all = append(all, fmt.Sprintf("%s (%s takes it off when %s)", f, keeper, until))
		case keeper != "":
			all = append(all, fmt.Sprintf("%s (of %s)", f, keeper))
		default:
			all = append(all, f)
		}
	}
	return strings.Join(all, ", ")
}

const byHand = "A finalizer that is taken off by hand (kubectl patch … --type=merge -p '{\"metadata\":{\"finalizers\":null}}') leaves undone what it stands for: only when its keeper is gone for good, and the storage behind it is seen to."

// claimFinalizer: the claim is being deleted, no pod uses it, and it stays.
func claimFinalizer(f *facts, vf *volumeFacts) (what, advice string) {
	if !f.elsewhere || vf.claim == nil || vf.claim.DeletionTimestamp == nil || len(vf.claim.Finalizers) == 0 {
		return "", ""
	}
	return "The claim is being deleted and no pod that runs uses it; it stays for " + finalizerWords(vf.claim) + ".",
		"See that the keeper runs, and its log. " + byHand
}

// volumeFinalizer: the volume is being deleted, and its claim is gone.
func volumeFinalizer(f *facts, vf *volumeFacts) (what, advice string) {
	if !f.elsewhere || vf.pv == nil || vf.pv.DeletionTimestamp == nil || len(vf.pv.Finalizers) == 0 || vf.claim != nil || len(f.attachmentsOf(vf.pvName)) > 0 {
		return "", ""
	}
	advice = "See that the keeper runs, and its log. " + byHand
	if metav1.HasAnnotation(vf.pv.ObjectMeta, storagehelpers.AnnDynamicallyProvisioned) {
		advice = "See that the driver's controller runs, and its log. " + byHand
	}
	return "The volume is being deleted; it stays for " + finalizerWords(vf.pv) + ".", advice
}
