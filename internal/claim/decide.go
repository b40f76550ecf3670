package claim

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

// claimAct is what a claim needs next.
type claimAct int

const (
	actStay      claimAct = iota // Pending, for the reason in verdict.notice and verdict.waiting
	actBind                      // to verdict.volume
	actProvision                 // by verdict.class
	actAdopt                     // take verdict.class as storageClassName, then decide again
	actLose                      // Lost, for the reason in verdict.notice
	actRefuse                    // as actStay, and try again later: the state is one that should not be
)

// notice is an event to be sent.
type notice struct{ eventType, reason, message string }

// verdict is the outcome of decideClaim.
type verdict struct {
	act    claimAct
	volume *v1.PersistentVolume
	class  *storagev1.StorageClass
	notice *notice
	// waiting says in a user's words what the claim waits for.
	waiting string
}

// claimView is all that a decision about a claim rests on.
type claimView struct {
	claim *v1.PersistentVolumeClaim
	// named is the volume that spec.volumeName names, nil when it does not exist.
	named *v1.PersistentVolume
	// match is the volume that the index found, already held.
	match *v1.PersistentVolume
	// class is the claim's StorageClass, nil when it has none or it does not exist.
	class *storagev1.StorageClass
	// fallback is the default StorageClass, nil when there is none.
	fallback *storagev1.StorageClass
	// classes are the names that exist, for the hint when the claim's does not.
	classes []string
	// unscheduled are the pods that use the claim and have no node yet.
	unscheduled []string
}

func stay(waiting string, n *notice) verdict {
	return verdict{act: actStay, waiting: waiting, notice: n}
}

// decideClaim says what v.claim needs next (upstream's syncClaim).
func decideClaim(v claimView) verdict {
	switch {
	case metav1.HasAnnotation(v.claim.ObjectMeta, storagehelpers.AnnBindCompleted):
		return decideBoundClaim(v)
	case v.claim.Spec.VolumeName != "":
		return decideNamingClaim(v)
	}
	return decideOpenClaim(v)
}

// decideBoundClaim: the claim was bound before. Everything but its own volume, bound to its UID, means that the data
// is lost to it. Finding the right volume again (re-created with the same name) heals a Lost claim.
func decideBoundClaim(v claimView) verdict {
	switch pv := v.named; {
	case v.claim.Spec.VolumeName == "":
		return verdict{act: actLose, notice: warning(reasonClaimLost, "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")}
	case pv == nil:
		return verdict{act: actLose, notice: warning(reasonClaimLost, "Bound claim has lost its PersistentVolume. Data on the volume is lost!")}
	case pv.Spec.ClaimRef == nil, pv.Spec.ClaimRef.UID == v.claim.UID:
		// With no claimRef either somebody cleared it or we have not seen our own write yet; binding again is right in both.
		return verdict{act: actBind, volume: pv}
	}
	return verdict{act: actLose, notice: warning(reasonClaimMisbound, "Two claims are bound to the same volume, this one is bound incorrectly")}
}

// decideNamingClaim: the user asks for one volume by name.
func decideNamingClaim(v claimView) verdict {
	pv, name := v.named, v.claim.Spec.VolumeName
	switch {
	case pv == nil:
		return stay(fmt.Sprintf("the claim names volume %q, which does not exist: create it, or make the claim without volumeName", name), nil)
	case refersTo(pv, v.claim):
		return verdict{act: actBind, volume: pv}
	case pv.Spec.ClaimRef == nil:
		if why := mismatch(pv, v.claim); why != "" {
			msg := fmt.Sprintf("Cannot bind to requested volume %q: %s", pv.Name, why)
			return stay(msg, warning(reasonVolumeMismatch, msg))
		}
		return verdict{act: actBind, volume: pv}
	}
	out := stay(fmt.Sprintf("volume %q is bound to claim %s", pv.Name, keyOfRef(pv.Spec.ClaimRef)),
		warning(reasonFailedBinding, fmt.Sprintf("volume %q already bound to a different claim.", pv.Name)))
	if metav1.HasAnnotation(v.claim.ObjectMeta, storagehelpers.AnnBoundByController) {
		out.act = actRefuse // somebody took bind-completed away from a claim that we had bound
	}
	return out
}

