package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	kubetesting "k8s.io/client-go/testing"
)

// rig is a cluster with one FlexVolume volume and its claim, and a PV controller that binds at once.
type rig struct {
	*Migration
	t    *testing.T
	fake *fake.Clientset
	out  bytes.Buffer
}

func newRig(t *testing.T, more ...runtime.Object) *rig {
	t.Helper()
	r := &rig{t: t}
	r.fake = fake.NewClientset(append([]runtime.Object{
		flexVolume(), boundClaim(),
		&v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system", UID: "here"}},
		&storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: CSIBlock}},
		csiNode("n"), node("n"),
	}, more...)...)
	r.fake.PrependReactor("create", "persistentvolumes", func(a kubetesting.Action) (bool, runtime.Object, error) {
		pv := a.(kubetesting.CreateAction).GetObject().(*v1.PersistentVolume).DeepCopy()
		pv.Status.Phase, pv.UID = v1.VolumeBound, "made-anew"
		return true, pv, r.fake.Tracker().Add(pv)
	})
	r.Migration = &Migration{Client: r.fake, BlockDrivers: []string{FlexBlock}, UndoDir: t.TempDir(), Again: func(file string) string { return "berth --undo " + file }, Within: 5 * time.Second, Out: &r.out}
	return r
}

func csiNode(name string) *storagev1.CSINode {
	return &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{
		{Name: CSIBlock, NodeID: name, TopologyKeys: []string{"topology.block.csi.berth.io/node"}}}}}
}

func node(name string) *v1.Node {
	return &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"topology.block.csi.berth.io/node": name}}}
}

func (r *rig) now() *v1.PersistentVolume {
	r.t.Helper()
	pv, err := r.fake.CoreV1().PersistentVolumes().Get(r.t.Context(), "pv", metav1.GetOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return pv
}

func (r *rig) wantFlex() {
	r.t.Helper()
	if pv := r.now(); pv.Spec.FlexVolume == nil || pv.Spec.PersistentVolumeReclaimPolicy != v1.PersistentVolumeReclaimDelete {
		r.t.Errorf("volume %+v, want it as it was", pv.Spec)
	}
}

func (r *rig) migrate(ctx context.Context) error { return r.Volumes(ctx, []string{"pv"}, nil) }

func user(name string, phase v1.PodPhase, volume v1.VolumeSource) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: v1.PodSpec{Volumes: []v1.Volume{{Name: "v", VolumeSource: volume}}}, Status: v1.PodStatus{Phase: phase}}
}

func ofClaim(name string) v1.VolumeSource {
	return v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: name}}
}

func TestWhatCountsAsUse(t *testing.T) {
	pv := "pv"
	withStatus := func(s v1.NodeStatus) *v1.Node {
		n := node("other")
		n.Status = s
		return n
	}
	for name, one := range map[string]struct {
		object runtime.Object
		want   string
	}{
		"a pod that waits":    {user("p", v1.PodPending, ofClaim("data")), "pod p"},
		"a pod that runs":     {user("p", v1.PodRunning, ofClaim("data")), "pod p"},
		"a pod that has done": {user("p", v1.PodSucceeded, ofClaim("data")), ""},
		"another claim's pod": {user("p", v1.PodRunning, ofClaim("other")), ""},
		"an attachment": {&storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: "a"},
			Spec: storagev1.VolumeAttachmentSpec{NodeName: "n", Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &pv}}}, "VolumeAttachment a"},
		"a mount on a node":         {withStatus(v1.NodeStatus{VolumesInUse: []v1.UniqueVolumeName{"berth/block/pv"}}), "volumesInUse"},
		"a mount by the id":         {withStatus(v1.NodeStatus{VolumesInUse: []v1.UniqueVolumeName{"berth/block/vol-1"}}), "volumesInUse"},
		"an attachment to a node":   {withStatus(v1.NodeStatus{VolumesAttached: []v1.AttachedVolume{{Name: "berth/block/pv"}}}), "volumesAttached"},
		"another driver's volume":   {withStatus(v1.NodeStatus{VolumesInUse: []v1.UniqueVolumeName{"acme/block/pv"}}), ""},
		"a pod's ephemeral of name": {user("dat", v1.PodRunning, v1.VolumeSource{Ephemeral: &v1.EphemeralVolumeSource{}}), ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, one.object)
			err := r.migrate(t.Context())
			wantRefusal(t, err, one.want)
			if one.want != "" {
				r.wantFlex()
			} else if r.now().Spec.CSI == nil {
				t.Error("not migrated")
			}
		})
	}
	if !usesClaim(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: v1.PodSpec{Volumes: []v1.Volume{{Name: "scratch", VolumeSource: v1.VolumeSource{Ephemeral: &v1.EphemeralVolumeSource{}}}}}}, "p-scratch") {
		t.Error("a generic ephemeral volume is not seen")
	}
}

