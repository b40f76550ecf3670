package claim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"berth.io/berth/internal/plugin"
)

// api is the fake clientset made to behave like the API server where this room depends on it: resource versions that
// count up, conflicts, UIDs as preconditions, status as a subresource, finalizers that hold a deletion.
type api struct {
	*fake.Clientset
	mu      sync.Mutex
	version int
	writes  []string
	// budget is how many more writes succeed before the process "dies"; negative: no end.
	budget int
	// refuse, when set, may answer a write with an error.
	refuse func(write string) error
}

var errDied = errors.New("the process has died")

func newAPI(t *testing.T, objects ...runtime.Object) *api {
	t.Helper()
	a := &api{Clientset: fake.NewClientset(), budget: -1}
	a.PrependReactor("*", "*", a.react)
	for _, o := range objects {
		a.add(t, o)
	}
	a.writes = nil
	return a
}

// A fake watch panics when its reader is this many events late; 100 are too few for a test that floods it.
func init() { watch.DefaultChanSize = 1 << 16 }

// add creates or replaces an object as a user would.
func (a *api) add(t *testing.T, o runtime.Object) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	m, err := meta.Accessor(o)
	if err != nil {
		t.Fatal(err)
	}
	a.stamp(m)
	if err := a.Tracker().Add(o); err != nil {
		t.Fatal(err)
	}
}

func (a *api) stamp(m metav1.Object) {
	a.version++
	m.SetResourceVersion(strconv.Itoa(a.version))
	if m.GetUID() == "" {
		m.SetUID(types.UID(fmt.Sprintf("uid-%d", a.version)))
	}
}

