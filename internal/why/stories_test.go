package why

import (
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	"berth.io/berth/internal/node/holder"
	"berth.io/berth/internal/trace"
)

// start is when the claim of each story was made; all times are relative to it.
var start = time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)

func at(d time.Duration) time.Time { return start.Add(d) }

const millis = time.Millisecond

// story is a world and the question that is asked in it.
type story struct {
	name    string
	objects []runtime.Object
	entries []trace.Entry
	holders []Holder
	unwell  []Unwell
	target  string
	cause   string // of the last volume or the pod
}

func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(name + "-uid"), CreationTimestamp: metav1.NewTime(start)}
}

func class(name string, mode storagev1.VolumeBindingMode) *storagev1.StorageClass {
	return &storagev1.StorageClass{ObjectMeta: meta("", name), Provisioner: "block.csi.berth.io", VolumeBindingMode: &mode}
}

func claim(name, class string, edit ...func(*v1.PersistentVolumeClaim)) *v1.PersistentVolumeClaim {
	c := &v1.PersistentVolumeClaim{
		ObjectMeta: meta("default", name),
		Spec: v1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
			Resources: v1.VolumeResourceRequirements{Requests: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}},
		},
		Status: v1.PersistentVolumeClaimStatus{Phase: v1.ClaimPending},
	}
	for _, f := range edit {
		f(c)
	}
	return c
}

func bound(c *v1.PersistentVolumeClaim) {
	c.Spec.VolumeName, c.Status.Phase = "pvc-"+string(c.UID), v1.ClaimBound
	c.Annotations = map[string]string{storagehelpers.AnnSelectedNode: "n1", storagehelpers.AnnBindCompleted: "yes"}
}

func volume(claim string, edit ...func(*v1.PersistentVolume)) *v1.PersistentVolume {
	pv := &v1.PersistentVolume{
		ObjectMeta: meta("", "pvc-"+claim+"-uid"),
		Spec: v1.PersistentVolumeSpec{
			Capacity: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}, AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
			ClaimRef:                      &v1.ObjectReference{Namespace: "default", Name: claim, UID: types.UID(claim + "-uid")},
			PersistentVolumeReclaimPolicy: v1.PersistentVolumeReclaimDelete, StorageClassName: "berth-block",
			PersistentVolumeSource: v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{Driver: "block.csi.berth.io", VolumeHandle: "h-" + claim}},
		},
		Status: v1.PersistentVolumeStatus{Phase: v1.VolumeBound},
	}
	pv.CreationTimestamp = metav1.NewTime(at(2 * time.Second))
	pv.Annotations = map[string]string{storagehelpers.AnnDynamicallyProvisioned: "block.csi.berth.io"}
	for _, f := range edit {
		f(pv)
	}
	return pv
}

func pod(name, node string, claims ...string) *v1.Pod {
	p := &v1.Pod{ObjectMeta: meta("default", name), Spec: v1.PodSpec{NodeName: node}, Status: v1.PodStatus{Phase: v1.PodPending}}
	for _, c := range claims {
		p.Spec.Volumes = append(p.Spec.Volumes, v1.Volume{Name: "vol-" + c, VolumeSource: v1.VolumeSource{
			PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: c},
		}})
	}
	p.Spec.Volumes = append(p.Spec.Volumes, v1.Volume{Name: "token", VolumeSource: v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{}}})
	if node != "" {
		p.Status.Conditions = append(p.Status.Conditions, v1.PodCondition{Type: v1.PodScheduled, Status: v1.ConditionTrue, LastTransitionTime: metav1.NewTime(at(3 * time.Second))})
	}
	return p
}

func running(p *v1.Pod) *v1.Pod {
	p.Status.Phase = v1.PodRunning
	p.Annotations = map[string]string{holder.PathsAnnotation: `{"vol-data":"/var/lib/berth/pods/app-uid/volumes/kubernetes.io~csi/pvc-data-uid/mount"}`}
	p.Status.Conditions = append(p.Status.Conditions, v1.PodCondition{Type: v1.PodReady, Status: v1.ConditionTrue, LastTransitionTime: metav1.NewTime(at(5 * time.Second))})
	return p
}

func refused(p *v1.Pod, message string) *v1.Pod {
	p.Status.Conditions = append(p.Status.Conditions, v1.PodCondition{
		Type: v1.PodScheduled, Status: v1.ConditionFalse, Reason: v1.PodReasonUnschedulable, Message: message, LastTransitionTime: metav1.NewTime(at(time.Second)),
	})
	return p
}