// decideOpenClaim: any volume will do.
func decideOpenClaim(v claimView) verdict {
	if v.match != nil {
		return verdict{act: actBind, volume: v.match}
	}
	className := storagehelpers.GetPersistentVolumeClaimClass(v.claim)
	switch {
	case !storagehelpers.PersistentVolumeClaimHasClass(v.claim) && v.fallback != nil:
		return verdict{act: actAdopt, class: v.fallback}
	case delays(v.class) && !storagehelpers.IsDelayBindingProvisioning(v.claim):
		n := normal(reasonWaitForFirstConsumer, "waiting for first consumer to be created before binding")
		switch len(v.unscheduled) {
		case 0:
		case 1:
			n = normal(reasonWaitForPodScheduled, "waiting for pod "+v.unscheduled[0]+" to be scheduled")
		default:
			n = normal(reasonWaitForPodScheduled, "waiting for pods "+strings.Join(v.unscheduled, ",")+" to be scheduled")
		}
		return stay(n.message, n)
	case className == "":
		return stay("no volume matches and the claim has no StorageClass: create a matching volume or a default StorageClass",
			normal(reasonFailedBinding, "no persistent volumes available for this claim and no storage class is set"))
	case v.class == nil:
		todo := "create it"
		if len(v.classes) > 0 {
			slices.Sort(v.classes)
			todo += " or name one of " + strings.Join(v.classes, ", ")
		}
		return stay(fmt.Sprintf("unknown StorageClass %q: %s", className, todo),
			warning(reasonProvisioningFailed, fmt.Sprintf("storageclass.storage.k8s.io %q not found: %s", className, todo)))
	case v.claim.DeletionTimestamp != nil:
		// Nothing is made for a claim that is about to go; upstream would provision and delete again.
		return stay("the claim is being deleted", nil)
	}
	return verdict{act: actProvision, class: v.class}
}

// delays says that volumes of the class wait for their first consumer.
func delays(class *storagev1.StorageClass) bool {
	return class != nil && class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}

// volumeAct is what a volume needs next.
type volumeAct int

const (
	volumeAvailable volumeAct = iota // phase Available
	volumeBound                      // phase Bound
	volumeWakes                      // its claim must be worked on
	volumeDiffers                    // its claim cannot have it: wrong volumeMode
	volumeReleased                   // phase Released (Failed stays Failed), then its reclaim policy
	volumeUnbinds                    // take back the claimRef, then Available
)

// decideVolume says what pv needs next (upstream's syncVolume). claim is the claim with the name and the UID that
// claimRef has, nil when it does not exist: the caller has made sure of that.
func decideVolume(pv *v1.PersistentVolume, claim *v1.PersistentVolumeClaim) volumeAct {
	switch {
	case pv.Spec.ClaimRef == nil, pv.Spec.ClaimRef.UID == "":
		return volumeAvailable
	case claim == nil:
		return volumeReleased
	case claim.Spec.VolumeName == pv.Name:
		return volumeBound
	case claim.Spec.VolumeName == "" && storagehelpers.CheckVolumeModeMismatches(&claim.Spec, &pv.Spec):
		return volumeDiffers
	case claim.Spec.VolumeName == "":
		return volumeWakes
	case metav1.HasAnnotation(pv.ObjectMeta, storagehelpers.AnnDynamicallyProvisioned) &&
		pv.Spec.PersistentVolumeReclaimPolicy == v1.PersistentVolumeReclaimDelete:
		// Made for this claim, which got another volume meanwhile: nobody needs it.
		return volumeReleased
	}
	return volumeUnbinds
}

// stillReleased is asked again right before a volume's data is destroyed: its claim (nil: none of that name) must be
// another one, or be bound to another volume (upstream's isVolumeReleased).
func stillReleased(pv *v1.PersistentVolume, claim *v1.PersistentVolumeClaim) bool {
	r := pv.Spec.ClaimRef
	if r == nil || r.UID == "" {
		return false
	}
	if claim == nil || claim.UID != r.UID {
		return true
	}
	return claim.Spec.VolumeName != "" && claim.Spec.VolumeName != pv.Name
}

// defaultClass chooses among the classes marked as default the newest, then by name.
func defaultClass(classes []*storagev1.StorageClass) *storagev1.StorageClass {
	var best *storagev1.StorageClass
	for _, c := range classes {
		if c.Annotations["storageclass.kubernetes.io/is-default-class"] != "true" &&
			c.Annotations["storageclass.beta.kubernetes.io/is-default-class"] != "true" {
			continue
		}
		newer := best != nil && c.CreationTimestamp.After(best.CreationTimestamp.Time)
		sameAge := best != nil && c.CreationTimestamp.Equal(&best.CreationTimestamp)
		if best == nil || newer || sameAge && c.Name < best.Name {
			best = c
		}
	}
	return best
}
