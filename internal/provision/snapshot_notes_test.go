package provision

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	snapfake "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/fake"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"
)

// numberWrites gives what is created and patched resourceVersions, which the libraries read as numbers; the fake makes none.
func numberWrites(snaps *snapfake.Clientset) {
	var last atomic.Int64
	number := func(o runtime.Object) {
		if m, err := meta.Accessor(o); err == nil {
			m.SetResourceVersion(strconv.FormatInt(last.Add(1), 10))
		}
	}
	snaps.PrependReactor("create", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		number(a.(clienttesting.CreateAction).GetObject())
		return false, nil, nil
	})
	snaps.PrependReactor("patch", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		done, o, err := clienttesting.ObjectReaction(snaps.Tracker())(a)
		if err != nil {
			return done, o, err
		}
		o = o.DeepCopyObject()
		number(o)
		return true, o, snaps.Tracker().Update(a.GetResource(), o, a.GetNamespace())
	})
}

// held is a watch whose events wait while the gate is closed.
type held struct {
	watch.Interface
	out chan watch.Event
}

func (h held) ResultChan() <-chan watch.Event { return h.out }

// holdContents makes the informer of contents lag from close on until open.
func holdContents(t *testing.T, snaps *snapfake.Clientset) (closeGate, openGate func()) {
	var gate sync.RWMutex
	snaps.PrependWatchReactor("volumesnapshotcontents", func(a clienttesting.Action) (bool, watch.Interface, error) {
		w, err := snaps.Tracker().Watch(a.GetResource(), a.GetNamespace())
		if err != nil {
			return true, nil, err
		}
		h := held{w, make(chan watch.Event)}
		go func() {
			defer close(h.out)
			for e := range w.ResultChan() {
				gate.RLock()
				//lint:ignore SA2001 it only waits
				gate.RUnlock()
				select {
				case h.out <- e:
				case <-t.Context().Done():
					return
				}
			}
		}()
		return true, h, nil
	})
	return gate.Lock, sync.OnceFunc(gate.Unlock)
}

// dying is a driver that goes away in its first CreateSnapshot, and comes back.
type dying struct {
	*snapshotting
	once sync.Once
	at   func()
}

func (d *dying) CreateSnapshot(ctx context.Context, q *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	died := false
	d.once.Do(func() { d.at(); died = true })
	if died {
		return nil, status.Error(codes.Unavailable, "the driver was killed")
	}
	return d.snapshotting.CreateSnapshot(ctx, q)
}

// A driver dies in the first CreateSnapshot, and the informer lags behind the report of that for longer than until the next try.
// The snapshot is asked for again all the same.
func TestSnapshotIsAskedForAgainWhileTheInformerLags(t *testing.T) {
	//lint:ignore SA1019 the snapshot clients come without apply configurations, and so without NewClientset
	snaps := snapfake.NewSimpleClientset()
	numberWrites(snaps)
	closeGate, openGate := holdContents(t, snaps)
	defer openGate()
	a := claim("a", "d", boundTo("d"))
	w, _ := withSnapshotsOf(t, snaps, snaps, definitionsOf(t), class("d"), a, volumeFor(a, "d"))
	d := &dying{snapshotting: &snapshotting{tiny: &tiny{name: "d", caps: data}}, at: closeGate}
	if err := w.m.AddDriver(t.Context(), d.serveAs(t, d)); err != nil {
		t.Fatal(err)
	}
	c := &snapv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Driver: "d", DeletionPolicy: snapv1.VolumeSnapshotContentDelete}
	if _, err := snaps.SnapshotV1().VolumeSnapshotClasses().Create(t.Context(), c, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s := snapshotOf("s", "a")
	s.Spec.VolumeSnapshotClassName = ptr.To("c")
	if _, err := snaps.SnapshotV1().VolumeSnapshots("ns").Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("the second CreateSnapshot", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return len(d.taken) == 1
	})
	openGate()
	w.eventually("the snapshot", func() bool {
		s, err := snaps.SnapshotV1().VolumeSnapshots("ns").Get(t.Context(), "s", metav1.GetOptions{})
		return err == nil && isReady(s)
	})
}