func (a *api) react(action clienttesting.Action) (bool, runtime.Object, error) {
	verb, gvr, ns := action.GetVerb(), action.GetResource(), action.GetNamespace()
	if verb != "create" && verb != "update" && verb != "patch" && verb != "delete" {
		return false, nil, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	write := verb + " " + gvr.Resource
	if s := action.GetSubresource(); s != "" {
		write += "/" + s
	}
	if a.budget == 0 {
		return true, nil, errDied
	}
	if a.refuse != nil {
		if err := a.refuse(write); err != nil {
			return true, nil, err
		}
	}
	out, err := a.write(action)
	if err == nil {
		a.writes = append(a.writes, write)
		a.budget--
	}
	_ = ns
	return true, out, err
}

func (a *api) write(action clienttesting.Action) (runtime.Object, error) {
	gvr, ns := action.GetResource(), action.GetNamespace()
	switch action := action.(type) {
	case clienttesting.DeleteAction:
		old, err := a.Tracker().Get(gvr, ns, action.GetName())
		if err != nil {
			return nil, err
		}
		return nil, a.delete(action, old.DeepCopyObject())
	case clienttesting.PatchAction:
		old, err := a.Tracker().Get(gvr, ns, action.GetName())
		if err != nil {
			return nil, err
		}
		now, err := a.patched(old, action)
		if err != nil {
			return nil, err
		}
		m, _ := meta.Accessor(now)
		a.stamp(m)
		if err := a.Tracker().Update(gvr, now, ns); err != nil {
			return nil, err
		}
		if m.GetDeletionTimestamp() != nil && len(m.GetFinalizers()) == 0 {
			return now, a.Tracker().Delete(gvr, ns, action.GetName())
		}
		return now.DeepCopyObject(), nil
	case clienttesting.CreateAction: // also an UpdateAction
		o := action.GetObject().DeepCopyObject()
		m, err := meta.Accessor(o)
		if err != nil {
			return nil, err
		}
		if ns != "" {
			m.SetNamespace(ns)
		}
		a.stamp(m)
		if action.GetVerb() == "update" {
			return o, a.Tracker().Update(gvr, o, ns)
		}
		if c, ok := o.(*v1.PersistentVolumeClaim); ok {
			c.Status.Phase = v1.ClaimPending
		}
		return o.DeepCopyObject(), a.Tracker().Create(gvr, o, ns)
	}
	return nil, fmt.Errorf("unexpected %T", action)
}

func (a *api) delete(action clienttesting.DeleteAction, o runtime.Object) error {
	m, _ := meta.Accessor(o)
	a.stamp(m)
	if len(m.GetFinalizers()) == 0 {
		return a.Tracker().Delete(action.GetResource(), action.GetNamespace(), action.GetName())
	}
	now := metav1.Now()
	m.SetDeletionTimestamp(&now)
	return a.Tracker().Update(action.GetResource(), o, action.GetNamespace())
}

func (a *api) patched(old runtime.Object, action clienttesting.PatchAction) (runtime.Object, error) {
	var p map[string]any
	if err := json.Unmarshal(action.GetPatch(), &p); err != nil {
		return nil, err
	}
	m, _ := meta.Accessor(old)
	if md, ok := p["metadata"].(map[string]any); ok {
		if uid, ok := md["uid"]; ok && uid != string(m.GetUID()) {
			return nil, apierrors.NewConflict(action.GetResource().GroupResource(), action.GetName(), errors.New("uid differs"))
		}
		if rv, ok := md["resourceVersion"]; ok && rv != m.GetResourceVersion() {
			return nil, apierrors.NewConflict(action.GetResource().GroupResource(), action.GetName(), errors.New("the object has been modified"))
		}
	}
	before, err := json.Marshal(old)
	if err != nil {
		return nil, err
	}
	var after []byte
	if action.GetPatchType() == types.StrategicMergePatchType {
		after, err = strategicpatch.StrategicMergePatch(before, action.GetPatch(), old)
	} else {
		var doc map[string]any
		if err := json.Unmarshal(before, &doc); err != nil {
			return nil, err
		}
		merge(doc, p)
		after, err = json.Marshal(doc)
	}
	if err != nil {
		return nil, err
	}
	now := old.DeepCopyObject()
	switch now.(type) {
	case *v1.PersistentVolume:
		now = &v1.PersistentVolume{}
	case *v1.PersistentVolumeClaim:
		now = &v1.PersistentVolumeClaim{}
	case *storagev1.VolumeAttributesClass:
		now = &storagev1.VolumeAttributesClass{}
	}
	if err := json.Unmarshal(after, now); err != nil {
		return nil, err
	}
	keepOtherHalf(old, now, action.GetSubresource() == "status")
	return now, nil
}

// keepOtherHalf: a write to status changes nothing else, any other does not change status.
func keepOtherHalf(old, now runtime.Object, status bool) {
	switch old := old.(type) {
	case *v1.PersistentVolume:
		n := now.(*v1.PersistentVolume)
		if !status {
			n.Status = old.Status
		} else {
			n.Spec = old.Spec
		}
	case *v1.PersistentVolumeClaim:
		n := now.(*v1.PersistentVolumeClaim)
		if !status {
			n.Status = old.Status
		} else {
			n.Spec = old.Spec
		}
	}
}

// merge applies a JSON merge patch (RFC 7386).
func merge(doc, patch map[string]any) {
	for k, v := range patch {
		switch v := v.(type) {
		case nil:
			delete(doc, k)
		case map[string]any:
			sub, ok := doc[k].(map[string]any)
			if !ok {
				sub = map[string]any{}
				doc[k] = sub
			}
			merge(sub, v)
		default:
			doc[k] = v
		}
	}
}

func (a *api) claim(t *testing.T, name string) *v1.PersistentVolumeClaim {
	t.Helper()
	c, err := a.CoreV1().PersistentVolumeClaims("ns").Get(t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (a *api) volume(t *testing.T, name string) *v1.PersistentVolume {
	t.Helper()
	pv, err := a.CoreV1().PersistentVolumes().Get(t.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return pv
}

func (a *api) written() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.writes...)
}

// room is a running controller.
type room struct {
	*Controller
	events *record.FakeRecorder
	stop   func()
}

func run(t *testing.T, a *api, plugins ...plugin.Plugin) *room {
	t.Helper()
	inf := informers.NewSharedInformerFactory(a, 0)
	rec := record.NewFakeRecorder(10000)
	c, err := New(Options{Client: a, Informers: inf, Events: rec, Plugins: plugin.NewRegistry(plugins...)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	inf.Start(ctx.Done())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := c.Run(ctx); err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	}()
	r := &room{Controller: c, events: rec}
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			<-done
			inf.Shutdown()
		})
	}
	t.Cleanup(r.stop)
	if !waitUntil(30*time.Second, func() bool { c.ops.mu.Lock(); defer c.ops.mu.Unlock(); return c.ops.ctx != nil }) {
		t.Fatal("the controller has not started")
	}
	return r
}

// said drains the events and says whether one begins with prefix ("Warning ClaimLost").
func (r *room) said(t *testing.T, prefix string) {
	t.Helper()
	var all []string
	deadline := time.After(30 * time.Second)
	for {
		select {
		case e := <-r.events.Events:
			if strings.HasPrefix(e, prefix) {
				return
			}
			all = append(all, e)
		case <-deadline:
			t.Fatalf("no event %q; heard %q", prefix, all)
		}
	}
}

func waitUntil(limit time.Duration, ok func() bool) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return true
		}
	}
	return false
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if !waitUntil(30*time.Second, ok) {
		t.Fatalf("never: %s", what)
	}
}

// quiet waits until nothing has been written for a while.
func (a *api) quiet() {
	last, since := -1, time.Now()
	waitUntil(10*time.Second, func() bool {
		if n := len(a.written()); n != last {
			last, since = n, time.Now()
		}
		return time.Since(since) > 60*time.Millisecond
	})
}
