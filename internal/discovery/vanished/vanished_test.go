package vanished

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"berth.io/berth/internal/discovery"
)

var everything = labels.Everything()

func node(name, host string) *v1.Node {
	return &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Labels: map[string]string{v1.LabelHostname: host}}}
}

func volume(name, host string, phase v1.PersistentVolumePhase, change ...func(*v1.PersistentVolume)) *v1.PersistentVolume {
	pv := &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), Annotations: map[string]string{discovery.AnnProvisionedBy: discovery.ProvisionerName + "-" + host + "-uid"}},
		Spec: v1.PersistentVolumeSpec{
			StorageClassName: "fast", PersistentVolumeReclaimPolicy: v1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource: v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: "/mnt/" + name}},
			NodeAffinity: &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{
				MatchExpressions: []v1.NodeSelectorRequirement{{Key: v1.LabelHostname, Operator: v1.NodeSelectorOpIn, Values: []string{host}}}}}}},
		},
		Status: v1.PersistentVolumeStatus{Phase: phase},
	}
	if phase == v1.VolumeBound {
		pv.Spec.ClaimRef = &v1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: "ns", Name: "claim-" + name, UID: types.UID("claim-" + name)}
	}
	for _, f := range change {
		f(pv)
	}
	return pv
}

func claim(pv string) *v1.PersistentVolumeClaim {
	return &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "claim-" + pv, UID: types.UID("claim-" + pv)}, Spec: v1.PersistentVolumeClaimSpec{VolumeName: pv}}
}

// rig is a controller whose passes the test makes, with a clock of the test's.
type rig struct {
	*testing.T
	*Controller
	api     *fake.Clientset
	events  *record.FakeRecorder
	clock   time.Time
	metrics *prometheus.Registry // shadows the controller's
}

func newRig(t *testing.T, delays Delays, objects ...runtime.Object) *rig {
	t.Helper()
	r := &rig{T: t, api: fake.NewClientset(objects...), events: record.NewFakeRecorder(100), clock: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	r.again(delays)
	return r
}

// again starts the controller anew, as after a death.
func (r *rig) again(delays Delays) {
	r.Helper()
	f := informers.NewSharedInformerFactory(r.api, 0)
	r.metrics = prometheus.NewRegistry()
	c, err := New(Options{Delays: delays, Client: r.api, Informers: f, Events: r.events, Metrics: r.metrics})
	if err != nil {
		r.Fatal(err)
	}
	c.now = func() time.Time { return r.clock }
	r.Controller = c
	f.Start(r.Context().Done())
	f.WaitForCacheSync(r.Context().Done())
}

// settle makes passes until the informers know what the API has and a pass changes nothing.
func (r *rig) settle() (next time.Duration) {
	r.Helper()
	for range 200 {
		before := len(r.api.Actions())
		next = r.pass(r.Context())
		writes := 0
		for _, a := range r.api.Actions()[before:] {
			if a.GetVerb() == "patch" || a.GetVerb() == "delete" {
				writes++
			}
		}
		if writes == 0 && r.upToDate() {
			return next
		}
		time.Sleep(5 * time.Millisecond)
	}
	r.Fatal("it does not settle")
	return 0
}

func (r *rig) upToDate() bool {
	list, err := r.api.CoreV1().PersistentVolumes().List(r.Context(), metav1.ListOptions{})
	if err != nil {
		r.Fatal(err)
	}
	for i := range list.Items {
		have, err := r.volumes.Get(list.Items[i].Name)
		if err != nil || have.Annotations[annGoneSince] != list.Items[i].Annotations[annGoneSince] || have.Status.Reason != list.Items[i].Status.Reason {
			return false
		}
	}
	known, _ := r.volumes.List(everything)
	nodes, _ := r.nodes.List(everything)
	real, err := r.api.CoreV1().Nodes().List(r.Context(), metav1.ListOptions{})
	return err == nil && len(known) == len(list.Items) && len(nodes) == len(real.Items)
}

func (r *rig) has(name string) bool {
	r.Helper()
	_, err := r.api.CoreV1().PersistentVolumes().Get(r.Context(), name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		r.Fatal(err)
	}
	return err == nil
}

func (r *rig) hasClaim(pv string) bool {
	_, err := r.api.CoreV1().PersistentVolumeClaims("ns").Get(r.Context(), "claim-"+pv, metav1.GetOptions{})
	return err == nil
}

// gauge is the metric's value for a phase.
func (r *rig) gauge(name, phase string) float64 {
	r.Helper()
	families, err := r.metrics.Gather()
	if err != nil {
		r.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && m.GetLabel()[0].GetValue() == phase {
				return m.GetGauge().GetValue()
			}
		}
	}
	return -1
}

