package provision

import (
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/tools/cache"
)

// ahead is the store of a shared informer for a library that notes its own writes in it, as external-resizer does to see
// them before their events. In the informer's own store such a note may be old already: the answer to a write can come after
// the events of that write and of somebody else's next one. Nothing corrects it then until the object is written once more, and
// each write of the library meets a conflict. Here a note is kept aside, and counts as long as it is newer than what the
// informer has.
type ahead struct {
	cache.Store // the informer's, which is only read

	mu    sync.Mutex
	noted map[string]any
}

func newAhead(s cache.Store) *ahead { return &ahead{Store: s, noted: map[string]any{}} }

// Update notes what a write was answered with.
func (a *ahead) Update(o any) error {
	key, err := cache.MetaNamespaceKeyFunc(o)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.noted[key] = o
	for key, o := range a.noted {
		if !a.leads(key, o) {
			delete(a.noted, key)
		}
	}
	return nil
}

// GetByKey returns the newer one of what is noted and what the informer has; nothing, when the informer has nothing.
func (a *ahead) GetByKey(key string) (any, bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if o, ok := a.noted[key]; ok {
		if a.leads(key, o) {
			return o, true, nil
		}
		delete(a.noted, key)
	}
	return a.Store.GetByKey(key)
}

// leads says whether o is newer than the informer's object of that key.
func (a *ahead) leads(key string, o any) bool {
	have, exists, err := a.Store.GetByKey(key)
	if err != nil || !exists {
		return false
	}
	noted, err := meta.Accessor(o)
	if err != nil {
		return false
	}
	shared, err := meta.Accessor(have)
	if err != nil {
		return false
	}
	order, err := resourceversion.CompareResourceVersion(noted.GetResourceVersion(), shared.GetResourceVersion())
	return err == nil && order > 0
}
