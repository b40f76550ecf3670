package claim

import (
	"context"
	"fmt"
	"sync"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/storage/ephemeral"

	"berth.io/berth/internal/boundary"
)

// claimProtector keeps a claim that is being deleted until no pod uses it (upstream's pvcprotection).
type claimProtector struct {
	c     *Controller
	queue queue
	lists liveLists

	mu    sync.Mutex
	letGo map[types.UID]bool // our finalizer is off, though the cache may still show it
}

func (c *Controller) addClaimProtection() error {
	p := &claimProtector{c: c, queue: newQueue(), lists: liveLists{flights: map[string]*flight{}}, letGo: map[types.UID]bool{}}
	c.onClaimGone = append(c.onClaimGone, func(last *v1.PersistentVolumeClaim) { p.forget(last.UID) })
	c.parts = append(c.parts, part{"claim protection", p.queue, c.opts.Workers, p.sync})
	c.onClaim = append(c.onClaim, func(_, now *v1.PersistentVolumeClaim) {
		if protectionOf(now, claimProtection) != protected {
			p.queue.Add(keyOf(now))
		}
	})
	return handle(c, c.opts.Informers.Core().V1().Pods().Informer(), func(old, now *v1.Pod) {
		if old != nil && old.UID != now.UID {
			p.podChanged(old)
		}
		// A pod on a node holds its claims until it has ended; one without a node holds none.
		if terminated(now) || now.Spec.NodeName == "" {
			p.podChanged(now)
		}
	}, func(last *v1.Pod, _ bool) { p.podChanged(last) })
}

// podChanged wakes the pod's claims that wait to go; the others do not care.
func (p *claimProtector) podChanged(pod *v1.Pod) {
	for _, key := range claimsOfPod(pod) {
		if claim := p.c.claims.get(key); claim != nil && protectionOf(claim, claimProtection) != protected {
			p.queue.Add(key)
		}
	}
}

func (p *claimProtector) sync(ctx context.Context, key string) error {
	claim := p.c.claims.get(key)
	if claim == nil {
		return nil
	}
	switch protectionOf(claim, claimProtection) {
	case unguarded:
		err := boundary.Do("claim/protect-claim", func() error {
			_, err := p.c.opts.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name,
				types.StrategicMergePatchType, addFinalizer(claim, claimProtection).json(), metav1.PatchOptions{})
			return err
		})
		return ignoreGone(err, "protect claim")
	case leaving:
		if p.gone(claim.UID) {
			return nil
		}
		used, err := p.used(ctx, claim)
		if used || err != nil {
			return err // the pod's end wakes the claim
		}
		err = boundary.Do("claim/unprotect-claim", func() error {
			_, err := p.c.opts.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name,
				types.StrategicMergePatchType, dropFinalizer(claim, claimProtection).json(), metav1.PatchOptions{})
			return err
		})
		if err == nil {
			p.remember(claim)
		}
		return ignoreGone(err, "let claim go")
	}
	return nil
}

// remember notes that the claim has lost its protection: a claim that is being deleted never gets a finalizer again, so
// an event of before, or of another finalizer's going, needs no second look at its pods.
func (p *claimProtector) remember(claim *v1.PersistentVolumeClaim) {
	p.mu.Lock()
	p.letGo[claim.UID] = true
	p.mu.Unlock()
	if now := p.c.claims.get(keyOf(claim)); now == nil || now.UID != claim.UID {
		p.forget(claim.UID) // its deletion was seen before we were back
	}
}

func (p *claimProtector) forget(uid types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.letGo, uid)
}

func (p *claimProtector) gone(uid types.UID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.letGo[uid]
}

// used asks the index of pods, and before a claim may go also the API: a pod can be bound to a node and not be in the
// cache yet. The question to the API is left out when the watch of pods has already passed the moment at which the
// claim was marked as deleted, which it has whenever its last pod went after it.
func (p *claimProtector) used(ctx context.Context, claim *v1.PersistentVolumeClaim) (bool, error) {
	pods, err := p.c.pods.using(keyOf(claim))
	if err != nil {
		return false, fmt.Errorf("look for pods of claim %s: %w", keyOf(claim), err)
	}
	for _, pod := range pods {
		if usesClaim(pod, claim) {
			return true, nil
		}
	}
	if p.c.pods.knows(claim.ResourceVersion) {
		return false, nil
	}
	live, err := p.lists.pods(ctx, claim.Namespace, func(ctx context.Context) (*v1.PodList, error) {
		return p.c.opts.Client.CoreV1().Pods(claim.Namespace).List(ctx, metav1.ListOptions{})
	})
	if err != nil {
		return false, fmt.Errorf("list pods of namespace %s: %w", claim.Namespace, err)
	}
	for i := range live.Items {
		if usesClaim(&live.Items[i], claim) {
			return true, nil
		}
	}
	return false, nil
}

// usesClaim says whether a pod keeps a claim from being deleted: it has a node and names the claim, whether its
// containers have ended or not. Its own ephemeral claim is the exception: that may go once the pod has shut down, or
// else each would wait for the other when the garbage collector deletes the claim before the pod.
func usesClaim(pod *v1.Pod, claim *v1.PersistentVolumeClaim) bool {
	if pod.Spec.NodeName == "" {
		return false
	}
	shutDown := pod.DeletionTimestamp != nil && pod.DeletionGracePeriodSeconds != nil && *pod.DeletionGracePeriodSeconds == 0
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claim.Name {
			return true
		}
		if !shutDown && v.Ephemeral != nil && ephemeral.VolumeClaimName(pod, v) == claim.Name && ephemeral.VolumeIsForPod(pod, claim) == nil {
			return true
		}
	}
	return false
}

// liveLists shares lists of pods: many claims of a namespace that go at once are answered by one list, if it began
// after they asked.
type liveLists struct {
	mu      sync.Mutex
	flights map[string]*flight // the next list per namespace, not yet begun
	gates   map[string]*sync.Mutex
}

type flight struct {
	once sync.Once
	list *v1.PodList
	err  error
}

func (l *liveLists) pods(ctx context.Context, namespace string, list func(context.Context) (*v1.PodList, error)) (*v1.PodList, error) {
	l.mu.Lock()
	f := l.flights[namespace]
	if f == nil {
		f = &flight{}
		l.flights[namespace] = f
	}
	if l.gates == nil {
		l.gates = map[string]*sync.Mutex{}
	}
	gate := l.gates[namespace]
	if gate == nil {
		gate = &sync.Mutex{}
		l.gates[namespace] = gate
	}
	l.mu.Unlock()

	// One list per namespace at a time; while it runs, later askers gather for the next.
	gate.Lock()
	defer gate.Unlock()
	f.once.Do(func() {
		l.mu.Lock()
		delete(l.flights, namespace)
		l.mu.Unlock()
		f.list, f.err = list(ctx)
	})
	return f.list, f.err
}
