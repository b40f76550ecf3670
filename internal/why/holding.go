package why

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	storagev1 "k8s.io/api/storage/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

// role is a controller's part of a driver's work, and the name of the lease by which one of its processes leads (the official
// sidecars' main.go; csi-lib-utils puts "-" for every other character).
type role struct{ name, lease string }

var (
	provisionerRole = role{"external-provisioner", "%s"}
	attacherRole    = role{"external-attacher", "external-attacher-leader-%s"}
	resizerRole     = role{"external-resizer", "external-resizer-%s"}
)

var noLeaseName = regexp.MustCompile(`[^a-zA-Z0-9-]`)

// leaseOf finds the lease of a driver's role; nil when there is none, or leases may not be read.
func (f *facts) leaseOf(r role, driver string) *coordinationv1.Lease {
	name := fmt.Sprintf(r.lease, noLeaseName.ReplaceAllString(driver, "-"))
	for i := range f.leases {
		if l := &f.leases[i]; l.Name == name && l.Spec.HolderIdentity != nil && *l.Spec.HolderIdentity != "" {
			return l
		}
	}
	return nil
}

// stale says since when nobody leads: a lease that has not been renewed for four times its length.
func (f *facts) stale(l *coordinationv1.Lease) (since time.Time, stale bool) {
	if l == nil || l.Spec.RenewTime == nil || l.Spec.LeaseDurationSeconds == nil {
		return time.Time{}, false
	}
	length := time.Duration(*l.Spec.LeaseDurationSeconds) * time.Second
	return l.Spec.RenewTime.Time, f.now.Sub(l.Spec.RenewTime.Time) > 4*length
}

// worker names who has a role for the driver: the process that leads, as far as its lease tells.
func (f *facts) worker(r role, driver string) string {
	who := r.name + " of " + driver
	l := f.leaseOf(r, driver)
	if l == nil {
		return who
	}
	process, _, _ := strings.Cut(*l.Spec.HolderIdentity, "_")
	who += fmt.Sprintf(", led by %s in namespace %s", process, l.Namespace)
	if since, stale := f.stale(l); stale {
		who += fmt.Sprintf(" (which has not been heard of for %s)", span(ms(f.now.Sub(since)), true))
	}
	return who
}

// heldByObjects names who is to take the next step, where nobody could be asked.
func (w *Waiting) heldByObjects(f *facts, vf *volumeFacts) {
	claim, pod, driver := vf.claim, f.pod, vf.driverOf()
	switch {
	case w.Holder != "":
	case claim != nil && claim.DeletionTimestamp != nil:
		w.Holder = holdersOf(claim, claim.Finalizers)
	case vf.pv != nil && (claim == nil || vf.pv.DeletionTimestamp != nil):
		w.heldAtTheEnd(f, vf, driver)
	case open(vf) && pod != nil && pod.Spec.NodeName == "" && late(vf.class) && claim.Annotations[storagehelpers.AnnSelectedNode] == "":
		w.Holder = "scheduler " + pod.Spec.SchedulerName
	case handed(vf):
		w.Holder = f.worker(provisionerRole, claim.Annotations[storagehelpers.AnnStorageProvisioner])
		if e := lastEvent(vf.events, "Provisioning"); e != nil {
			w.Holder, w.HolderSince = "external-provisioner of "+processOf(e), eventFirst(e)
		}
	case claim == nil || vf.pv == nil:
	case pod != nil && pod.Spec.NodeName == "" && !finished(pod):
		w.Holder = "scheduler " + pod.Spec.SchedulerName
	case strings.HasSuffix(w.For, "when it is mounted next"):
	case strings.HasPrefix(w.For, "driver "+driver+" to grow"), strings.HasPrefix(w.For, "driver "+driver+" to change"):
		w.Holder = f.worker(resizerRole, driver)
	case pod != nil && pod.Spec.NodeName != "":
		w.heldOnNode(f, vf, driver)
	}
}

// heldAtTheEnd: the volume is being detached and deleted.
func (w *Waiting) heldAtTheEnd(f *facts, vf *volumeFacts, driver string) {
	if list := f.attachmentsOf(vf.pvName); len(list) > 0 {
		w.heldByAttachment(f, list[0], driver)
		return
	}
	if vf.pv.Spec.CSI != nil {
		w.Holder = f.worker(provisionerRole, driver)
		return
	}
	w.Holder = holdersOf(vf.pv, vf.pv.Finalizers)
}

func (w *Waiting) heldOnNode(f *facts, vf *volumeFacts, driver string) {
	node := f.pod.Spec.NodeName
	if !f.attaches(vf) || f.unread("volumeattachments") {
		w.Holder = "kubelet of node " + node
		return
	}
	for _, a := range f.attachmentsOf(vf.pvName) {
		switch {
		case a.Spec.NodeName != node:
		case a.Status.Attached:
			w.Holder = "kubelet of node " + node
			return
		default:
			w.heldByAttachment(f, a, driver)
			return
		}
	}
	w.Holder = "attach/detach controller (kube-controller-manager), which makes the VolumeAttachment"
}

func (w *Waiting) heldByAttachment(f *facts, a *storagev1.VolumeAttachment, driver string) {
	w.Holder, w.HolderSince = "VolumeAttachment "+a.Name+", "+f.worker(attacherRole, cmp.Or(a.Spec.Attacher, driver)), a.CreationTimestamp.Time
	if a.DeletionTimestamp != nil {
		w.HolderSince = a.DeletionTimestamp.Time
	}
}
