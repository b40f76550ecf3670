package node

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"berth.io/berth/internal/node/holder"
)

// podWorkers handle pods at once; most of the time they wait for the API.
const podWorkers = 16

// pods carries each pod of this node through its life. Its queue holds UIDs: a pod that is deleted and made again under
// its name is another pod, with directories of its own.
type pods struct {
	opts    *Options
	node    *nodeObject
	metrics *metrics
	queue   workqueue.TypedRateLimitingInterface[types.UID]
	synced  <-chan struct{}

	mu    sync.Mutex
	known map[types.UID]*podState
}

// podState is what the agent knows of one pod. Its fields below are the worker's alone; the queue never gives one
// UID to two workers.
type podState struct {
	mu  sync.Mutex
	pod *v1.Pod // newest version seen or written
	// deleted from the API
	gone bool

	firstSeen   time.Time
	deletedSeen time.Time
	wasReady    bool    // Ready was written, or found at start
	told        bool    // what a holder does not do was said in an event
	set         *v1.Pod // as the mount room has it
	released    bool    // the mount room was told so
	lastWrite   time.Time
	lastWaiting string
	finished    bool // the final DELETE was accepted
}

func newPods(opts *Options, node *nodeObject, m *metrics) (*pods, error) {
	p := &pods{
		opts: opts, node: node, metrics: m,
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[types.UID](5*time.Millisecond, time.Minute)),
		known: map[types.UID]*podState{},
	}
	handle, err := opts.Informers.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { p.seen(obj.(*v1.Pod)) },
		UpdateFunc: func(_, obj any) { p.seen(obj.(*v1.Pod)) },
		DeleteFunc: func(obj any) {
			if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = last.Obj
			}
			if pod, ok := obj.(*v1.Pod); ok {
				p.lost(pod)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	p.synced = handle.HasSyncedChecker().Done()
	return p, nil
}

// seen notes a version of a pod. The object is read-only: it belongs to the informer.
func (p *pods) seen(pod *v1.Pod) {
	if pod.Spec.NodeName != p.opts.Node {
		return
	}
	p.mu.Lock()
	s := p.known[pod.UID]
	if s == nil {
		ready, _ := holder.Ready(pod)
		s = &podState{firstSeen: time.Now(), wasReady: ready}
		p.known[pod.UID] = s
	}
	p.mu.Unlock()
	if s.update(pod) {
		p.queue.Add(pod.UID)
	}
}

// update keeps the newer of two versions: our own writes come back through the informer later than their answers.
func (s *podState) update(pod *v1.Pod) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pod != nil && !newerVersion(pod.ResourceVersion, s.pod.ResourceVersion) {
		return false
	}
	s.pod = pod
	return true
}

// wrote keeps the answer of our own write, unless something newer was seen meanwhile. The informer brings the same
// version again, and nothing has to follow from it.
func (s *podState) wrote(pod *v1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !newerVersion(s.pod.ResourceVersion, pod.ResourceVersion) {
		s.pod = pod
	}
}

func (s *podState) current() (pod *v1.Pod, gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pod, s.gone
}

func (p *pods) lost(pod *v1.Pod) {
	p.mu.Lock()
	s := p.known[pod.UID]
	p.mu.Unlock()
	if s == nil {
		return
	}
	s.mu.Lock()
	s.gone = true
	s.mu.Unlock()
	p.queue.Add(pod.UID)
}

// changed: the mount room has news of the pod's volumes.
func (p *pods) changed(uid types.UID) { p.queue.Add(uid) }

func (p *pods) state(uid types.UID) *podState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known[uid]
}

func (p *pods) forget(uid types.UID) {
	p.mu.Lock()
	delete(p.known, uid)
	p.mu.Unlock()
	p.queue.Forget(uid)
}

// run waits for the first list, tells the mount room which pods there are, and then works until ctx ends.
func (p *pods) run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		p.queue.ShutDown()
		return nil
	case <-p.synced:
	}
	p.begin()
	var workers sync.WaitGroup
	for range podWorkers {
		workers.Go(func() {
			for p.work(ctx) {
			}
		})
	}
	<-ctx.Done()
	p.queue.ShutDown()
	workers.Wait()
	return nil
}

// begin sets every live pod before the mount room may unmount anything, and queues the pods that only the disk remembers.
func (p *pods) begin() {
	p.mu.Lock()
	states := make([]*podState, 0, len(p.known))
	for _, s := range p.known {
		states = append(states, s)
	}
	p.mu.Unlock()
	for _, s := range states {
		if pod, gone := s.current(); !gone && pod.DeletionTimestamp == nil && !p.releases(pod) {
			p.set(s, pod)
		}
	}
	p.opts.Mount.PodsComplete()
	entries, err := os.ReadDir(filepath.Join(p.opts.DataDir, "pods"))
	if err != nil {
		return // nothing was ever mounted
	}
	for _, e := range entries {
		if uid := types.UID(e.Name()); p.state(uid) == nil {
			p.opts.Mount.ReleasePod(uid)
			p.queue.Add(uid)
		}
	}
}

func (p *pods) work(ctx context.Context) bool {
	uid, stop := p.queue.Get()
	if stop {
		return false
	}
	defer p.queue.Done(uid)
	if err := p.sync(ctx, uid); err != nil {
		if ctx.Err() == nil {
			p.opts.Log.Warn("pod", "uid", uid, "err", err)
		}
		p.queue.AddRateLimited(uid)
		return true
	}
	p.queue.Forget(uid)
	return true
}

// phases counts the pods of this node, for Status.
func (p *pods) phases() map[v1.PodPhase]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	counts := map[v1.PodPhase]int{}
	for _, s := range p.known {
		if pod, gone := s.current(); !gone && pod != nil {
			counts[pod.Status.Phase]++
		}
	}
	return counts
}
