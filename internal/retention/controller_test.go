package retention

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	snapfake "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/fake"
	snapfactory "github.com/kubernetes-csi/external-snapshotter/client/v8/informers/externalversions"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"

	api "berth.io/berth/api/v1alpha1"
)

// world is a controller over fake APIs, with a clock that the test sets.
type world struct {
	*testing.T
	c      *Controller
	snaps  *snapfake.Clientset
	api    *dynamicfake.FakeDynamicClient
	events *record.FakeRecorder

	mu  sync.Mutex
	now time.Time
}

func start(t *testing.T, now string, s *api.SnapshotSchedule, claims ...string) *world {
	t.Helper()
	o, err := runtime.DefaultUnstructuredConverter.ToUnstructured(s)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[schema.GroupVersionResource]string{api.SnapshotScheduleResource: "SnapshotScheduleList"}
	w := &world{T: t, now: at(now), snaps: fakeSnaps(), events: record.NewFakeRecorder(100),
		api: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds, &unstructured.Unstructured{Object: o})}
	var objects []runtime.Object
	for _, name := range claims {
		objects = append(objects, &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Status: v1.PersistentVolumeClaimStatus{Phase: v1.ClaimBound}})
	}
	core := fake.NewClientset(objects...)
	f := informers.NewSharedInformerFactory(core, 0)
	w.c, err = New(Options{Client: w.api, Informers: f, Snap: w.snaps, SnapInformers: snapfactory.NewSharedInformerFactory(w.snaps, 0),
		Events: w.events, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	w.c.now = w.clock
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	f.Start(ctx.Done())
	go func() { ended <- w.c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	// The fakes lose what happens between an informer's list and its watch.
	w.eventually("the watches", func() bool {
		return watches(&w.snaps.Fake) >= 2 && watches(&w.api.Fake) >= 1 && watches(&core.Fake) >= 1
	})
	return w
}

func fakeSnaps() *snapfake.Clientset {
	//lint:ignore SA1019 the snapshot clients come without apply configurations, and so without NewClientset
	return snapfake.NewSimpleClientset()
}

func watches(f *clienttesting.Fake) (n int) {
	for _, a := range f.Actions() {
		if a.GetVerb() == "watch" {
			n++
		}
	}
	return n
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

// set moves the clock and rings, as the kernel does.
func (w *world) set(now string) {
	w.mu.Lock()
	w.now = at(now)
	w.mu.Unlock()
	w.c.wake()
}

func (w *world) eventually(what string, fact func() bool) {
	w.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if fact() {
			return
		}
	}
	w.Fatalf("never: %s; there are %v", what, w.names())
}

func (w *world) list() []snapv1.VolumeSnapshot {
	l, err := w.snaps.SnapshotV1().VolumeSnapshots("ns").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		w.Fatal(err)
	}
	return l.Items
}

// names are claim@time, sorted.
func (w *world) names() []string {
	var names []string
	for _, s := range w.list() {
		t, _ := time.Parse(time.RFC3339, s.Annotations[api.AnnotationScheduledAt])
		names = append(names, fmt.Sprintf("%s@%s", *s.Spec.Source.PersistentVolumeClaimName, t.Format("15:04")))
	}
	slices.Sort(names)
	return names
}

func (w *world) have(names ...string) {
	w.Helper()
	w.eventually("exactly "+strings.Join(names, " "), func() bool { return slices.Equal(w.names(), names) })
}

// become sets the outcome of the snapshots that have none.
func (w *world) become(ready bool) {
	w.Helper()
	for _, s := range w.list() {
		if s.Status != nil {
			continue
		}
		s.Status = &snapv1.VolumeSnapshotStatus{ReadyToUse: &ready}
		if !ready {
			s.Status.Error = &snapv1.VolumeSnapshotError{Message: ptr.To("the backend is on fire")}
		}
		if _, err := w.snaps.SnapshotV1().VolumeSnapshots("ns").UpdateStatus(context.Background(), &s, metav1.UpdateOptions{}); err != nil {
			w.Fatal(err)
		}
	}
}

func (w *world) status() api.SnapshotScheduleStatus {
	u, err := w.api.Resource(api.SnapshotScheduleResource).Namespace("ns").Get(context.Background(), "hourly", metav1.GetOptions{})
	if err != nil {
		w.Fatal(err)
	}
	var s api.SnapshotSchedule
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &s); err != nil {
		w.Fatal(err)
	}
	return s.Status
}

