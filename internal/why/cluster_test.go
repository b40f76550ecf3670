package why

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	snapfake "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/fake"
	snapscheme "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/scheme"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"
)

// clusterNow is when the questions of testdata/cluster are asked: five minutes after the claim was made.
var clusterNow = time.Date(2026, 3, 1, 10, 5, 0, 0, time.UTC)

// clusterStory is a file of testdata/cluster: objects as a cluster has them, and in its first lines what is asked.
type clusterStory struct {
	name, ask, cause string
	objects          []runtime.Object
	snapshots        []runtime.Object
}

func (s *clusterStory) sources() Sources {
	//lint:ignore SA1019 NewClientset is not generated for snapshots
	return Sources{Client: fake.NewClientset(s.objects...), Snapshots: snapfake.NewSimpleClientset(s.snapshots...), Program: KubectlProgram, Now: clusterNow}
}

func (s *clusterStory) target(t *testing.T) Target {
	t.Helper()
	target, err := ParseTarget("shop", s.ask)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func clusterStories(t *testing.T) []clusterStory {
	t.Helper()
	files, err := filepath.Glob("testdata/cluster/*.yaml")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d stories: %v", len(files), err)
	}
	var stories []clusterStory
	for _, file := range files {
		if name := strings.TrimSuffix(filepath.Base(file), ".yaml"); !strings.HasPrefix(name, "_") {
			s := clusterStory{name: name}
			s.read(t, "_cluster.yaml")
			s.read(t, filepath.Base(file))
			stories = append(stories, s)
		}
	}
	return stories
}

// read adds a file's objects, and those of the files that it names with "# with:".
func (s *clusterStory) read(t *testing.T, file string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata/cluster", file))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		comment, ok := strings.CutPrefix(strings.TrimSpace(line), "# ")
		key, value, hasKey := strings.Cut(comment, ": ")
		value = strings.TrimSpace(value)
		switch {
		case !ok:
		case hasKey && key == "ask":
			s.ask = value
		case hasKey && key == "cause":
			s.cause = value
		case hasKey && key == "with":
			s.read(t, value)
		}
	}
	known := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, snapscheme.AddToScheme} {
		if err := add(known); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(known, serializer.EnableStrict).UniversalDeserializer()
	documents := utilyaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(content)))
	defer documents.Close()
	for {
		document := make([]byte, 1<<20)
		n, err := documents.Read(document)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		o, kind, err := decoder.Decode(document[:n], nil, nil)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if kind.Group == "snapshot.storage.k8s.io" {
			s.snapshots = append(s.snapshots, o)
		} else {
			s.objects = append(s.objects, o)
		}
	}
}

// TestInAnyCluster compares what a person reads with testdata/cluster/NAME.txt: without a journal, of a driver that is not ours.
func TestInAnyCluster(t *testing.T) {
	for _, s := range clusterStories(t) {
		t.Run(s.name, func(t *testing.T) {
			j, err := Explain(t.Context(), s.sources(), s.target(t))
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if err := j.WriteText(&b, TextOptions{Location: time.UTC}); err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join("cluster", s.name), b.Bytes())
			cause := ""
			for i := range j.Volumes {
				if p := j.Volumes[i].Problem; p != nil {
					cause = p.Cause
				}
			}
			if j.Problem != nil {
				cause = j.Problem.Cause
			}
			if cause != s.cause {
				t.Errorf("cause %q, want %q", cause, s.cause)
			}
			for _, own := range []string{"`berth ", "berth status", " berth exec", "berth up"} {
				if strings.Contains(b.String(), own) {
					t.Errorf("the answer names a command that the cluster does not have (%s):\n%s", own, b.String())
				}
			}
			if strings.Contains(strings.ReplaceAll(b.String(), KubectlProgram, ""), "berth why") {
				t.Errorf("the answer calls the plugin by another name:\n%s", b.String())
			}
		})
	}
}

// forbid lets the client read only some kinds, as a role does.
func forbid(client *fake.Clientset, kinds ...string) {
	client.PrependReactor("*", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		kind := a.GetResource().Resource
		if slices.Contains(kinds, kind) {
			return true, nil, apierrors.NewForbidden(schema.GroupResource{Group: a.GetResource().Group, Resource: kind}, "", errors.New("no role allows it"))
		}
		return false, nil, nil
	})
}

// beyondView are the kinds that the built-in role view does not allow.
var beyondView = []string{"persistentvolumes", "storageclasses", "csidrivers", "csinodes", "csistoragecapacities", "volumeattachments", "nodes", "leases"}