func (r *rig) said() (all string) {
	for {
		select {
		case e := <-r.events.Events:
			all += e + "\n"
		default:
			return all
		}
	}
}

// What is done about the volume of a node that is no more, at once and when its time has come.
func TestWhatIsDue(t *testing.T) {
	named := DefaultDelays()
	named.Classes = []string{"fast"}
	retain := func(pv *v1.PersistentVolume) {
		pv.Spec.PersistentVolumeReclaimPolicy = v1.PersistentVolumeReclaimRetain
	}
	own := func(pv *v1.PersistentVolume) { pv.Annotations = nil }
	for name, tc := range map[string]struct {
		pv       *v1.PersistentVolume
		delays   Delays
		at       map[time.Duration]bool // after that time: is it there?
		claimAt  map[time.Duration]bool
		said     string
		reported bool
	}{
		"available: at once": {volume("v", "lost", v1.VolumeAvailable), DefaultDelays(), map[time.Duration]bool{0: false}, nil, "NodeGone its node lost is no more (missed since 2026-01-01T00:00:00Z); nobody has the volume", true},
		"released: after its delay": {volume("v", "lost", v1.VolumeReleased), DefaultDelays(), map[time.Duration]bool{0: true, 9 * time.Minute: true, 10 * time.Minute: false}, nil,
			"is deleted if the node does not come back within 10m0s", true},
		"bound: told, and kept": {volume("v", "lost", v1.VolumeBound), DefaultDelays(), map[time.Duration]bool{0: true, 24 * time.Hour: true}, map[time.Duration]bool{0: true, 24 * time.Hour: true},
			"ReferencedNodeDeleted PersistentVolume v: its node lost is no more", true},
		"bound, its class named: the claim goes, the volume is released first": {volume("v", "lost", v1.VolumeBound), named, map[time.Duration]bool{2 * time.Minute: true},
			map[time.Duration]bool{0: true, 59 * time.Second: true, time.Minute: false}, "its claim ns/claim-v is deleted if the node does not come back within 1m0s", true},
		"retained: told, and kept":                  {volume("v", "lost", v1.VolumeReleased, retain), named, map[time.Duration]bool{24 * time.Hour: true}, nil, "its policy is Retain", true},
		"never used and retained":                   {volume("v", "lost", v1.VolumeAvailable, retain), named, map[time.Duration]bool{24 * time.Hour: true}, nil, "its policy is Retain", true},
		"somebody's own: not looked at":             {volume("v", "lost", v1.VolumeAvailable, own), DefaultDelays(), map[time.Duration]bool{24 * time.Hour: true}, nil, "", false},
		"somebody's own, its class named":           {volume("v", "lost", v1.VolumeAvailable, own), named, map[time.Duration]bool{0: false}, nil, "NodeGone", true},
		"the node is there":                         {volume("v", "here", v1.VolumeReleased), named, map[time.Duration]bool{24 * time.Hour: true}, nil, "", false},
		"the node is there under its name alone":    {volume("v", "plain", v1.VolumeReleased), named, map[time.Duration]bool{24 * time.Hour: true}, nil, "", false},
		"another node may have it, a shared disk":   {volume("v", "lost", v1.VolumeReleased, rack), named, map[time.Duration]bool{24 * time.Hour: true}, nil, "", false},
		"no local volume":                           {volume("v", "lost", v1.VolumeAvailable, func(pv *v1.PersistentVolume) { pv.Spec.Local = nil }), named, map[time.Duration]bool{24 * time.Hour: true}, nil, "", false},
		"without an affinity, it can't be known":    {volume("v", "lost", v1.VolumeAvailable, func(pv *v1.PersistentVolume) { pv.Spec.NodeAffinity = nil }), named, map[time.Duration]bool{24 * time.Hour: true}, nil, "", false},
		"a time that is in the future, or nonsense": {volume("v", "lost", v1.VolumeReleased, func(pv *v1.PersistentVolume) { pv.Annotations[annGoneSince] = "2999-01-01T00:00:00Z" }), DefaultDelays(), map[time.Duration]bool{0: true, 10 * time.Minute: false}, nil, "2026-01-01", true},
	} {
		t.Run(name, func(t *testing.T) {
			here := node("n1", "here")
			here.Labels["rack"] = "a"
			plain := node("plain", "")
			plain.Labels = nil
			r := newRig(t, tc.delays, here, plain, tc.pv, claim("v"))
			began := r.clock
			for _, after := range []time.Duration{0, 59 * time.Second, time.Minute, 2 * time.Minute, 9 * time.Minute, 10 * time.Minute, 24 * time.Hour} {
				r.clock = began.Add(after)
				r.settle()
				if want, asked := tc.at[after]; asked && r.has("v") != want {
					t.Errorf("after %s: there is %v, want %v", after, r.has("v"), want)
				}
				if want, asked := tc.claimAt[after]; asked && r.hasClaim("v") != want {
					t.Errorf("after %s: its claim is there is %v, want %v", after, r.hasClaim("v"), want)
				}
			}
			said := r.said()
			if !strings.Contains(said, tc.said) || (tc.said == "") != (said == "") {
				t.Errorf("said %q, want %q", said, tc.said)
			}
			if strings.Count(said, "Warning NodeGone") > 1 {
				t.Errorf("said more than once: %s", said)
			}
			if r.has("v") {
				pv, _ := r.api.CoreV1().PersistentVolumes().Get(t.Context(), "v", metav1.GetOptions{})
				if reported := pv.Status.Reason == reasonGone && pv.Annotations[annGoneSince] == "2026-01-01T00:00:00Z"; reported != tc.reported {
					t.Errorf("status %+v, annotations %v", pv.Status, pv.Annotations)
				}
			}
		})
	}
}

