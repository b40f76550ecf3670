package why

import (
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/component-helpers/storage/ephemeral"

	"berth.io/berth/internal/plugin"
)

// facts are the API objects around one question. Those that are not there, or that the user may not read, are nil.
type facts struct {
	pod         *v1.Pod
	node        *v1.Node
	csiNode     *storagev1.CSINode  // of the pod's node
	csiNodes    []storagev1.CSINode // all
	classes     []storagev1.StorageClass
	drivers     []storagev1.CSIDriver
	attachments []storagev1.VolumeAttachment
	capacities  []storagev1.CSIStorageCapacity
	volumes     []volumeFacts
	podEvents   []v1.Event
	unreadable  []string  // kinds that the user may not list
	nodes       []v1.Node // all, when the pod has none yet
	now         time.Time

	// The rest is asked for only where no instance can be asked.
	elsewhere bool
	leases    []coordinationv1.Lease
	claims    []v1.PersistentVolumeClaim // of all namespaces, when one waits for a driver to make its volume
}

// volumeFacts are the API objects around one volume.
type volumeFacts struct {
	name      string     // pod.spec.volumes[].name
	source    *v1.Volume // an inline source
	claimName string     // also when the claim is missing
	namespace string
	claim     *v1.PersistentVolumeClaim
	pvName    string
	pv        *v1.PersistentVolume
	class     *storagev1.StorageClass
	className string
	users     []v1.Pod // pods that use the claim, the one asked about first
	events    []v1.Event
}

// unread says that the user may not read the kind: nothing can be concluded from there being none.
func (f *facts) unread(kind string) bool { return slices.Contains(f.unreadable, kind) }

// usesClaim says whether the pod uses the claim, and as which of its volumes.
func usesClaim(p *v1.Pod, claim string) (volume string, uses bool) {
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claim ||
			v.Ephemeral != nil && ephemeral.VolumeClaimName(p, v) == claim {
			return v.Name, true
		}
	}
	return "", false
}

// claimsOf are the names of the claims that the pod uses.
func claimsOf(p *v1.Pod) map[string]bool {
	names := map[string]bool{}
	for i := range p.Spec.Volumes {
		switch v := &p.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil:
			names[v.PersistentVolumeClaim.ClaimName] = true
		case v.Ephemeral != nil:
			names[ephemeral.VolumeClaimName(p, v)] = true
		}
	}
	return names
}

func finished(p *v1.Pod) bool {
	return p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed
}

// eventTime is when an event happened last.
func eventTime(e *v1.Event) time.Time {
	switch {
	case e.Series != nil && !e.Series.LastObservedTime.IsZero():
		return e.Series.LastObservedTime.Time
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp.Time
	case !e.EventTime.IsZero():
		return e.EventTime.Time
	}
	return e.CreationTimestamp.Time
}

// eventFirst is when it happened for the first time.
func eventFirst(e *v1.Event) time.Time {
	switch {
	case !e.FirstTimestamp.IsZero():
		return e.FirstTimestamp.Time
	case !e.EventTime.IsZero():
		return e.EventTime.Time
	}
	return eventTime(e)
}

// lastEvent returns the last event of that reason.
func lastEvent(events []v1.Event, reason string) *v1.Event {
	for i := len(events) - 1; i >= 0; i-- {
		if events[i].Reason == reason {
			return &events[i]
		}
	}
	return nil
}

// processOf names the process that told the event. Provisioners call themselves DRIVER_POD_UUID (sig-storage-lib-external-provisioner,
// controller.go), others are only a program.
func processOf(e *v1.Event) string {
	component := e.Source.Component
	if component == "" {
		component = e.ReportingController
	}
	if parts := strings.Split(component, "_"); len(parts) == 3 {
		return parts[0] + " in pod " + parts[1]
	}
	if e.Source.Host != "" {
		return component + " on node " + e.Source.Host
	}
	return component
}

func eventCount(e *v1.Event) int {
	if e.Series != nil {
		return int(e.Series.Count)
	}
	return max(1, int(e.Count))
}

// driverOf names the driver of a volume: the PV's, else the class's provisioner.
func (vf *volumeFacts) driverOf() string {
	switch {
	case vf.pv != nil && vf.pv.Spec.CSI != nil:
		return vf.pv.Spec.CSI.Driver
	case vf.pv != nil && vf.pv.Spec.FlexVolume != nil:
		return vf.pv.Spec.FlexVolume.Driver
	case vf.pv != nil:
		return plugin.SourceType(&plugin.Volume{PV: vf.pv})
	case vf.source != nil && vf.source.CSI != nil:
		return vf.source.CSI.Driver
	case vf.source != nil && vf.source.FlexVolume != nil:
		return vf.source.FlexVolume.Driver
	case vf.class != nil:
		return vf.class.Provisioner
	}
	return ""
}

// driver returns the CSIDriver object of that name.
func (f *facts) driver(name string) *storagev1.CSIDriver {
	for i := range f.drivers {
		if f.drivers[i].Name == name {
			return &f.drivers[i]
		}
	}
	return nil
}

// registeredOn lists the nodes on which the CSI driver is registered.
func (f *facts) registeredOn(driver string) []string {
	var nodes []string
	for i := range f.csiNodes {
		for _, d := range f.csiNodes[i].Spec.Drivers {
			if d.Name == driver {
				nodes = append(nodes, f.csiNodes[i].Name)
			}
		}
	}
	return nodes
}

// attachmentsOf lists the attachments of a volume.
func (f *facts) attachmentsOf(pv string) []*storagev1.VolumeAttachment {
	var list []*storagev1.VolumeAttachment
	for i := range f.attachments {
		if n := f.attachments[i].Spec.Source.PersistentVolumeName; n != nil && *n == pv && pv != "" {
			list = append(list, &f.attachments[i])
		}
	}
	return list
}