// A pod that comes between two looks at the volume keeps it as it is, also when it comes after the object has gone.
func TestAPodThatComesMeanwhile(t *testing.T) {
	for name, verb := range map[string]string{"after the policy was changed": "patch", "after the object was removed": "delete"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			came := false
			r.fake.PrependReactor(verb, "persistentvolumes", func(kubetesting.Action) (bool, runtime.Object, error) {
				if !came {
					came = true
					if err := r.fake.Tracker().Add(user("late", v1.PodRunning, ofClaim("data"))); err != nil {
						t.Error(err)
					}
				}
				return false, nil, nil
			})
			wantRefusal(t, r.migrate(t.Context()), "pod late")
			r.wantFlex()
			if err := r.fake.CoreV1().Pods("ns").Delete(t.Context(), "late", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			if err := r.migrate(t.Context()); err != nil {
				t.Fatalf("the next run: %v", err)
			}
			if pv := r.now(); pv.Spec.CSI == nil || pv.Spec.PersistentVolumeReclaimPolicy != v1.PersistentVolumeReclaimDelete {
				t.Errorf("volume %+v", pv.Spec)
			}
		})
	}
}

// Every write of a run fails once, at each place in turn: the API was away. The next run completes it.
func TestEveryWriteFailsOnce(t *testing.T) {
	for at := 1; ; at++ {
		r := newRig(t)
		writes := 0
		r.fake.PrependReactor("*", "*", func(a kubetesting.Action) (bool, runtime.Object, error) {
			switch a.GetVerb() {
			case "create", "patch", "delete", "update":
				if writes++; writes == at {
					return true, nil, errors.New("the API was away")
				}
			}
			return false, nil, nil
		})
		first := r.migrate(t.Context())
		if writes < at {
			if at < 6 {
				t.Errorf("a run makes only %d writes", writes)
			}
			return
		}
		if err := r.migrate(t.Context()); err != nil {
			t.Errorf("write %d failed with %v, and the next run: %v", at, first, err)
			continue
		}
		pv := r.now()
		if pv.Spec.CSI == nil || pv.Spec.PersistentVolumeReclaimPolicy != v1.PersistentVolumeReclaimDelete || pv.Spec.ClaimRef.UID != "claim-1" {
			t.Errorf("write %d failed: volume %+v", at, pv.Spec)
		}
	}
}

// While the object is away its claim is deleted: nobody's volume is made for nobody.
func TestTheClaimGoesWhileTheObjectIsAway(t *testing.T) {
	r := newRig(t)
	r.fake.PrependReactor("delete", "persistentvolumes", func(kubetesting.Action) (bool, runtime.Object, error) {
		err := r.fake.Tracker().Delete(v1.SchemeGroupVersion.WithResource("persistentvolumeclaims"), "ns", "data")
		return false, nil, err
	})
	wantRefusal(t, r.migrate(t.Context()), "claim ns/data is gone")
	wantRefusal(t, r.migrate(t.Context()), "claim ns/data is gone")
	if list, err := r.fake.CoreV1().PersistentVolumes().List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) > 0 {
		t.Errorf("%d volumes, %v", len(list.Items), err)
	}
	if files, err := filepath.Glob(filepath.Join(r.UndoDir, "*.json")); err != nil || len(files) != 1 {
		t.Errorf("the only copy of the object: %q, %v", files, err)
	}
}

func TestWhereItRuns(t *testing.T) {
	t.Run("on two nodes", func(t *testing.T) {
		r := newRig(t, csiNode("m"), node("m"))
		wantRefusal(t, r.migrate(t.Context()), "--node")
		r.Node = "m"
		if err := r.migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := r.now().Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0]; got != "m" {
			t.Errorf("on node %s", got)
		}
	})
	t.Run("without the driver", func(t *testing.T) {
		r := newRig(t)
		if err := r.fake.StorageV1().CSIDrivers().Delete(t.Context(), CSIBlock, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		wantRefusal(t, r.migrate(t.Context()), "not installed")
		r.wantFlex()
	})
	t.Run("on another node than asked for", func(t *testing.T) {
		r := newRig(t)
		r.Node = "absent"
		wantRefusal(t, r.migrate(t.Context()), "does not run on node absent")
	})
}