func rack(pv *v1.PersistentVolume) {
	terms := &pv.Spec.NodeAffinity.Required.NodeSelectorTerms
	*terms = append(*terms, v1.NodeSelectorTerm{MatchExpressions: []v1.NodeSelectorRequirement{{Key: "rack", Operator: v1.NodeSelectorOpIn, Values: []string{"a"}}}})
}

// A node that goes and comes back: its volume is reported and taken back, and the wait begins anew the next time.
func TestANodeThatComesBack(t *testing.T) {
	r := newRig(t, DefaultDelays(), node("n", "n"), volume("v", "n", v1.VolumeReleased))
	r.settle()
	if err := r.api.CoreV1().Nodes().Delete(t.Context(), "n", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for len(must(r.nodes.List(everything))) > 0 {
		time.Sleep(time.Millisecond)
	}
	if next := r.settle(); next != 10*time.Minute {
		t.Errorf("next after %s", next)
	}
	if got := r.gauge("berth_discovery_volumes_without_node", "Released"); got != 1 {
		t.Errorf("metric %v", got)
	}
	r.clock = r.clock.Add(9 * time.Minute)
	r.again(DefaultDelays()) // a death does not begin the wait anew
	if next := r.settle(); next != time.Minute {
		t.Errorf("next after %s", next)
	}
	if _, err := r.api.CoreV1().Nodes().Create(t.Context(), node("n", "n"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.clock = r.clock.Add(2 * time.Minute) // its time has come, and the informer may not know of the node yet
	r.pass(t.Context())
	if !r.has("v") {
		t.Fatal("deleted although its node is back")
	}
	r.settle()
	pv, err := r.api.CoreV1().PersistentVolumes().Get(t.Context(), "v", metav1.GetOptions{})
	if err != nil || pv.Annotations[annGoneSince] != "" || pv.Status.Reason != "" || pv.Status.Message != "" {
		t.Errorf("%v %+v %v", pv.Annotations, pv.Status, err)
	}
	if said := r.said(); !strings.Contains(said, "Normal NodeBack its node n is back") {
		t.Errorf("said %s", said)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Another claim of the name, and one that was bound to another volume since, are not deleted; nor is a volume that was bound meanwhile.
func TestOnlyTheVeryObjectIsDeleted(t *testing.T) {
	named := DefaultDelays()
	named.Classes, named.Claim = []string{"fast"}, 0
	for name, change := range map[string]func(*v1.PersistentVolumeClaim){
		"a new claim of the name": func(c *v1.PersistentVolumeClaim) { c.UID = "another" },
		"bound to another volume": func(c *v1.PersistentVolumeClaim) { c.Spec.VolumeName = "w" },
		"it is being deleted": func(c *v1.PersistentVolumeClaim) {
			c.DeletionTimestamp, c.Finalizers = &metav1.Time{Time: time.Now()}, []string{"x/y"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := claim("v")
			change(c)
			r := newRig(t, named, volume("v", "lost", v1.VolumeBound), c)
			r.settle()
			for _, a := range r.api.Actions() {
				if a.GetVerb() == "delete" {
					t.Errorf("%v", a)
				}
			}
		})
	}
	t.Run("a volume that was bound since", func(t *testing.T) {
		r := newRig(t, DefaultDelays(), volume("v", "lost", v1.VolumeAvailable))
		stale := must(r.volumes.Get("v"))
		bound := volume("v", "lost", v1.VolumeBound)
		if _, err := r.api.CoreV1().PersistentVolumes().UpdateStatus(t.Context(), bound, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := r.deleteVolume(t.Context(), stale); err != nil || !r.has("v") {
			t.Errorf("deleted is %v, %v", !r.has("v"), err)
		}
	})
}

// Each write fails once, and the process dies at it: whoever comes next ends where an undisturbed one does.
func TestEveryWriteFailsOnce(t *testing.T) {
	named := DefaultDelays()
	named.Classes, named.Claim, named.Volume = []string{"fast"}, 0, 0
	for nth := range 6 {
		t.Run(fmt.Sprintf("write %d", nth), func(t *testing.T) {
			r := newRig(t, named, volume("a", "lost", v1.VolumeAvailable), volume("b", "lost", v1.VolumeBound), volume("r", "lost", v1.VolumeReleased), claim("b"))
			writes := 0
			dying, die := context.WithCancel(t.Context())
			fail := func(a k8stesting.Action) (bool, runtime.Object, error) {
				if writes++; writes == nth+1 {
					die()
					return true, nil, errors.New("the connection was lost")
				}
				return false, nil, nil
			}
			r.api.PrependReactor("patch", "*", fail)
			r.api.PrependReactor("delete", "*", fail)
			r.pass(dying)
			r.again(named)
			r.settle()
			if r.has("a") || r.has("r") || !r.has("b") || r.hasClaim("b") {
				t.Errorf("a %v, r %v, b %v, its claim %v", r.has("a"), r.has("r"), r.has("b"), r.hasClaim("b"))
			}
		})
	}
}

// The running controller hears of a node's deletion and acts without a timer.
func TestRunHearsOfTheNode(t *testing.T) {
	d := DefaultDelays()
	d.Interval = time.Hour
	r := newRig(t, d, node("n", "n"), volume("v", "n", v1.VolumeAvailable))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Controller.Run(ctx) }()
	if err := r.api.CoreV1().Nodes().Delete(ctx, "n", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); r.has("v"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the volume is still there")
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestFlags(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"none":              {nil, ""},
		"the original's":    {[]string{"--storageclass-names=a,b", "--pvc-deletion-delay=2m", "--stale-pv-discovery-interval=1m", "--stale-pv-deletion-delay=0"}, ""},
		"a time below zero": {[]string{"--pvc-deletion-delay=-1s"}, "--pvc-deletion-delay"},
		"a busy loop":       {[]string{"--stale-pv-discovery-interval=0"}, "--stale-pv-discovery-interval"},
		"a volume's":        {[]string{"--stale-pv-deletion-delay=-1s"}, "--stale-pv-deletion-delay"},
		"a name":            {[]string{"--storageclass-names=a,"}, "--storageclass-names"},
	} {
		t.Run(name, func(t *testing.T) {
			d := DefaultDelays()
			f := pflag.NewFlagSet("", pflag.ContinueOnError)
			d.AddFlags(f)
			if err := f.Parse(tc.args); err != nil {
				t.Fatal(err)
			}
			err := d.Validate()
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}
