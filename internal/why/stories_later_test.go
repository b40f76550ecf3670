package why

import (
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	"berth.io/berth/internal/trace"
)

// onHolders makes the cluster's first node one without a container runtime, as `berth up` makes it.
func onHolders(objects []runtime.Object) []runtime.Object {
	for _, o := range objects {
		if n, ok := o.(*v1.Node); ok {
			n.Status.NodeInfo.ContainerRuntimeVersion = "holder://1.36.3"
		}
	}
	return objects
}

// withRoom makes the driver publish what its largest volume may have.
func withRoom(size string, objects []runtime.Object) []runtime.Object {
	for _, o := range objects {
		if d, ok := o.(*storagev1.CSIDriver); ok {
			d.Spec.StorageCapacity = ptr.To(true)
		}
	}
	return append(objects, &storagev1.CSIStorageCapacity{ObjectMeta: meta("kube-system", "k"), StorageClassName: "berth-block", Capacity: ptr.To(resource.MustParse(size))})
}

// growing is a bound claim of 1Gi that asks for more.
func growing(to string, conditions ...v1.PersistentVolumeClaimCondition) func(*v1.PersistentVolumeClaim) {
	return func(c *v1.PersistentVolumeClaim) {
		bound(c)
		c.Status.Capacity = v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}
		c.Spec.Resources.Requests[v1.ResourceStorage] = resource.MustParse(to)
		c.Status.Conditions = conditions
	}
}

func oneAtATime(c *v1.PersistentVolumeClaim) {
	c.Spec.AccessModes = []v1.PersistentVolumeAccessMode{v1.ReadWriteOncePod}
}

func created(p *v1.Pod, d time.Duration) *v1.Pod {
	p.CreationTimestamp = metav1.NewTime(at(d))
	return p
}

// onHost makes a volume one of a directory of the host, made by hand, whose claim is gone.
func onHost(phase v1.PersistentVolumePhase, policy v1.PersistentVolumeReclaimPolicy) func(*v1.PersistentVolume) {
	return func(pv *v1.PersistentVolume) {
		pv.Annotations, pv.Status.Phase, pv.Spec.PersistentVolumeReclaimPolicy = nil, phase, policy
		pv.Spec.PersistentVolumeSource = v1.PersistentVolumeSource{HostPath: &v1.HostPathVolumeSource{Path: "/srv/data"}}
	}
}

func probed(p *v1.Pod) *v1.Pod {
	p.Spec.InitContainers = []v1.Container{{Name: "schema"}}
	p.Spec.Containers = []v1.Container{{Name: "db", ReadinessProbe: &v1.Probe{}, Lifecycle: &v1.Lifecycle{PreStop: &v1.LifecycleHandler{}}}}
	return p
}

func ofJob(p *v1.Pod) *v1.Pod {
	p.OwnerReferences = []metav1.OwnerReference{{Kind: "Job", Name: "import", Controller: ptr.To(true)}}
	return p
}