func TestVolumesByLabel(t *testing.T) {
	r := newRig(t)
	selector, err := labels.Parse("app=db")
	if err != nil {
		t.Fatal(err)
	}
	// One that an earlier run was killed with is away, and still found.
	r.fake.PrependReactor("create", "persistentvolumes", func(kubetesting.Action) (bool, runtime.Object, error) {
		return true, nil, errors.New("killed")
	})
	if err := r.Volumes(t.Context(), nil, selector); err == nil {
		t.Fatal("not killed")
	}
	r.fake.ReactionChain = r.fake.ReactionChain[1:]
	if err := r.Volumes(t.Context(), nil, selector); err != nil {
		t.Fatal(err)
	}
	if r.now().Spec.CSI == nil {
		t.Error("not completed")
	}
	other, _ := labels.Parse("app=web")
	r.out.Reset()
	if err := r.Volumes(t.Context(), nil, other); err != nil || !strings.Contains(r.out.String(), "no FlexVolume volume") {
		t.Errorf("nothing selected: %q, %v", &r.out, err)
	}
}

// A claim that nobody binds is told with what to do, and the run can be completed later.
func TestTheClaimStaysLost(t *testing.T) {
	r := newRig(t)
	claim := boundClaim()
	claim.Status.Phase = v1.ClaimLost
	if err := r.fake.Tracker().Update(v1.SchemeGroupVersion.WithResource("persistentvolumeclaims"), claim, "ns"); err != nil {
		t.Fatal(err)
	}
	r.Within = 300 * time.Millisecond
	err := r.migrate(t.Context())
	if err == nil || !strings.Contains(err.Error(), "claim ns/data is not Bound again") || !strings.Contains(err.Error(), "--undo") {
		t.Errorf("%v", err)
	}
	if err := r.fake.Tracker().Update(v1.SchemeGroupVersion.WithResource("persistentvolumeclaims"), boundClaim(), "ns"); err != nil {
		t.Fatal(err)
	}
	if err := r.migrate(t.Context()); err != nil {
		t.Error(err)
	}
	if pv := r.now(); pv.Spec.PersistentVolumeReclaimPolicy != v1.PersistentVolumeReclaimDelete {
		t.Errorf("policy %s", pv.Spec.PersistentVolumeReclaimPolicy)
	}
}

