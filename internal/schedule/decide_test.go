package schedule

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

const (
	late  = storagev1.VolumeBindingWaitForFirstConsumer
	early = storagev1.VolumeBindingImmediate
)

func capacityDriver() *storagev1.CSIDriver {
	return &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "d.csi"}, Spec: storagev1.CSIDriverSpec{StorageCapacity: ptr.To(true)}}
}

func labelled(key, value string) func(*v1.Node) { return func(n *v1.Node) { n.Labels[key] = value } }

func zoned(pv *v1.PersistentVolume) { pv.Labels = map[string]string{v1.LabelTopologyZone: "a__b"} }

func asking(cpu string) *v1.Pod {
	p := testPod("p")
	p.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu)}
	return p
}

func with(p *v1.Pod, edit func(*v1.PodSpec)) *v1.Pod {
	edit(&p.Spec)
	return p
}

// TestDecide: each world has one pod to place; either a node is chosen, with what must happen to the claims, or the
// refusal is told in upstream's words.
func TestDecide(t *testing.T) {
	for name, test := range map[string]struct {
		world      []any
		pod        *v1.Pod
		node       string
		prebinds   string // "claim=volume"
		provisions string
		refused    string // the whole message
	}{
		"no node": {pod: testPod("p"), refused: "no nodes available to schedule pods"},
		"pod without volumes": {
			world: []any{testNode("n1")}, pod: testPod("p"), node: "n1",
		},
		"node cordoned": {
			world: []any{testNode("n1", func(n *v1.Node) { n.Spec.Unschedulable = true })}, pod: testPod("p"),
			refused: "0/1 nodes are available: 1 node(s) were unschedulable.",
		},
		"taint not tolerated, other node cordoned": {
			world: []any{
				testNode("n1", func(n *v1.Node) { n.Spec.Taints = []v1.Taint{{Key: "k", Effect: v1.TaintEffectNoSchedule}} }),
				testNode("n2", func(n *v1.Node) { n.Spec.Unschedulable = true }),
			}, pod: testPod("p"),
			refused: "0/2 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable.",
		},
		"taint tolerated": {
			world: []any{testNode("n1", func(n *v1.Node) { n.Spec.Taints = []v1.Taint{{Key: "k", Effect: v1.TaintEffectNoSchedule}} })},
			pod:   with(testPod("p"), func(s *v1.PodSpec) { s.Tolerations = []v1.Toleration{{Operator: v1.TolerationOpExists}} }), node: "n1",
		},
		"node selector": {
			world: []any{testNode("n1"), testNode("n2")},
			pod:   with(testPod("p"), func(s *v1.PodSpec) { s.NodeSelector = map[string]string{"host": "n2"} }), node: "n2",
		},
		"node selector of no node": {
			world:   []any{testNode("n1"), testNode("n2")},
			pod:     with(testPod("p"), func(s *v1.PodSpec) { s.NodeSelector = map[string]string{"host": "n3"} }),
			refused: "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.",
		},
		"too little cpu left": {
			world: []any{testNode("n1"), onNode(with(asking("3"), func(*v1.PodSpec) {}), "n1")}, pod: func() *v1.Pod { p := asking("2"); p.Name, p.UID = "q", "q"; return p }(),
			refused: "0/1 nodes are available: 1 Insufficient cpu.",
		},
		"too many pods": {
			world: []any{testNode("n1", func(n *v1.Node) { n.Status.Allocatable[v1.ResourcePods] = resource.MustParse("1") }), onNode(testPod("o"), "n1")},
			pod:   testPod("p"), refused: "0/1 nodes are available: 1 Too many pods.",
		},
		"claim missing": {
			world: []any{testNode("n1")}, pod: testPod("p", "c"),
			refused: `0/1 nodes are available: persistentvolumeclaim "c" not found.`,
		},
		"ephemeral claim not made yet": {
			world: []any{testNode("n1")},
			pod: with(testPod("p"), func(s *v1.PodSpec) {
				s.Volumes = []v1.Volume{{Name: "scratch", VolumeSource: v1.VolumeSource{Ephemeral: &v1.EphemeralVolumeSource{}}}}
			}),
			refused: `0/1 nodes are available: waiting for ephemeral volume controller to create the persistentvolumeclaim "p-scratch".`,
		},
		"ephemeral claim of somebody else": {
			world: []any{testNode("n1"), testClaim("p-scratch", "late", "1Gi")},
			pod: with(testPod("p"), func(s *v1.PodSpec) {
				s.Volumes = []v1.Volume{{Name: "scratch", VolumeSource: v1.VolumeSource{Ephemeral: &v1.EphemeralVolumeSource{}}}}
			}),
			refused: `0/1 nodes are available: PVC ns/p-scratch was not created for pod ns/p (pod is not owner).`,
		},
		"claim being deleted": {
			world: []any{testNode("n1"), testClaim("c", "late", "1Gi", func(c *v1.PersistentVolumeClaim) { c.DeletionTimestamp = &metav1.Time{} })},
			pod:   testPod("p", "c"), refused: `0/1 nodes are available: persistentvolumeclaim "c" is being deleted.`,
		},
		"claim lost": {
			world: []any{testNode("n1"), testClaim("c", "late", "1Gi", boundTo("pv"), func(c *v1.PersistentVolumeClaim) { c.Status.Phase = v1.ClaimLost })},
			pod:   testPod("p", "c"), refused: `0/1 nodes are available: persistentvolumeclaim "c" bound to non-existent persistentvolume "pv".`,
		},
		"immediate claim not bound": {
			world: []any{testNode("n1"), testClass("early", early, "d.csi"), testClaim("c", "early", "1Gi")},
			pod:   testPod("p", "c"), refused: "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
		},
		"unknown class": {
			world: []any{testNode("n1"), testClaim("c", "nope", "1Gi")},
			pod:   testPod("p", "c"), refused: "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
		},
		"bound claim, volume gone": {
			world: []any{testNode("n1"), testClaim("c", "late", "1Gi", boundTo("pv"))},
			pod:   testPod("p", "c"), refused: "0/1 nodes are available: 1 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s).",
		},
		"bound volume on the other node": {
			world: []any{testNode("n1"), testNode("n2"), testClaim("c", "late", "1Gi", boundTo("pv")), testVolume("pv", "late", "1Gi", onHost("n2"))},
			pod:   testPod("p", "c"), node: "n2",
		},
		"bound volume on no node": {
			world: []any{testNode("n1"), testClaim("c", "late", "1Gi", boundTo("pv")), testVolume("pv", "late", "1Gi", onHost("n2"))},
			pod:   testPod("p", "c"), refused: "0/1 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity.",
		},
		"volume of another zone": {
			world: []any{
				testNode("n1", labelled(v1.LabelTopologyZone, "c")),
				testClaim("c", "late", "1Gi", boundTo("pv")), testVolume("pv", "late", "1Gi", zoned),
			},
			pod: testPod("p", "c"), refused: "0/1 nodes are available: 1 node(s) had no available volume zone.",
		},
		"volume of two zones": {
			world: []any{
				testNode("n1", labelled(v1.LabelTopologyZone, "b")),
				testClaim("c", "late", "1Gi", boundTo("pv")), testVolume("pv", "late", "1Gi", zoned),
			},
			pod: testPod("p", "c"), node: "n1",
		},
		"smallest volume that fits": {
			world: []any{
				testNode("n1"), testClass("static", late, "kubernetes.io/no-provisioner"), testClaim("c", "static", "2Gi"),
				testVolume("big", "static", "9Gi"), testVolume("small", "static", "1Gi"), testVolume("fits", "static", "3Gi"), testVolume("other", "late", "2Gi"),
			},
			pod: testPod("p", "c"), node: "n1", prebinds: "c=fits",
		},
		"two claims take two volumes, the smaller claim the smaller": {
			world: []any{
				testNode("n1"), testClass("static", late, "kubernetes.io/no-provisioner"), testClaim("c1", "static", "3Gi"), testClaim("c2", "static", "1Gi"),
				testVolume("a", "static", "2Gi"), testVolume("b", "static", "3Gi"),
			},
			pod: testPod("p", "c1", "c2"), node: "n1", prebinds: "c2=a c1=b",
		},
		"all claims on one node": {
			world: []any{
				testNode("n1"), testNode("n2"), testClass("static", late, "kubernetes.io/no-provisioner"), testClaim("c1", "static", "1Gi"), testClaim("c2", "static", "1Gi"),
				testVolume("a", "static", "1Gi", onHost("n1")), testVolume("b", "static", "1Gi", onHost("n2")), testVolume("c", "static", "1Gi", onHost("n2")),
			},
			pod: testPod("p", "c1", "c2"), node: "n2", prebinds: "c1=b c2=c",
		},
		"volume reserved for the claim": {
			world: []any{
				testNode("n1"), testClass("late", late, "d.csi"), testClaim("c", "late", "1Gi"),
				testVolume("a", "late", "1Gi"), testVolume("mine", "late", "5Gi", refTo("c")),
			},
			pod: testPod("p", "c"), node: "n1", prebinds: "c=mine",
		},
		"volume released, mode and access mode differ": {
			world: []any{
				testNode("n1"), testClass("static", late, "kubernetes.io/no-provisioner"), testClaim("c", "static", "1Gi"),
				testVolume("a", "static", "1Gi", func(pv *v1.PersistentVolume) { pv.Status.Phase = v1.VolumeReleased }),
				testVolume("b", "static", "1Gi", func(pv *v1.PersistentVolume) { pv.Spec.VolumeMode = ptr.To(v1.PersistentVolumeBlock) }),
				testVolume("d", "static", "1Gi", func(pv *v1.PersistentVolume) { pv.Spec.AccessModes = []v1.PersistentVolumeAccessMode{v1.ReadOnlyMany} }),
			},
			pod: testPod("p", "c"), refused: "0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind.",
		},
		"to be provisioned": {
			world: []any{testNode("n1"), testClass("late", late, "d.csi"), testClaim("c", "late", "1Gi")},
			pod:   testPod("p", "c"), node: "n1", provisions: "c",
		},
		"one volume there, one to be provisioned": {
			world: []any{testNode("n1"), testClass("late", late, "d.csi"), testClaim("c1", "late", "1Gi"), testClaim("c2", "late", "1Gi"), testVolume("a", "late", "1Gi")},
			pod:   testPod("p", "c1", "c2"), node: "n1", prebinds: "c1=a", provisions: "c2",
		},
		"selected before, as after a restart": {
			world: []any{testNode("n1"), testNode("n2"), testClass("late", late, "d.csi"), testClaim("c", "late", "1Gi", selected("n2")), testVolume("a", "late", "1Gi")},
			pod:   testPod("p", "c"), node: "n2", provisions: "c",
		},
		"allowed topology": {
			world: []any{testNode("n1"), testNode("n2"), testClass("late", late, "d.csi", "n2", "n3"), testClaim("c", "late", "1Gi")},
			pod:   testPod("p", "c"), node: "n2", provisions: "c",
		},
		"allowed topology of no node": {
			world: []any{testNode("n1"), testClass("late", late, "d.csi", "n3"), testClaim("c", "late", "1Gi")},
			pod:   testPod("p", "c"), refused: "0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind.",
		},
		"capacity on one node": {
			world: []any{
				testNode("n1"), testNode("n2"), testClass("late", late, "d.csi"), testClaim("c", "late", "5Gi"), capacityDriver(),
				testCapacity("k1", "late", "4Gi", "n1"), testCapacity("k2", "late", "6Gi", "n2"),
			},
			pod: testPod("p", "c"), node: "n2", provisions: "c",
		},
		"capacity nowhere": {
			world: []any{
				testNode("n1"), testClass("late", late, "d.csi"), testClaim("c", "late", "5Gi"), capacityDriver(),
				testCapacity("k1", "late", "4Gi", "n1"),
			},
			pod: testPod("p", "c"), refused: "0/1 nodes are available: 1 node(s) did not have enough free storage.",
		},
		"capacity enough, single volume too large": {
			world: []any{
				testNode("n1"), testClass("late", late, "d.csi"), testClaim("c", "late", "5Gi"), capacityDriver(),
				func() any {
					k := testCapacity("k1", "late", "100Gi", "n1")
					k.MaximumVolumeSize = ptr.To(resource.MustParse("4Gi"))
					return k
				}(),
			},
			pod: testPod("p", "c"), refused: "0/1 nodes are available: 1 node(s) did not have enough free storage.",
		},
		"most space left": {
			world: []any{
				testNode("n1"), testNode("n2"), testClass("late", late, "d.csi"), testClaim("c", "late", "1Gi"), capacityDriver(),
				testCapacity("k1", "late", "40Gi", "n1"), testCapacity("k2", "late", "60Gi", "n2"),
			},
			pod: testPod("p", "c"), node: "n2", provisions: "c",
		},
		"most space left, promises counted": {
			world: []any{
				testNode("n1"), testNode("n2"), testClass("late", late, "d.csi"), testClaim("c", "late", "1Gi"), capacityDriver(),
				testCapacity("k1", "late", "40Gi", "n1"), testCapacity("k2", "late", "60Gi", "n2"),
				testClaim("o", "late", "30Gi", selected("n2")), onNode(testPod("o", "o"), "n2"),
			},
			pod: testPod("p", "c"), node: "n1", provisions: "c",
		},
		"fewest volumes": {
			world: []any{
				testNode("n1"), testNode("n2"), testClaim("o", "late", "1Gi", boundTo("x")), testVolume("x", "late", "1Gi"), onNode(testPod("o", "o"), "n1"),
			},
			pod: testPod("p"), node: "n2",
		},
		"preferred node": {
			world: []any{testNode("n1"), testNode("n2")},
			pod: with(testPod("p"), func(s *v1.PodSpec) {
				s.Affinity = &v1.Affinity{NodeAffinity: &v1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []v1.PreferredSchedulingTerm{{
					Weight: 1, Preference: v1.NodeSelectorTerm{MatchExpressions: []v1.NodeSelectorRequirement{{Key: "host", Operator: v1.NodeSelectorOpIn, Values: []string{"n2"}}}},
				}}}}
			}), node: "n2",
		},
		"ReadWriteOncePod in use": {
			world: []any{
				testNode("n1"), testClaim("c", "late", "1Gi", boundTo("pv"), oncePod), testVolume("pv", "late", "1Gi"), onNode(testPod("o", "c"), "n1"),
			},
			pod:     testPod("p", "c"),
			refused: "0/1 nodes are available: 1 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod.",
		},
		"volume limit reached": {
			world: []any{
				testNode("n1"), testCSINode("n1", 1), testClass("late", late, "d.csi"), testClaim("c", "late", "1Gi"),
				testClaim("o", "late", "1Gi", boundTo("x")), testVolume("x", "late", "1Gi"), onNode(testPod("o", "o"), "n1"),
			},
			pod: testPod("p", "c"), refused: "0/1 nodes are available: 1 node(s) exceed max volume count.",
		},
		"volume limit reached, same volume": {
			world: []any{
				testNode("n1"), testCSINode("n1", 1),
				testClaim("c", "late", "1Gi", boundTo("x")), testVolume("x", "late", "1Gi"), onNode(testPod("o", "c"), "n1"),
			},
			pod: testPod("p", "c"), node: "n1",
		},
		"volume limit reached by an attachment that no pod uses": {
			world: []any{
				testNode("n1"), testCSINode("n1", 1), testClass("late", late, "d.csi"), testClaim("c", "late", "1Gi"), testVolume("x", "late", "1Gi"),
				&storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: storagev1.VolumeAttachmentSpec{
					Attacher: "d.csi", NodeName: "n1", Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: ptr.To("x")},
				}},
			},
			pod: testPod("p", "c"), refused: "0/1 nodes are available: 1 node(s) exceed max volume count.",
		},
		"inline iSCSI disk in use": {
			world: []any{testNode("n1"), onNode(with(testPod("o"), iscsi), "n1")},
			pod:   with(testPod("p"), iscsi), refused: "0/1 nodes are available: 1 node(s) had no available disk.",
		},
		"required anti-affinity": {
			world: []any{testNode("n1")},
			pod: with(testPod("p"), func(s *v1.PodSpec) {
				s.Affinity = &v1.Affinity{PodAntiAffinity: &v1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []v1.PodAffinityTerm{{TopologyKey: "host"}}}}
			}),
			refused: "0/1 nodes are available: the pod demands spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution, which Berth's scheduler does not support; use the preferred form, or node affinity.",
		},
		"preferred anti-affinity is accepted": {
			world: []any{testNode("n1")},
			pod: with(testPod("p"), func(s *v1.PodSpec) {
				s.Affinity = &v1.Affinity{PodAntiAffinity: &v1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []v1.WeightedPodAffinityTerm{{Weight: 1}}}}
			}), node: "n1",
		},
		"spread that must hold": {
			world: []any{testNode("n1")},
			pod: with(testPod("p"), func(s *v1.PodSpec) {
				s.TopologySpreadConstraints = []v1.TopologySpreadConstraint{{WhenUnsatisfiable: v1.DoNotSchedule}}
			}),
			refused: "0/1 nodes are available: the pod demands spec.topologySpreadConstraints with whenUnsatisfiable DoNotSchedule, which Berth's scheduler does not support; use ScheduleAnyway.",
		},
		"resource claims": {
			world:   []any{testNode("n1")},
			pod:     with(testPod("p"), func(s *v1.PodSpec) { s.ResourceClaims = []v1.PodResourceClaim{{Name: "gpu"}} }),
			refused: "0/1 nodes are available: the pod demands spec.resourceClaims (dynamic resource allocation), which Berth's scheduler does not support; remove them.",
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, no := decide(world(test.world...), test.pod)
			if no != nil {
				if no.message != test.refused {
					t.Fatalf("refused: %s\nwant:    %s", no.message, test.refused)
				}
				return
			}
			if test.refused != "" || d.node != test.node {
				t.Fatalf("node %q, want %q %s", d.node, test.node, test.refused)
			}
			if got := strings.Join(prebindNames(d), " "); got != test.prebinds {
				t.Errorf("prebinds %q, want %q", got, test.prebinds)
			}
			var provisions []string
			for _, c := range d.provisions {
				provisions = append(provisions, c.Name)
			}
			if got := strings.Join(provisions, " "); got != test.provisions {
				t.Errorf("provisions %q, want %q", got, test.provisions)
			}
		})
	}
}

func iscsi(s *v1.PodSpec) {
	s.Volumes = []v1.Volume{{Name: "d", VolumeSource: v1.VolumeSource{ISCSI: &v1.ISCSIVolumeSource{IQN: "iqn.2001-04.com.example:x"}}}}
}

func prebindNames(d *decision) []string {
	var names []string
	for _, b := range d.prebinds {
		names = append(names, b.claim.Name+"="+b.volume.Name)
	}
	return names
}

func BenchmarkDecide(b *testing.B) {
	objects := []any{testNode("n1"), testClass("late", late, "d.csi"), testClaim("c", "late", "1Gi"), testCSINode("n1", 10000), capacityDriver(), testCapacity("k", "late", "1Ti", "n1")}
	for i := range 300 {
		name := "o" + resource.NewQuantity(int64(i), resource.DecimalSI).String()
		objects = append(objects, testClaim(name, "late", "1Gi", boundTo(name)), testVolume(name, "late", "1Gi"), onNode(testPod(name, name), "n1"))
	}
	c, pod := world(objects...), testPod("p", "c")
	for b.Loop() {
		if _, no := decide(c, pod); no != nil {
			b.Fatal(no.message)
		}
	}
}
