package why

import (
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"berth.io/berth/internal/node/holder"
	"berth.io/berth/internal/trace"
)

// inline gives the pod a volume of its own, made by the driver.
func inline(p *v1.Pod) *v1.Pod {
	p.Spec.Volumes = append(p.Spec.Volumes, v1.Volume{Name: "scratch", VolumeSource: v1.VolumeSource{CSI: &v1.CSIVolumeSource{Driver: "block.csi.berth.io"}}})
	if p.Annotations != nil {
		p.Annotations[holder.PathsAnnotation] = `{"scratch":"/var/lib/berth/pods/app-uid/volumes/kubernetes.io~csi/scratch/mount"}`
	}
	return p
}

// servesInline makes the driver say that it does.
func servesInline(objects []runtime.Object) []runtime.Object {
	for _, o := range objects {
		if d, ok := o.(*storagev1.CSIDriver); ok {
			d.Spec.VolumeLifecycleModes = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent, storagev1.VolumeLifecycleEphemeral}
		}
	}
	return objects
}

// withoutDrivers takes the drivers off the nodes.
func withoutDrivers(objects []runtime.Object) []runtime.Object {
	for _, o := range objects {
		if n, ok := o.(*storagev1.CSINode); ok {
			n.Spec.Drivers = nil
		}
	}
	return objects
}

const inlineName = "kubernetes.io/csi/app-uid-scratch"

// inlineStories: volumes that a pod describes itself, and volumes that are not well.
func inlineStories() []story {
	mounted := cluster(claim("data", "berth-block", bound), volume("data"), running(pod("app", "n1", "data")), attachment("data", "n1", true))
	onePath := Unwell{PV: "pvc-data-uid", Claim: dataClaim, Pod: appPod, Name: "vol-data", Problems: []string{"DEGRADED (OnePath): one path is left"}, Since: at(50 * time.Second)}
	return []story{
		{
			name:    "inline",
			objects: servesInline(cluster(inline(running(pod("app", "n1"))))),
			entries: []trace.Entry{
				{Time: at(3*time.Second + 10*millis), Step: trace.Published, State: trace.Began, Pod: appPod, Volume: inlineName, Node: "n1"},
				{Time: at(3*time.Second + 40*millis), Step: trace.Published, State: trace.Done, Pod: appPod, Volume: inlineName, Node: "n1"},
				{Time: at(3*time.Second + 41*millis), Step: trace.Published, State: trace.Done, Pod: trace.ObjectRef{Namespace: "default", Name: "other", UID: "other-uid"}, Volume: "kubernetes.io/csi/other-uid-scratch"},
				{Time: at(3*time.Second + 45*millis), Step: trace.Running, State: trace.Done, Pod: appPod, Node: "n1", Detail: "all 2 volumes are mounted"},
			},
			target: "pod/app",
		},
		{
			name:    "inline-hangs",
			objects: servesInline(cluster(inline(pod("app", "n1")))),
			entries: []trace.Entry{{Time: at(4 * time.Second), Step: trace.Published, State: trace.Began, Pod: appPod, Volume: inlineName, Node: "n1"}},
			holders: []Holder{{Volume: inlineName, Step: "Published", Pod: "default/app", Since: at(4 * time.Second)}},
			target:  "pod/app",
		},
		{
			name: "inline-not-served",
			objects: cluster(inline(pod("app", "n1")),
				event("Pod", "app", v1.EventTypeWarning, "FailedMount", `MountVolume.SetUp failed for volume "scratch" : volume mode "Ephemeral" not supported by driver block.csi.berth.io`, 9*time.Second, 3)),
			target: "pod/app", cause: "inline-not-served",
		},
		{
			name:    "inline-driver-missing",
			objects: withoutDrivers(servesInline(cluster(inline(pod("app", "n1"))))),
			target:  "pod/app", cause: "driver-not-on-node",
		},
		{
			name: "inline-pool-full",
			objects: servesInline(cluster(inline(pod("app", "n1")),
				event("Pod", "app", v1.EventTypeWarning, "FailedMount", `MountVolume.SetUp failed for volume "scratch" : code = ResourceExhausted desc = the pool has no room`, 9*time.Second, 3))),
			target: "pod/app", cause: "pool-full",
		},
		{
			name:    "not-well",
			objects: mounted, entries: wholeJourney(), unwell: []Unwell{onePath}, target: "pvc/data", cause: "volume-not-well",
		},
		{
			name:    "inline-not-well",
			objects: servesInline(cluster(inline(running(pod("app", "n1"))))), target: "pod/app", cause: "volume-not-well",
			unwell: []Unwell{{Pod: appPod, Name: "scratch", Problems: []string{"DATA_LOSS: the file is damaged", "DEGRADED"}, Since: at(50 * time.Second)}},
		},
		{
			name: "not-well-by-events", // nobody can be asked
			objects: append(mounted, event("Pod", "app", v1.EventTypeNormal, eventNormal, "Volume vol-data: its driver reports no problem any more", 20*time.Second, 1),
				event("Pod", "app", v1.EventTypeWarning, eventAbnormal, "Volume vol-data: INACCESSIBLE (FilesystemFailed): ext4 has shut down", 30*time.Second, 1)),
			entries: wholeJourney(), target: "pod/app", cause: "volume-not-well",
		},
		{
			name: "well-again-by-events",
			objects: append(mounted[:len(mounted):len(mounted)], event("Pod", "app", v1.EventTypeWarning, eventAbnormal, "Volume vol-data: INACCESSIBLE (FilesystemFailed): ext4 has shut down", 20*time.Second, 1),
				event("Pod", "app", v1.EventTypeNormal, eventNormal, "Volume vol-data: its driver reports no problem any more", 30*time.Second, 1)),
			entries: wholeJourney(), target: "pvc/data",
		},
		{
			name: "not-well-and-growing", // what is wrong otherwise stays the problem
			objects: withRoom("2Gi", cluster(claim("data", "berth-block", growing("10Gi")), volume("data", func(pv *v1.PersistentVolume) { pv.Annotations = nil }),
				running(pod("app", "n1", "data")), attachment("data", "n1", true))),
			unwell: []Unwell{onePath}, target: "pvc/data", cause: "grow-too-large",
		},
	}
}