// The times come one after the other: each makes a snapshot of each claim, and those beyond keep go once newer ones are ready.
func TestRunsAndKeeps(t *testing.T) {
	w := start(t, "2026-01-01T00:30:00Z", schedule(), "a", "b")
	w.eventually("its next time", func() bool {
		n := w.status().NextScheduleTime
		return n != nil && n.Equal(&metav1.Time{Time: at("2026-01-01T01:00:00Z")})
	})
	w.have()
	w.set("2026-01-01T01:00:00Z")
	w.have("a@01:00", "b@01:00")
	w.become(true)
	w.eventually("both counted as ready", func() bool { return w.status().Ready == 2 })
	w.set("2026-01-01T02:00:00Z")
	w.have("a@01:00", "a@02:00", "b@01:00", "b@02:00")
	w.become(true)
	w.eventually("four counted as ready", func() bool { return w.status().Ready == 4 })
	w.set("2026-01-01T03:00:00Z")
	w.have("a@01:00", "a@02:00", "a@03:00", "b@01:00", "b@02:00", "b@03:00")
	w.become(true)
	w.have("a@02:00", "a@03:00", "b@02:00", "b@03:00")
}

// The machine was off for three times of the schedule: one run makes up for them.
func TestOneRunMakesUpForMissedOnes(t *testing.T) {
	w := start(t, "2026-01-01T04:30:00Z", schedule(ranLast("2026-01-01T01:00:00Z")), "a")
	w.have("a@04:00")
	w.eventually("the status", func() bool {
		l := w.status().LastScheduleTime
		return l != nil && l.Equal(&metav1.Time{Time: at("2026-01-01T04:00:00Z")})
	})
	w.eventually("an event", func() bool {
		for len(w.events.Events) > 0 {
			if e := <-w.events.Events; strings.Contains(e, "TimesMissed") {
				return true
			}
		}
		return false
	})
}

// A run that was killed after its first snapshot is finished, and what it had made is not made again.
func TestKilledRunIsFinished(t *testing.T) {
	s := schedule(ranLast("2026-01-01T01:00:00Z"))
	w := &world{T: t, snaps: fakeSnaps()}
	c := &Controller{opts: Options{Snap: w.snaps}}
	for range 2 {
		if _, err := c.make(t.Context(), s, "a", at("2026-01-01T02:00:00Z")); err != nil {
			t.Fatal(err)
		}
	}
	if fresh, err := c.make(t.Context(), s, "b", at("2026-01-01T02:00:00Z")); err != nil || !fresh {
		t.Fatal(fresh, err)
	}
	if got := w.names(); !slices.Equal(got, []string{"a@02:00", "b@02:00"}) {
		t.Errorf("made %v", got)
	}
}

// Snapshots that fail are replaced one by one, and those that are good stay.
func TestFailedOnesDoNotPushOutGoodOnes(t *testing.T) {
	w := start(t, "2026-01-01T00:30:00Z", schedule(), "a")
	w.eventually("its next time", func() bool { return w.status().NextScheduleTime != nil })
	for i, now := range []string{"2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z"} {
		w.set(now)
		w.eventually("a snapshot", func() bool { return len(w.names()) == i+1 })
		w.become(true)
		w.eventually("it counted", func() bool { return w.status().Ready == int32(i+1) })
	}
	for _, hour := range []string{"03", "04", "05"} {
		w.set("2026-01-01T" + hour + ":00:00Z")
		w.have("a@01:00", "a@02:00", "a@"+hour+":00")
		w.become(false)
		w.eventually("the failure to be seen", func() bool {
			found, _ := w.c.snapshots.GetIndexer().ByIndex(bySchedule, "uid")
			for _, o := range found {
				if s := o.(*snapv1.VolumeSnapshot); s.Status == nil {
					return false
				}
			}
			return len(found) == 3
		})
	}
}

// Someone else's snapshot with the schedule's labels is not the schedule's to delete.
func TestLabelsAloneProveNothing(t *testing.T) {
	s := schedule()
	labels := map[string]string{api.LabelSchedule: "hourly", api.LabelScheduleUID: "uid"}
	mine := &snapv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "before-the-upgrade", Labels: labels, Annotations: map[string]string{api.AnnotationScheduledAt: "2020-01-01T00:00:00Z"}},
		Spec: snapv1.VolumeSnapshotSpec{Source: snapv1.VolumeSnapshotSource{PersistentVolumeClaimName: ptr.To("a")}}}
	if m, ok := madeOf(mine, s); ok {
		t.Errorf("taken for its own: %+v", m)
	}
	its := mine.DeepCopy()
	its.Name = nameOf("hourly", "uid", "a", at("2020-01-01T00:00:00Z"))
	if _, ok := madeOf(its, s); !ok {
		t.Error("its own is not known")
	}
}