// laterStories: after the first mount, and what no driver is at fault for.
func laterStories() []story {
	const refusal = "0/1 nodes are available: 1 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod."
	holds := trace.ObjectRef{Namespace: "default", Name: "holds", UID: "holds-uid"}
	unbound := func() []runtime.Object {
		return cluster(claim("data", "berth-block-immediate"), refused(pod("app", "", "data"), "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."),
			event("PersistentVolumeClaim", "data", v1.EventTypeWarning, "ProvisioningFailed",
				`rpc error: code = InvalidArgument desc = volume_capabilities: fsType "ntfs" is not served (ext4, xfs or btrfs)`, 500*millis, 1))
	}
	return []story{
		{name: "unbound-asked-by-claim", objects: unbound(), target: "pvc/data", cause: "filesystem-not-served"},
		{name: "unbound-asked-by-pod", objects: unbound(), target: "pod/app", cause: "filesystem-not-served"},
		{
			name: "grow-too-large",
			objects: withRoom("4Gi", cluster(claim("data", "berth-block", growing("900Gi")), volume("data"), running(pod("app", "n1", "data")), attachment("data", "n1", true),
				event("PersistentVolumeClaim", "data", v1.EventTypeWarning, "VolumeResizeFailed",
					`resize volume "pvc-data-uid" by resizer "block.csi.berth.io" failed: rpc error: code = OutOfRange desc = larger than the pool: 921600 MiB are wanted, the pool holds at most 5770 MiB`, 50*time.Second, 3))),
			entries: append(wholeJourney(), trace.Entry{Time: at(50 * time.Second), Step: trace.Expanded, State: trace.Failed, Claim: dataClaim, Volume: "pvc-data-uid", Detail: "larger than the pool"}),
			target:  "pvc/data", cause: "grow-too-large",
		},
		{
			name: "grow-too-large-without-figures",
			objects: cluster(claim("data", "berth-block", growing("900Gi")), volume("data"),
				event("PersistentVolumeClaim", "data", v1.EventTypeWarning, "VolumeResizeFailed", `rpc error: code = OutOfRange desc = no`, 50*time.Second, 3)),
			target: "pvc/data", cause: "grow-too-large",
		},
		{
			name: "filesystem-grows-at-the-next-mount",
			objects: cluster(claim("data", "berth-block", growing("2Gi", v1.PersistentVolumeClaimCondition{
				Type: v1.PersistentVolumeClaimFileSystemResizePending, Status: v1.ConditionTrue, LastTransitionTime: metav1.NewTime(at(40 * time.Second))})),
				volume("data", func(pv *v1.PersistentVolume) { pv.Spec.Capacity[v1.ResourceStorage] = resource.MustParse("2Gi") })),
			target: "pvc/data",
		},
		{
			name: "one-pod-at-a-time", // what the other pod's volume does is not this one's
			objects: cluster(claim("data", "berth-block", bound, oneAtATime), volume("data"), pod("holds", "n1", "data"), attachment("data", "n1", false),
				created(refused(pod("app", "", "data"), refusal), 2*time.Second)),
			entries: append(wholeJourney()[:7],
				trace.Entry{Time: at(21 * millis), Step: trace.Attached, State: trace.Began, Claim: dataClaim, Volume: "pvc-data-uid", Node: "n1"},
				trace.Entry{Time: at(24 * millis), Step: trace.Attached, State: trace.Done, Claim: dataClaim, Volume: "pvc-data-uid", Node: "n1", Pod: holds},
				trace.Entry{Time: at(3 * time.Second), Step: trace.Detached, State: trace.Waiting, Claim: dataClaim, Volume: "pvc-data-uid", Node: "n1", Detail: "waiting for pod holds"},
			),
			target: "pod/app", cause: "claim-in-use-by-one",
		},
		{
			name:    "attached-again", // the former pod's way back ended after this pod was made
			objects: cluster(claim("data", "berth-block", bound), volume("data"), running(pod("app", "n1", "data")), attachment("data", "n1", true)),
			entries: func() []trace.Entry {
				former := trace.Entry{Claim: dataClaim, Volume: "pvc-data-uid", Node: "n1", State: trace.Done}
				var entries []trace.Entry
				for step, d := range map[trace.Step]time.Duration{trace.Attached: 8 * millis, trace.Staged: 9 * millis, trace.Unstaged: 15 * millis, trace.Detached: 20500 * time.Microsecond} {
					e := former
					e.Step, e.Time = step, at(d)
					entries = append(entries, e)
				}
				sortEntries(entries)
				return append(entries, wholeJourney()...)
			}(),
			target: "pod/app",
		},
		{
			name:    "waits-to-be-attached-again",
			objects: cluster(claim("data", "berth-block", bound), volume("data"), pod("app", "n1", "data")),
			entries: append(wholeJourney()[:7:7],
				trace.Entry{Time: at(-time.Millisecond), Step: trace.Attached, State: trace.Done, Claim: dataClaim, Volume: "pvc-data-uid", Node: "n1"},
				trace.Entry{Time: at(30 * millis), Step: trace.Detached, State: trace.Done, Claim: dataClaim, Volume: "pvc-data-uid", Node: "n1"}),
			target: "pod/app",
		},
		{
			name:    "torn-from-its-pod", // a volume that a living pod lost is told
			objects: cluster(claim("data", "berth-block", bound), volume("data"), running(pod("app", "n1", "data"))),
			entries: append(wholeJourney(), trace.Entry{Time: at(30 * time.Second), Step: trace.Detached, State: trace.Done, Claim: dataClaim, Volume: "pvc-data-uid", Node: "n1", Detail: "from node n1, which is out of service"}),
			target:  "pod/app",
		},
		{
			name: "kept",
			objects: cluster(volume("data", func(pv *v1.PersistentVolume) {
				pv.Status.Phase, pv.Spec.PersistentVolumeReclaimPolicy = v1.VolumeReleased, v1.PersistentVolumeReclaimRetain
			})),
			entries: append(wholeJourney(), trace.Entry{Time: at(50 * time.Second), Step: trace.Released, State: trace.Done, Claim: dataClaim, Volume: "pvc-data-uid", Detail: "its claim is gone; reclaim policy Retain"}),
			target:  "pv/pvc-data-uid", cause: "kept",
		},
		{
			name:    "kept-by-hand",
			objects: cluster(volume("data", onHost(v1.VolumeReleased, v1.PersistentVolumeReclaimRetain))),
			target:  "pv/pvc-data-uid", cause: "kept",
		},
		{
			name: "host-path-not-deleted",
			objects: cluster(volume("data", onHost(v1.VolumeFailed, v1.PersistentVolumeReclaimDelete)),
				event("PersistentVolume", "pvc-data-uid", v1.EventTypeWarning, "VolumeFailedDelete", `error getting deleter volume plugin for volume "pvc-data-uid": no deletable volume plugin matched`, 9*time.Second, 1)),
			target: "pv/pvc-data-uid", cause: "no-deleter",
		},
		{
			name:    "host-path-not-recycled",
			objects: cluster(volume("data", onHost(v1.VolumeFailed, v1.PersistentVolumeReclaimRecycle))),
			target:  "pv/pvc-data-uid", cause: "no-recycler",
		},
		{
			name: "recycled-by-hand", // what failed before is past
			objects: cluster(volume("data", onHost(v1.VolumeAvailable, v1.PersistentVolumeReclaimRecycle), func(pv *v1.PersistentVolume) { pv.Spec.ClaimRef = nil }),
				event("PersistentVolume", "pvc-data-uid", v1.EventTypeWarning, "VolumeFailedRecycle", `No recycler plugin found for the volume!`, 9*time.Second, 1)),
			target: "pv/pvc-data-uid",
		},
		{
			name: "kept-after-all", // the policy was changed after the deletion had failed
			objects: cluster(volume("data", onHost(v1.VolumeFailed, v1.PersistentVolumeReclaimRetain)),
				event("PersistentVolume", "pvc-data-uid", v1.EventTypeWarning, "VolumeFailedDelete", `error getting deleter volume plugin for volume "pvc-data-uid": no deletable volume plugin matched`, 9*time.Second, 1)),
			target: "pv/pvc-data-uid", cause: "kept",
		},
		{
			name: "rounded-up",
			objects: cluster(claim("data", "berth-block", bound, func(c *v1.PersistentVolumeClaim) {
				c.Spec.Resources.Requests[v1.ResourceStorage] = resource.MustParse("1Mi")
			}), volume("data", func(pv *v1.PersistentVolume) { pv.Spec.Capacity[v1.ResourceStorage] = resource.MustParse("8Mi") })),
			target: "pvc/data",
		},
		{
			name: "larger-by-hand",
			objects: cluster(claim("data", "berth-block", bound), volume("data", func(pv *v1.PersistentVolume) {
				pv.Annotations = map[string]string{storagehelpers.AnnBoundByController: "yes"}
				pv.Spec.Capacity[v1.ResourceStorage] = resource.MustParse("8Gi")
			})),
			target: "pvc/data",
		},
		{
			name:    "probes",
			objects: onHolders(cluster(probed(running(pod("app", "n1"))))),
			target:  "pod/app",
		},
		{
			name:    "job-without-its-event",
			objects: onHolders(cluster(ofJob(running(pod("app", "n1"))))),
			target:  "pod/app", cause: "runtime-needed",
		},
	}
}