func node(name string) *v1.Node {
	return &v1.Node{ObjectMeta: meta("", name), Status: v1.NodeStatus{Conditions: []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionTrue}}}}
}

func csiNode(name string, drivers ...string) *storagev1.CSINode {
	n := &storagev1.CSINode{ObjectMeta: meta("", name)}
	for _, d := range drivers {
		n.Spec.Drivers = append(n.Spec.Drivers, storagev1.CSINodeDriver{Name: d, NodeID: name})
	}
	return n
}

func driver() *storagev1.CSIDriver {
	return &storagev1.CSIDriver{ObjectMeta: meta("", "block.csi.berth.io"), Spec: storagev1.CSIDriverSpec{AttachRequired: ptr.To(true)}}
}

func attachment(claim, node string, attached bool) *storagev1.VolumeAttachment {
	return &storagev1.VolumeAttachment{ObjectMeta: meta("", "csi-"+claim+node), Spec: storagev1.VolumeAttachmentSpec{
		Attacher: "block.csi.berth.io", NodeName: node, Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: ptr.To("pvc-" + claim + "-uid")},
	}, Status: storagev1.VolumeAttachmentStatus{Attached: attached}}
}

func event(kind, name, eventType, reason, message string, d time.Duration, count int32) *v1.Event {
	namespace := "default"
	return &v1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: namespace, Name: name + "." + strings.ToLower(reason)},
		InvolvedObject: v1.ObjectReference{Kind: kind, Namespace: namespace, Name: name},
		Type:           eventType, Reason: reason, Message: message, Count: count,
		FirstTimestamp: metav1.NewTime(start), LastTimestamp: metav1.NewTime(at(d)),
	}
}

var (
	dataClaim = trace.ObjectRef{Namespace: "default", Name: "data", UID: "data-uid"}
	appPod    = trace.ObjectRef{Namespace: "default", Name: "app", UID: "app-uid"}
)

// wholeJourney is what the journal holds of a volume that was made for a pod.
func wholeJourney() []trace.Entry {
	const pv = "pvc-data-uid"
	return []trace.Entry{
		{Time: at(1 * millis), Step: trace.Claimed, State: trace.Done, Claim: dataClaim, Detail: "asks for 1Gi"},
		{Time: at(2 * millis), Step: trace.Matched, State: trace.Waiting, Claim: dataClaim, Detail: "waiting for a pod"},
		{Time: at(6 * millis), Step: trace.Scheduled, State: trace.Done, Claim: dataClaim, Pod: appPod, Node: "n1", Detail: "chose node n1 for the volume"},
		{Time: at(7 * millis), Step: trace.Matched, State: trace.Done, Claim: dataClaim, Detail: "driver block.csi.berth.io is to make the volume"},
		{Time: at(8 * millis), Step: trace.Provisioned, State: trace.Began, Claim: dataClaim, Volume: pv},
		{Time: at(14 * millis), Step: trace.Provisioned, State: trace.Done, Claim: dataClaim, Volume: pv},
		{Time: at(18 * millis), Step: trace.Bound, State: trace.Done, Claim: dataClaim, Volume: pv, Detail: "to volume " + pv},
		{Time: at(18 * millis), Step: trace.Scheduled, State: trace.Waiting, Pod: appPod, Detail: "waiting for claims to be bound on node n1"},
		{Time: at(20 * millis), Step: trace.Scheduled, State: trace.Done, Pod: appPod, Node: "n1", Detail: "assigned the pod to node n1"},
		{Time: at(21 * millis), Step: trace.Attached, State: trace.Began, Claim: dataClaim, Volume: pv, Node: "n1"},
		{Time: at(24 * millis), Step: trace.Attached, State: trace.Done, Claim: dataClaim, Volume: pv, Node: "n1", Detail: "to node n1"},
		{Time: at(25 * millis), Step: trace.Staged, State: trace.Began, Claim: dataClaim, Volume: pv, Node: "n1"},
		{Time: at(30 * millis), Step: trace.Staged, State: trace.Failed, Claim: dataClaim, Volume: pv, Node: "n1", Detail: "mkfs: device is busy"},
		{Time: at(45 * millis), Step: trace.Staged, State: trace.Done, Claim: dataClaim, Volume: pv, Node: "n1", Detail: "ext4"},
		{Time: at(46 * millis), Step: trace.Published, State: trace.Began, Claim: dataClaim, Volume: pv, Pod: appPod, Node: "n1"},
		{Time: at(48 * millis), Step: trace.Published, State: trace.Done, Claim: dataClaim, Volume: pv, Pod: appPod, Node: "n1"},
		{Time: at(50 * millis), Step: trace.Running, State: trace.Done, Pod: appPod, Node: "n1", Detail: "all 2 volumes are mounted"},
	}
}

