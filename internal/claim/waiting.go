package claim

import (
	"sync"

	"github.com/google/btree"
	v1 "k8s.io/api/core/v1"
)

// waiting are the claims for which no volume was found. A volume that becomes free is offered to the best of them:
// the one with the largest request that it satisfies. So a new volume wakes one claim, not all, and nobody needs a
// resync. Claims of a WaitForFirstConsumer class are in the list but get no offers: the scheduler binds those.
//
// A woken claim may choose another volume than the one offered (a better one came free meanwhile); then the offer
// goes on to the next claim, see settle.
type waiting struct {
	mu      sync.Mutex
	claims  map[string]waiter
	trees   map[bucket]*btree.BTreeG[sized] // by requested size; sized.name is the claim's key
	offered map[string]string               // claim → volume
}

type waiter struct {
	request
	delay bool
}

func newWaiting() *waiting {
	return &waiting{claims: map[string]waiter{}, trees: map[bucket]*btree.BTreeG[sized]{}, offered: map[string]string{}}
}

// add puts the claim called key in line. A claim that is in line already takes its place anew.
func (w *waiting) add(key string, r request, delay bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.removeNoLock(key)
	w.claims[key] = waiter{request: r, delay: delay}
	if delay {
		return
	}
	t := w.trees[r.bucket]
	if t == nil {
		t = btree.NewG(16, lessSized)
		w.trees[r.bucket] = t
	}
	t.ReplaceOrInsert(sized{size: r.size, name: key})
}

// remove takes the claim called key out of line: it is bound, or gone.
func (w *waiting) remove(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.removeNoLock(key)
}

func (w *waiting) removeNoLock(key string) {
	r, ok := w.claims[key]
	if !ok {
		return
	}
	delete(w.claims, key)
	if t := w.trees[r.bucket]; t != nil {
		t.Delete(sized{size: r.size, name: key})
		if t.Len() == 0 {
			delete(w.trees, r.bucket)
		}
	}
}

// offer chooses the claim that a free volume should go to, takes it out of line and remembers the offer. Nobody
// waits for such a volume: "".
func (w *waiting) offer(pv *v1.PersistentVolume) (key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.trees[bucketOfVolume(pv)]
	if t == nil {
		return ""
	}
	// "\xff" is above every key, so the descent begins behind all requests of exactly this size.
	t.DescendLessOrEqual(sized{size: *pv.Spec.Capacity.Storage(), name: "\xff"}, func(it sized) bool {
		r := w.claims[it.name]
		if containsModes(pv.Spec.AccessModes, r.modes) && selects(r.selector, pv) {
			key = it.name
		}
		return key == ""
	})
	if key != "" {
		w.removeNoLock(key)
		w.offered[key] = pv.Name
	}
	return key
}

// settle ends the offer made to the claim called key, and says which volume it was.
func (w *waiting) settle(key string) (volume string, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	volume, ok = w.offered[key]
	delete(w.offered, key)
	return volume, ok
}

// ofClass lists the waiting claims of a class, for when the class appears or changes.
func (w *waiting) ofClass(class string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var keys []string
	for key, r := range w.claims {
		if r.bucket.class == class {
			keys = append(keys, key)
		}
	}
	return keys
}