// The way back: in each state that a run can have left.
func TestUndo(t *testing.T) {
	file := func(r *rig) string {
		t.Helper()
		files, err := filepath.Glob(filepath.Join(r.UndoDir, "*.json"))
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		return files[0]
	}
	t.Run("and forth, and back again", func(t *testing.T) {
		r := newRig(t)
		for range 2 {
			if err := r.migrate(t.Context()); err != nil {
				t.Fatal(err)
			}
			files, _ := filepath.Glob(filepath.Join(r.UndoDir, "*.json"))
			newest := files[len(files)-1]
			if err := r.Undo(t.Context(), newest); err != nil {
				t.Fatal(err)
			}
			r.wantFlex()
			pv := r.now() // as the API server would: another life, another UID
			pv.UID = "pv-2"
			if err := r.fake.Tracker().Update(v1.SchemeGroupVersion.WithResource("persistentvolumes"), pv, ""); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("of a volume that was deleted since", func(t *testing.T) {
		r := newRig(t)
		if err := r.migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.fake.CoreV1().PersistentVolumes().Delete(t.Context(), "pv", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		wantRefusal(t, r.Undo(t.Context(), file(r)), "deleted since")
	})
	t.Run("of a volume that is in use leaves the file as it was", func(t *testing.T) {
		r := newRig(t)
		if err := r.migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.fake.Tracker().Add(user("p", v1.PodRunning, ofClaim("data"))); err != nil {
			t.Fatal(err)
		}
		wantRefusal(t, r.Undo(t.Context(), file(r)), "pod p")
		if left, err := readRecord(file(r)); err != nil || left.State != migrated {
			t.Errorf("the file says %s, %v", left.State, err)
		}
		if err := r.migrate(t.Context()); err != nil {
			t.Errorf("it is migrated as before: %v", err)
		}
		if err := r.fake.CoreV1().PersistentVolumes().Delete(t.Context(), "pv", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		wantRefusal(t, r.Undo(t.Context(), file(r)), "deleted since")
	})
	t.Run("of a volume that is another one now", func(t *testing.T) {
		r := newRig(t)
		if err := r.migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		pv := r.now()
		pv.Spec.CSI.VolumeHandle = "vol-2"
		if err := r.fake.Tracker().Update(v1.SchemeGroupVersion.WithResource("persistentvolumes"), pv, ""); err != nil {
			t.Fatal(err)
		}
		wantRefusal(t, r.Undo(t.Context(), file(r)), "knows nothing of")
		if left, err := readRecord(file(r)); err != nil || left.State != migrated {
			t.Errorf("the file says %s, %v", left.State, err)
		}
	})
	t.Run("is killed before the reclaim policy is back", func(t *testing.T) {
		r := newRig(t)
		r.fake.PrependReactor("create", "persistentvolumes", func(kubetesting.Action) (bool, runtime.Object, error) {
			return true, nil, errors.New("killed")
		})
		if err := r.migrate(t.Context()); err == nil {
			t.Fatal("not killed")
		}
		r.fake.ReactionChain = r.fake.ReactionChain[1:]
		r.fake.PrependReactor("patch", "persistentvolumes", func(kubetesting.Action) (bool, runtime.Object, error) {
			return true, nil, errors.New("killed")
		})
		if err := r.Undo(t.Context(), file(r)); err == nil {
			t.Fatal("not killed")
		}
		r.fake.ReactionChain = r.fake.ReactionChain[1:]
		if pv := r.now(); pv.Spec.FlexVolume == nil || pv.Spec.PersistentVolumeReclaimPolicy != v1.PersistentVolumeReclaimRetain {
			t.Fatalf("volume %+v, want it half taken back", pv.Spec)
		}
		wantRefusal(t, r.migrate(t.Context()), "its undo has begun")
		if err := r.Undo(t.Context(), file(r)); err != nil {
			t.Fatal(err)
		}
		r.wantFlex()
	})
	t.Run("that was begun is not crossed by a migration", func(t *testing.T) {
		r := newRig(t)
		if err := r.migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.fake.PrependReactor("create", "persistentvolumes", func(kubetesting.Action) (bool, runtime.Object, error) {
			return true, nil, fmt.Errorf("killed")
		})
		if err := r.Undo(t.Context(), file(r)); err == nil {
			t.Fatal("not killed")
		}
		r.fake.ReactionChain = r.fake.ReactionChain[1:]
		wantRefusal(t, r.migrate(t.Context()), "its undo has begun: finish it with berth --undo "+r.UndoDir)
		if err := r.Undo(t.Context(), file(r)); err != nil {
			t.Fatal(err)
		}
		r.wantFlex()
	})
}

// once lets the next call of verb on PersistentVolumes fail, as if the run was killed there.
func (r *rig) once(verb string) {
	failed := false
	r.fake.PrependReactor(verb, "persistentvolumes", func(kubetesting.Action) (bool, runtime.Object, error) {
		if failed {
			return false, nil, nil
		}
		failed = true
		return true, nil, errors.New("killed")
	})
}

func (r *rig) change(change func(*v1.PersistentVolume)) {
	r.t.Helper()
	pv := r.now().DeepCopy()
	change(pv)
	if err := r.fake.Tracker().Update(v1.SchemeGroupVersion.WithResource("persistentvolumes"), pv, ""); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) undoFile() string {
	r.t.Helper()
	files, err := filepath.Glob(filepath.Join(r.UndoDir, "*.json"))
	if err != nil || len(files) != 1 {
		r.t.Fatal(files, err)
	}
	return files[0]
}

// What a user sets while a run is interrupted, or after it, holds: only a Retain that is ours is taken back.
func TestTheReclaimPolicyThatIsSetMeanwhileHolds(t *testing.T) {
	retain := func(pv *v1.PersistentVolume) {
		pv.Spec.PersistentVolumeReclaimPolicy = v1.PersistentVolumeReclaimRetain
	}
	want := func(r *rig, policy v1.PersistentVolumeReclaimPolicy) {
		t.Helper()
		pv := r.now()
		if pv.Spec.PersistentVolumeReclaimPolicy != policy {
			t.Errorf("policy %s, want %s", pv.Spec.PersistentVolumeReclaimPolicy, policy)
		}
		if v, ok := pv.Annotations["storage.berth.io/reclaim-policy"]; ok {
			t.Errorf("the mark %q is left", v)
		}
	}
	t.Run("killed before Retain was set", func(t *testing.T) {
		r := newRig(t)
		r.once("patch")
		if err := r.migrate(t.Context()); err == nil {
			t.Fatal("not killed")
		}
		r.change(retain)
		if err := r.migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		want(r, v1.PersistentVolumeReclaimRetain)
	})
	t.Run("killed after Retain was set", func(t *testing.T) {
		r := newRig(t)
		r.once("delete")
		if err := r.migrate(t.Context()); err == nil {
			t.Fatal("not killed")
		}
		if got := r.now().Spec.PersistentVolumeReclaimPolicy; got != v1.PersistentVolumeReclaimRetain {
			t.Fatalf("policy %s", got)
		}
		if err := r.migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		want(r, v1.PersistentVolumeReclaimDelete)
	})
	t.Run("migrated since", func(t *testing.T) {
		r := newRig(t)
		if err := r.migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		want(r, v1.PersistentVolumeReclaimDelete)
		r.change(func(pv *v1.PersistentVolume) {
			retain(pv)
			pv.Labels, pv.Annotations["note"], pv.Spec.MountOptions = map[string]string{"app": "web"}, "new", []string{"discard"}
		})
		if err := r.Undo(t.Context(), r.undoFile()); err != nil {
			t.Fatal(err)
		}
		want(r, v1.PersistentVolumeReclaimRetain)
		pv := r.now()
		if pv.Spec.FlexVolume == nil || pv.Labels["app"] != "web" || pv.Annotations["note"] != "new" || pv.Spec.MountOptions[0] != "discard" {
			t.Errorf("volume %v %+v, want what it had last", pv.ObjectMeta, pv.Spec)
		}
		if pv.Annotations[annProvisionedBy] != "" || pv.Annotations[AnnMigratedFrom] != "" || pv.Annotations[annApplied] != "{}" {
			t.Errorf("annotations %v, want those of a FlexVolume volume", pv.Annotations)
		}
	})
}

// Somebody else has deleted the object of a volume whose run is interrupted, with whatever policy it had: nobody says that the data is there.
func TestTheObjectIsDeletedBySomebodyElse(t *testing.T) {
	for name, undo := range map[string]bool{"while it is migrated": false, "while it is taken back": true} {
		for _, claimed := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, claimed %t", name, claimed), func(t *testing.T) {
				r := newRig(t)
				if !claimed {
					r.change(func(pv *v1.PersistentVolume) { pv.Spec.ClaimRef, pv.Status.Phase = nil, v1.VolumeAvailable })
				}
				run := func() error { return r.migrate(t.Context()) }
				if undo {
					if err := run(); err != nil {
						t.Fatal(err)
					}
					run = func() error { return r.Undo(t.Context(), r.undoFile()) }
				}
				r.once("patch")
				if err := run(); err == nil {
					t.Fatal("not killed")
				}
				if err := r.fake.CoreV1().PersistentVolumes().Delete(t.Context(), "pv", metav1.DeleteOptions{}); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					wantRefusal(t, run(), "deleted by somebody else")
					wantRefusal(t, r.Undo(t.Context(), r.undoFile()), "deleted by somebody else")
				}
				if list, err := r.fake.CoreV1().PersistentVolumes().List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) > 0 {
					t.Errorf("%d volumes, %v", len(list.Items), err)
				}
			})
		}
	}
}

// With the policy Delete the data goes with the claim from then on, which it never did: said beforehand.
func TestTheReclaimPolicyDeleteIsTold(t *testing.T) {
	const words = "its reclaim policy is Delete"
	for policy, told := range map[v1.PersistentVolumeReclaimPolicy]bool{v1.PersistentVolumeReclaimDelete: true, v1.PersistentVolumeReclaimRetain: false} {
		for _, dry := range []bool{true, false} {
			r := newRig(t)
			r.change(func(pv *v1.PersistentVolume) { pv.Spec.PersistentVolumeReclaimPolicy = policy })
			r.DryRun = dry
			if err := r.migrate(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := strings.Count(r.out.String(), words); got > 1 || told != (got == 1) {
				t.Errorf("%s, dry run %t: %s", policy, dry, &r.out)
			}
			r.out.Reset()
			if err := r.migrate(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !dry && strings.Contains(r.out.String(), words) {
				t.Errorf("told of a volume that is migrated already: %s", &r.out)
			}
		}
	}
}
