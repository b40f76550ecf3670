package provision

import (
	"context"
	"fmt"
	"strconv"
	"sync"

	"github.com/kubernetes-csi/external-attacher/v4/pkg/attacher"
	attctl "github.com/kubernetes-csi/external-attacher/v4/pkg/controller"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/client-go/util/workqueue"
	csitrans "k8s.io/csi-translation-lib"
	"k8s.io/klog/v2"

	"berth.io/berth/internal/trace"
)

// lanes are two external-attacher controllers for one driver: one works the VolumeAttachments that want an attach, the
// other those that are being deleted. A backend that takes minutes to detach fills its own lane only.
//
// An attachment changes lanes once, when it is deleted. gate sees to it that both never work on it at once.
type lanes struct {
	attach, detach *attctl.CSIAttachController
	gate           *gate
}

func (r *role) newLanes() *lanes {
	l := &lanes{gate: &gate{busy: map[string]bool{}}}
	m := r.m
	handler := func() attctl.Handler {
		if !r.publishes {
			return attctl.NewTrivialHandler(m.opts.Client)
		}
		timeout := m.opts.RPCTimeout
		return attctl.NewCSIHandler(m.opts.Client, r.driver.Name, attacher.NewAttacher(r.conn), nil,
			m.volumes, m.csiNodes, m.attachments, &timeout, r.publishesReadOnly, r.singleNodeMultiWriter, csitrans.New(), m.opts.DefaultFSType)
	}
	controller := func(deleted bool, keepVolume func(any) bool) *attctl.CSIAttachController {
		keep := func(o any) bool {
			va, ok := o.(*storagev1.VolumeAttachment)
			return ok && va.Spec.Attacher == r.driver.Name && (va.DeletionTimestamp != nil) == deleted
		}
		f := m.opts.Informers
		return attctl.NewCSIAttachController(klog.Background(), m.opts.Client, r.driver.Name, &lane{Handler: handler(), r: r, gate: l.gate, deleted: deleted},
			through(r.scope, f.Storage().V1().VolumeAttachments(), keep),
			through(r.scope, f.Core().V1().PersistentVolumes(), keepVolume), retries(), retries(), false, 0)
	}
	l.attach = controller(false, func(any) bool { return false })
	l.detach = controller(true, r.scope.ownVolume) // takes the attacher's finalizer off deleted volumes as well
	return l
}

func (l *lanes) run(ctx context.Context, workers int, wg *sync.WaitGroup) {
	wg.Go(func() { l.attach.Run(ctx, workers, wg) })
	wg.Go(func() { l.detach.Run(ctx, workers, wg) })
}

// lane is external-attacher's handler, held to one kind of work.
type lane struct {
	attctl.Handler
	r       *role
	gate    *gate
	deleted bool
	queue   workqueue.TypedRateLimitingInterface[string]
}

func (l *lane) Init(vaQueue, pvQueue workqueue.TypedRateLimitingInterface[string]) {
	l.queue = vaQueue
	l.gate.join(l.deleted, vaQueue)
	l.Handler.Init(vaQueue, pvQueue)
}

func (l *lane) SyncNewOrUpdatedVolumeAttachment(ctx context.Context, va *storagev1.VolumeAttachment) {
	if (va.DeletionTimestamp != nil) != l.deleted {
		// It was deleted while it stood in the attach lane's queue.
		l.queue.Forget(va.Name)
		l.gate.other(l.deleted).Add(va.Name)
		return
	}
	moved := strconv.Itoa(index(l.deleted)) + string(va.UID)
	if l.r.moved.is(moved) {
		return // the cache does not show yet what was just done; looked at again when it counts
	}
	if !l.gate.enter(va.Name, l.deleted) {
		return // the other lane puts it back when it is done
	}
	defer l.gate.leave(va.Name, l.deleted)
	todo := l.deleted || !va.Status.Attached
	if l.queue.NumRequeues(va.Name) == 0 && todo && l.r.publishes {
		l.record(va, trace.Began, "asking driver "+l.r.driver.Name)
	}
	defer func() {
		// A driver's rubbish that a library stumbles over costs this attachment, not the process.
		if crash := recover(); crash != nil {
			l.r.m.opts.Log.Error("attacher crashed", "driver", l.r.driver.Name, "attachment", va.Name, "crash", crash)
			l.record(va, trace.Failed, fmt.Sprintf("driver %s: its answer could not be used: %v", l.r.driver.Name, crash))
			l.queue.AddRateLimited(va.Name)
		}
	}()
	l.Handler.SyncNewOrUpdatedVolumeAttachment(ctx, va)
	if todo && l.queue.NumRequeues(va.Name) == 0 { // the handler puts back what failed
		l.r.moved.mark(moved, func() { l.queue.Add(va.Name) })
	}
}

func (l *lane) record(va *storagev1.VolumeAttachment, state trace.State, detail string) {
	e := trace.Entry{Step: trace.Attached, State: state, Detail: detail, Node: va.Spec.NodeName}
	if l.deleted {
		e.Step = trace.Detached
	}
	if name := va.Spec.Source.PersistentVolumeName; name != nil {
		e.Volume = *name
		if pv, err := l.r.m.volumes.Get(*name); err == nil {
			e.Claim = trace.ClaimOf(pv)
		}
	}
	l.r.m.opts.Trace.Record(e)
}

// gate lets one lane at a time work on an attachment; the one that is turned away gets it back afterwards.
type gate struct {
	mu     sync.Mutex
	queues [2]workqueue.TypedRateLimitingInterface[string]
	busy   map[string]bool // value: the other lane asked meanwhile
}

func index(deleted bool) int {
	if deleted {
		return 1
	}
	return 0
}

func (g *gate) join(deleted bool, q workqueue.TypedRateLimitingInterface[string]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.queues[index(deleted)] = q
}

func (g *gate) other(deleted bool) workqueue.TypedRateLimitingInterface[string] {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.queues[index(!deleted)]
}

func (g *gate) enter(name string, _ bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, taken := g.busy[name]; taken {
		g.busy[name] = true
		return false
	}
	g.busy[name] = false
	return true
}

func (g *gate) leave(name string, deleted bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.busy[name] {
		g.queues[index(!deleted)].Add(name)
	}
	delete(g.busy, name)
}
