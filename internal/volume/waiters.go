package volume

import (
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/host/mountpoint"
)

// waiters are woken when the node has news of a pod's volumes.
type waiters struct {
	mu  sync.Mutex
	all map[types.UID]map[chan struct{}]bool
}

// add makes a channel that is written at each change of the pod, and once after a while; end takes it away.
func (w *waiters) add(pod types.UID, after time.Duration) (woken <-chan struct{}, end func()) {
	c := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = map[types.UID]map[chan struct{}]bool{}
	}
	if w.all[pod] == nil {
		w.all[pod] = map[chan struct{}]bool{}
	}
	w.all[pod][c] = true
	timer := time.AfterFunc(after, func() { wake(c) })
	return c, func() {
		timer.Stop()
		w.mu.Lock()
		defer w.mu.Unlock()
		if delete(w.all[pod], c); len(w.all[pod]) == 0 {
			delete(w.all, pod)
		}
	}
}

// PodChanged says that there is news of a pod's volumes. It does not block.
func (s *Service) PodChanged(pod types.UID) {
	s.waiting.mu.Lock()
	defer s.waiting.mu.Unlock()
	for c := range s.waiting.all[pod] {
		wake(c)
	}
}

func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// where says whether the volume of a holder pod is mounted, and where.
func (s *Service) where(p *corev1.Pod) (path string, mounted bool) {
	if s.mountedOn == nil {
		if !ready(p) {
			return "", false
		}
		path, err := pathIn(p)
		return path, err == nil
	}
	path, mounted = s.mountedOn(p.UID, inPod)
	if !mounted {
		return "", false
	}
	is, err := mountpoint.Is(path)
	return path, is && err == nil
}