// TestOnlyWithTheViewRole: who has no more than the role view gets an answer that says what was left out, and never that what may not
// be read is not there.
func TestOnlyWithTheViewRole(t *testing.T) {
	for _, s := range clusterStories(t) {
		t.Run(s.name, func(t *testing.T) {
			client := fake.NewClientset(s.objects...)
			forbid(client, beyondView...)
			target, sources := s.target(t), s.sources()
			sources.Client = client
			j, err := Explain(t.Context(), sources, target)
			if target.Kind == PV {
				if err == nil || !strings.Contains(err.Error(), "you may not read persistentvolumes") {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if err := j.WriteText(&b, TextOptions{Location: time.UTC}); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(b.String(), "you may not read persistentvolumes") && !strings.Contains(b.String(), "you may not read storageclasses") && target.Kind != Snapshot {
				t.Errorf("does not say what was left out:\n%s", b.String())
			}
			if strings.Contains(b.String(), "leases") {
				t.Errorf("tells of leases, which no answer needs:\n%s", b.String())
			}
			told := j.Problem != nil && j.Problem.Message != ""
			for i := range j.Volumes {
				v := &j.Volumes[i]
				told = told || v.Problem != nil && v.Problem.Message != ""
				if v.PV != nil && v.PV.Missing {
					t.Errorf("says that volume %s is missing", v.PV.Name)
				}
			}
			if told { // an event that may be read says so
				return
			}
			for _, wrong := range []string{"does not exist", "There is no StorageClass", "to be created", "no class is the default", "is not registered", "registered on no node", "no such node", "has registered"} {
				if strings.Contains(b.String(), wrong) {
					t.Errorf("concludes %q from what may not be read:\n%s", wrong, b.String())
				}
			}
		})
	}
}

// TestWithoutAnyRights: what cannot be told is said to be forbidden, not to be missing.
func TestWithoutAnyRights(t *testing.T) {
	client := fake.NewClientset()
	forbid(client, append([]string{"pods", "persistentvolumeclaims", "events"}, beyondView...)...)
	for _, arg := range []string{"pvc/data", "pod/app", "pv/pvc-c1"} {
		target, _ := ParseTarget("shop", arg)
		_, err := Explain(t.Context(), Sources{Client: client, Program: KubectlProgram}, target)
		if err == nil || !strings.HasPrefix(err.Error(), "you may not read ") {
			t.Errorf("%s: %v", arg, err)
		}
	}
	if _, err := ExplainAll(t.Context(), Sources{Client: client, Program: KubectlProgram}, "shop", ""); !apierrors.IsForbidden(err) {
		t.Errorf("error %v", err)
	}
}

// TestTable: one line for each volume of the pods, whatever state it is in, and the claims that no pod uses.
func TestTable(t *testing.T) {
	var objects []runtime.Object
	for _, name := range []string{"attach-error", "running", "no-consumer", "local-node-gone"} {
		s := clusterStory{}
		if name == "attach-error" {
			s.read(t, "_cluster.yaml")
		}
		s.read(t, name+".yaml")
		for _, o := range s.objects {
			objects = append(objects, renamed(o, name))
		}
	}
	objects = slices.DeleteFunc(objects, func(o runtime.Object) bool { return o == nil })
	client := fake.NewClientset(objects...)
	s := Sources{Client: client, Program: KubectlProgram, Now: clusterNow}
	for name, c := range map[string]struct {
		namespace  string
		namespaces bool
		wide       bool
	}{"table": {namespace: "shop"}, "table-wide": {namespace: "", namespaces: true, wide: true}} {
		all, err := ExplainAll(t.Context(), s, c.namespace, "")
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := all.WriteTable(&b, c.namespaces, c.wide); err != nil {
			t.Fatal(err)
		}
		golden(t, filepath.Join("cluster", name), b.Bytes())
	}
	reads := map[string]int{}
	client.ClearActions()
	if _, err := ExplainAll(t.Context(), s, "", ""); err != nil {
		t.Fatal(err)
	}
	for _, a := range client.Actions() {
		reads[a.GetVerb()+" "+a.GetResource().Resource]++
	}
	for what, n := range reads {
		if n > 2 || strings.HasPrefix(what, "get ") { // pods and claims: those of the selector, and all
			t.Errorf("%s: %d times", what, n)
		}
	}
}

// renamed gives the objects of one story names of their own: data becomes data-NAME. Those that all stories share are nil.
func renamed(o runtime.Object, story string) runtime.Object {
	suffix := "-" + story
	switch o := o.(type) {
	case *v1.PersistentVolumeClaim:
		o.Name += suffix
		o.UID += "x"
		if o.Spec.VolumeName != "" {
			o.Spec.VolumeName += suffix
		}
	case *v1.PersistentVolume:
		o.Name += suffix
		o.Spec.ClaimRef.Name += suffix
		o.Spec.ClaimRef.UID += "x"
	case *v1.Pod:
		o.Name += suffix
		o.Spec.Volumes[0].PersistentVolumeClaim.ClaimName += suffix
	case *v1.Event:
		return nil
	case *storagev1.VolumeAttachment:
		o.Name += suffix
		*o.Spec.Source.PersistentVolumeName += suffix
	case *coordinationv1.Lease:
		return nil
	}
	return o
}

// TestWhyASetHasNoSuchPod: a StatefulSet makes its pods in turn.
func TestWhyASetHasNoSuchPod(t *testing.T) {
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}, Spec: appsv1.StatefulSetSpec{Replicas: ptr.To[int32](3),
		VolumeClaimTemplates: []v1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}}}
	parallel := set.DeepCopy()
	parallel.Name, parallel.Spec.PodManagementPolicy = "web", appsv1.ParallelPodManagement
	none := set.DeepCopy()
	none.Name, none.Spec.Replicas = "off", ptr.To[int32](0)
	first := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-0"}, Status: v1.PodStatus{Phase: v1.PodRunning, Conditions: []v1.PodCondition{{Type: v1.PodReady, Status: v1.ConditionTrue}}}}
	second := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db-1"}}
	webhook := &v1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "e"}, InvolvedObject: v1.ObjectReference{Kind: "StatefulSet", Name: "web"}, Type: v1.EventTypeWarning, Reason: "FailedCreate",
		Message: `create Pod web-1 in StatefulSet web failed error: admission webhook "policy.example.com" denied the request: images must be signed`}
	client := fake.NewClientset(&v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, set, parallel, none, first, second, webhook)
	for arg, want := range map[string]string{
		"pod/db-2":      "StatefulSet db starts its pods one after the other, and db-1 is not Ready: ask about pod/db-1",
		"pvc/data-db-2": "StatefulSet db starts its pods one after the other, and db-1 is not Ready: ask about pod/db-1",
		"pod/db-3":      "StatefulSet db has 3 replicas: its pods are db-0 to db-2",
		"pod/off-0":     "StatefulSet off has no replicas",
		"pod/web-1":     "images must be signed",
	} {
		target, _ := ParseTarget("shop", arg)
		_, err := Explain(t.Context(), Sources{Client: client, Program: KubectlProgram}, target)
		var unknown *ErrUnknown
		if !errors.As(err, &unknown) || !strings.Contains(unknown.Hint, want) {
			t.Errorf("%s: %v", arg, err)
		}
	}
	target, _ := ParseTarget("shop", "pod/web-2")
	if _, err := Explain(t.Context(), Sources{Client: client, Program: KubectlProgram}, target); err == nil || strings.Contains(err.Error(), "journal") {
		t.Errorf("a parallel set's pod: %v", err)
	}
}