// earlierPod is what another pod did with the volume before: it must not show.
func earlierPod() []trace.Entry {
	old := trace.ObjectRef{Namespace: "default", Name: "old", UID: "old-uid"}
	return []trace.Entry{
		{Time: at(-9 * time.Second), Step: trace.Published, State: trace.Done, Claim: dataClaim, Volume: "pvc-data-uid", Pod: old},
		{Time: at(-8 * time.Second), Step: trace.Detached, State: trace.Done, Claim: dataClaim, Volume: "pvc-data-uid", Node: "n1"},
		{Time: at(-7 * time.Second), Step: trace.Claimed, State: trace.Done, Claim: trace.ObjectRef{Namespace: "default", Name: "data", UID: "earlier"}},
	}
}

func cluster(more ...runtime.Object) []runtime.Object {
	return append([]runtime.Object{
		class("berth-block", storagev1.VolumeBindingWaitForFirstConsumer), class("berth-block-immediate", storagev1.VolumeBindingImmediate),
		driver(), node("n1"), csiNode("n1", "block.csi.berth.io"),
	}, more...)
}

func stories() []story {
	return append([]story{
		{
			name:    "mounted",
			objects: cluster(claim("data", "berth-block", bound), volume("data"), running(pod("app", "n1", "data")), attachment("data", "n1", true)),
			entries: append(earlierPod(), wholeJourney()...), target: "pvc/data",
		},
		{
			name: "mounted-without-journal",
			objects: cluster(claim("data", "berth-block", bound), volume("data"), running(pod("app", "n1", "data")), attachment("data", "n1", true),
				event("Pod", "app", v1.EventTypeNormal, "SuccessfulAttachVolume", `AttachVolume.Attach succeeded for volume "pvc-data-uid"`, 4*time.Second, 1),
				event("Pod", "app", v1.EventTypeWarning, "FailedScheduling", "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.", time.Second, 1)),
			target: "pod/app",
		},
		{
			name:    "volume-without-pod",
			objects: cluster(claim("data", "berth-block", bound), volume("data")), target: "pv/pvc-data-uid",
		},
		{
			name: "unknown-class",
			objects: cluster(claim("data", "fast"),
				event("PersistentVolumeClaim", "data", v1.EventTypeWarning, "ProvisioningFailed", `storageclass.storage.k8s.io "fast" not found`, 30*time.Second, 5)),
			target: "pvc/data", cause: "unknown-class",
		},
		{
			name:    "waits-for-a-pod",
			objects: cluster(claim("data", "berth-block")), entries: wholeJourney()[:2], target: "pvc/data", cause: "no-consumer",
		},
		{
			name: "beyond-the-pool",
			objects: cluster(claim("data", "berth-block-immediate"),
				event("PersistentVolumeClaim", "data", v1.EventTypeWarning, "ProvisioningFailed",
					`failed to provision volume with StorageClass "berth-block-immediate": rpc error: code = ResourceExhausted desc = pool default has 9.1 GiB free, asked for 900 TiB`, 40*time.Second, 4)),
			entries: []trace.Entry{
				{Time: at(1 * millis), Step: trace.Claimed, State: trace.Done, Claim: dataClaim, Detail: "asks for 1Gi"},
				{Time: at(8 * millis), Step: trace.Provisioned, State: trace.Began, Claim: dataClaim, Volume: "pvc-data-uid"},
				{Time: at(40*time.Second + 9*millis), Step: trace.Provisioned, State: trace.Failed, Claim: dataClaim, Volume: "pvc-data-uid", Detail: "pool default has 9.1 GiB free, asked for 900 TiB: not enough free space"},
			},
			target: "pvc/data", cause: "pool-full",
		},
		{
			name:    "driver-hangs",
			objects: cluster(claim("data", "berth-block", bound), volume("data"), pod("app", "n1", "data"), attachment("data", "n1", true)),
			entries: wholeJourney()[:12],
			holders: []Holder{
				{Volume: "another", Driver: "x", Step: "NodeStageVolume", Since: start},
				{Volume: "kubernetes.io/csi/block.csi.berth.io^h-data", Driver: "block.csi.berth.io", Step: "NodeStageVolume", Since: at(26 * millis)},
			},
			target: "pod/app",
		},
		{
			name: "multi-attach",
			objects: cluster(claim("data", "berth-block", bound), volume("data"), pod("app", "n2", "data"), pod("old", "n1", "data"), attachment("data", "n1", true),
				node("n2"), csiNode("n2", "block.csi.berth.io"),
				event("Pod", "app", v1.EventTypeWarning, "FailedAttachVolume", `Multi-Attach error for volume "pvc-data-uid" Volume is already used by pod(s) old`, 9*time.Second, 1)),
			target: "pod/app", cause: "multi-attach",
		},
		{
			name:    "driver-not-registered",
			objects: cluster(claim("data", "berth-block", bound), volume("data"), pod("app", "n2", "data"), node("n2"), csiNode("n2")),
			target:  "pod/app", cause: "driver-not-on-node",
		},
		{
			name:    "no-node",
			objects: cluster(claim("data", "berth-block"), refused(pod("app", "", "data"), "0/1 nodes are available: 1 node(s) were unschedulable.")),
			entries: []trace.Entry{
				{Time: at(-time.Second), Step: trace.Matched, State: trace.Waiting, Claim: dataClaim, Detail: "waiting for a pod"},
				{Time: at(110 * millis), Step: trace.Scheduled, State: trace.Waiting, Claim: dataClaim, Pod: appPod, Detail: "0/1 nodes are available: 1 node(s) were unschedulable."},
			},
			target: "pod/app", cause: "cordoned",
		},
		{
			name: "no-space",
			objects: func() []runtime.Object {
				objects := cluster(claim("data", "berth-block"), refused(pod("app", "", "data"), "0/1 nodes are available: 1 node(s) did not have enough free storage."),
					&storagev1.CSIStorageCapacity{ObjectMeta: meta("kube-system", "k"), StorageClassName: "berth-block", Capacity: ptr.To(resource.MustParse("844Mi"))})
				objects[2].(*storagev1.CSIDriver).Spec.StorageCapacity = ptr.To(true)
				return objects
			}(),
			target: "pvc/data", cause: "no-free-storage",
		},
		{
			name: "secret-missing",
			objects: cluster(func() runtime.Object {
				p := pod("app", "n1")
				p.Spec.Volumes = append(p.Spec.Volumes, v1.Volume{Name: "key", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "s"}}})
				return p
			}(), event("Pod", "app", v1.EventTypeWarning, "FailedMount", `MountVolume.SetUp failed for volume "key" : secret "s" not found`, 20*time.Second, 3)),
			target: "pod/app", cause: "secret-missing",
		},
		{
			name: "claim-lost",
			objects: cluster(claim("data", "berth-block", bound, func(c *v1.PersistentVolumeClaim) { c.Status.Phase = v1.ClaimLost }),
				event("PersistentVolumeClaim", "data", v1.EventTypeWarning, "ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!", 20*time.Second, 1)),
			target: "pvc/data", cause: "claim-lost",
		},
		{
			name: "job",
			objects: cluster(claim("data", "berth-block", bound), volume("data"), running(pod("app", "n1", "data")), attachment("data", "n1", true),
				event("Pod", "app", v1.EventTypeWarning, "NoContainerRuntime", "Job pods need a container runtime; this node only holds volumes", 6*time.Second, 1)),
			entries: wholeJourney(), target: "pod/app", cause: "runtime-needed",
		},
		{
			name: "gone", objects: cluster(),
			entries: append(wholeJourney(),
				trace.Entry{Time: at(61 * time.Second), Step: trace.Unpublished, State: trace.Done, Claim: dataClaim, Volume: "pvc-data-uid"},
				trace.Entry{Time: at(62 * time.Second), Step: trace.Deleted, State: trace.Done, Volume: "pvc-data-uid"},
				trace.Entry{Time: at(63 * time.Second), Step: trace.Lost, State: trace.Failed, Detail: "3 entries did not reach the journal"}),
			target: "pvc/data",
		},
	}, append(laterStories(), inlineStories()...)...)
}
