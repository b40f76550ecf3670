package claim

import (
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// claims are the claims as this process knows them last: from the watch, or from an answer to its own write, whichever
// is newer. Deciding on this and not on the informer's cache, a worker never acts on a state that it has itself
// already changed (upstream's storeObjectUpdate).
type claims struct {
	mu       sync.RWMutex
	byKey    map[string]*v1.PersistentVolumeClaim
	byVolume map[string]map[string]struct{} // spec.volumeName → keys
	gone     graveyard
}

func newClaims() *claims {
	return &claims{byKey: map[string]*v1.PersistentVolumeClaim{}, byVolume: map[string]map[string]struct{}{}, gone: newGraveyard()}
}

// get returns the claim called key, or nil.
func (s *claims) get(key string) *v1.PersistentVolumeClaim {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byKey[key]
}

// namesVolume lists the claims whose spec.volumeName is name.
func (s *claims) namesVolume(name string) []*v1.PersistentVolumeClaim {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []*v1.PersistentVolumeClaim
	for key := range s.byVolume[name] {
		out = append(out, s.byKey[key])
	}
	return out
}

func (s *claims) list() []*v1.PersistentVolumeClaim {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]*v1.PersistentVolumeClaim, 0, len(s.byKey))
	for _, c := range s.byKey {
		out = append(out, c)
	}
	return out
}

// put keeps c unless what is known is newer, or c is known to be deleted (an answer to a write can come in after the
// watch has told of the deletion).
func (s *claims) put(c *v1.PersistentVolumeClaim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone.has(c.UID) {
		return
	}
	key := keyOf(c)
	old := s.byKey[key]
	if old != nil && older(c.ResourceVersion, old.ResourceVersion) {
		return
	}
	s.unlinkNoLock(key, old)
	s.byKey[key] = c
	if v := c.Spec.VolumeName; v != "" {
		if s.byVolume[v] == nil {
			s.byVolume[v] = map[string]struct{}{}
		}
		s.byVolume[v][key] = struct{}{}
	}
}

// remove forgets a deleted claim; a claim of the same name that was made since then stays. sure: the watch has told of
// this deletion; otherwise the claim was only missing from a list.
func (s *claims) remove(c *v1.PersistentVolumeClaim, sure bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sure {
		s.gone.add(c.UID)
	}
	key := keyOf(c)
	if old := s.byKey[key]; old != nil && old.UID == c.UID {
		s.unlinkNoLock(key, old)
		delete(s.byKey, key)
	}
}

// sawDeleted says that the watch has told of the deletion of the claim with this UID.
func (s *claims) sawDeleted(uid types.UID) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.gone.has(uid)
}

func (s *claims) unlinkNoLock(key string, old *v1.PersistentVolumeClaim) {
	if old == nil || old.Spec.VolumeName == "" {
		return
	}
	v := old.Spec.VolumeName
	delete(s.byVolume[v], key)
	if len(s.byVolume[v]) == 0 {
		delete(s.byVolume, v)
	}
}

// older says that version a came before b. Versions that cannot be compared (a fake API in a test) are taken in the
// order in which they arrive.
func older(a, b string) bool {
	d, err := resourceversion.CompareResourceVersion(a, b)
	return err == nil && d < 0
}

func keyOf(c *v1.PersistentVolumeClaim) string { return c.Namespace + "/" + c.Name }

func keyOfRef(r *v1.ObjectReference) string { return r.Namespace + "/" + r.Name }

// graveyard remembers the UIDs of the last few thousand deleted objects. A UID never comes back.
type graveyard struct{ young, old map[types.UID]struct{} }

const graves = 8192

func newGraveyard() graveyard { return graveyard{young: map[types.UID]struct{}{}} }

func (g *graveyard) add(uid types.UID) {
	if len(g.young) >= graves {
		g.old, g.young = g.young, map[types.UID]struct{}{}
	}
	g.young[uid] = struct{}{}
}

func (g *graveyard) has(uid types.UID) bool {
	if uid == "" {
		return false
	}
	_, young := g.young[uid]
	_, old := g.old[uid]
	return young || old
}
