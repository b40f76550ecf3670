package why

import (
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

// quietFor is how long nobody may say anything before that is told as a reason: controllers answer within a second, and a new
// leader is found within some 15 (the sidecars' lease).
const quietFor = 20 * time.Second

// provisionerTold is the last event of a provisioner on the claim.
func provisionerTold(vf *volumeFacts) *v1.Event {
	if vf.class == nil {
		return nil
	}
	for i := len(vf.events) - 1; i >= 0; i-- {
		e := &vf.events[i]
		if who := processOf(e); strings.HasPrefix(who, vf.class.Provisioner) && (e.Reason == "Provisioning" || e.Reason == "ProvisioningFailed") {
			return e
		}
	}
	return nil
}

// provisionerSilent: the claim was handed to a driver, and its external-provisioner has not said a word.
func provisionerSilent(f *facts, vf *volumeFacts) (what, advice string) {
	if !f.elsewhere || !handed(vf) || provisionerTold(vf) != nil || f.now.Sub(handedAt(vf.claim)) < quietFor {
		return "", ""
	}
	driver := vf.claim.Annotations[storagehelpers.AnnStorageProvisioner]
	return f.silent(provisionerRole, driver, "The claim was handed to "+driver+", and its external-provisioner has not taken it up")
}

// attacherSilent: the attachment was asked for, and the driver's external-attacher, or the controller that asks, has not said a word.
func attacherSilent(f *facts, vf *volumeFacts) (what, advice string) {
	if !f.elsewhere || vf.pv == nil || f.pod == nil || f.pod.Spec.NodeName == "" || f.pod.DeletionTimestamp != nil || finished(f.pod) ||
		!f.attaches(vf) || f.unread("volumeattachments") {
		return "", ""
	}
	if up, _ := volumesUp(f); up {
		return "", ""
	}
	for _, a := range f.attachmentsOf(vf.pvName) {
		if a.Spec.NodeName != f.pod.Spec.NodeName {
			continue
		}
		taken := a.Status.Attached || a.Status.AttachError != nil || len(a.Finalizers) > 0
		if taken || f.now.Sub(a.CreationTimestamp.Time) < quietFor {
			return "", ""
		}
		return f.silent(attacherRole, a.Spec.Attacher, "VolumeAttachment "+a.Name+" asks to attach the volume, and the external-attacher of "+a.Spec.Attacher+" has not taken it up")
	}
	scheduled := conditionTime(f.pod, v1.PodScheduled)
	if scheduled.IsZero() || f.now.Sub(scheduled) < quietFor || lastEvent(f.podEvents, "FailedAttachVolume") != nil {
		return "", ""
	}
	return "Nobody has asked to attach the volume: there is no VolumeAttachment for node " + f.pod.Spec.NodeName + ", which the attach/detach controller makes.",
		"See whether the kube-controller-manager runs and what its log says of the volume, and whether the node has the annotation volumes.kubernetes.io/controller-managed-attach-detach."
}

// silent tells what the lease of the role says, where there is one.
func (f *facts) silent(r role, driver, begin string) (what, advice string) {
	l := f.leaseOf(r, driver)
	since, stale := f.stale(l)
	switch {
	case stale:
		return fmt.Sprintf("%s: the process that leads, %s, has not renewed its lease for %s.", begin, *l.Spec.HolderIdentity, span(ms(f.now.Sub(since)), true)),
			fmt.Sprintf("Start the driver's controller again: see kubectl -n %s get pods, and the log of container %s.", l.Namespace, strings.Replace(r.name, "external", "csi", 1))
	case l != nil:
		return fmt.Sprintf("%s; the process that leads, %s in namespace %s, is alive.", begin, *l.Spec.HolderIdentity, l.Namespace),
			fmt.Sprintf("See its log: it may be busy (--worker-threads, --kube-api-qps) or lack a permission. kubectl -n %s logs %s -c %s", l.Namespace, *l.Spec.HolderIdentity, strings.Replace(r.name, "external", "csi", 1))
	}
	return begin + ".", "See whether the driver's controller runs (a Deployment or StatefulSet, often in kube-system), and its log."
}