// TestWrote: managed fields tell who wrote a field, and when; the youngest entry that has it counts.
func TestWrote(t *testing.T) {
	at := func(s int) *metav1.Time { return &metav1.Time{Time: clusterNow.Add(time.Duration(s) * time.Second)} }
	o := &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{ManagedFields: []metav1.ManagedFieldsEntry{
		{Manager: "kube-scheduler", Time: at(1), FieldsV1: metav1.NewFieldsV1(`{"f:metadata":{"f:annotations":{"f:a":{}}}}`)},
		{Manager: "kubectl-annotate", Time: at(2), FieldsV1: metav1.NewFieldsV1(`{"f:metadata":{"f:annotations":{"f:a":{},"f:b":{}}}}`)},
		{Manager: "broken", Time: at(3), FieldsV1: metav1.NewFieldsV1(`{"f:metadata":`)},
		{Manager: "without a time", FieldsV1: metav1.NewFieldsV1(`{"f:status":{"f:phase":{}}}`)},
		{Manager: "operator", Time: at(4), FieldsV1: metav1.NewFieldsV1(`{"f:metadata":{"f:finalizers":{".":{},"v:\"x.io/keep\"":{}}}}`)},
	}}}
	if w := annotated(o, "a"); w.by != "kubectl-annotate" || !w.at.Equal(at(2).Time) {
		t.Errorf("%+v", w)
	}
	if w := wrote(o, "f:status", "f:phase"); w != (write{}) {
		t.Errorf("%+v", w)
	}
	if w := held(o, "x.io/keep"); w.by != "operator" {
		t.Errorf("%+v", w)
	}
	if keeper, _ := keeperOf(o, "x.io/keep"); keeper != "operator, which put it there" {
		t.Error(keeper)
	}
}

// FuzzHasField: managed fields are whatever the API has; a path is found only where objects lead to it.
func FuzzHasField(f *testing.F) {
	f.Add(`{"f:status":{"f:phase":{}}}`, "f:status", "f:phase")
	f.Add(`{"f:metadata":{"f:finalizers":{"v:\"a\"":{}}}}`, "f:metadata", "f:finalizers")
	f.Add(`[1]`, "", "")
	f.Fuzz(func(t *testing.T, raw, a, b string) {
		if hasField([]byte(raw), []string{a, b}) && !hasField([]byte(raw), []string{a}) {
			t.Errorf("%q has %s/%s and not %s", raw, a, b, a)
		}
	})
}
