package claim

import (
	"fmt"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// volumes are the volumes as this process knows them last (see claims), indexed for matching, and the holds on them.
//
// A hold is the right to write one volume. It is taken by name, or by matching: the index gives its best volume to
// one claim and in the same moment takes it out of the index, so two claims never choose the same volume.
type volumes struct {
	mu      sync.RWMutex
	byName  map[string]*v1.PersistentVolume
	byClaim map[string]map[string]struct{} // claimRef → names
	free    freeIndex
	holds   map[string]*hold
	gone    graveyard
	now     func() time.Time
	// freed is told of every volume that a claim can find from now on. It is called without the lock.
	freed func(*v1.PersistentVolume)
}

// hold says who writes a volume, what for and since when. woken are called when it ends.
type hold struct {
	holder, step string
	since        time.Time
	woken        []func()
}

func newVolumes() *volumes {
	return &volumes{
		byName: map[string]*v1.PersistentVolume{}, byClaim: map[string]map[string]struct{}{},
		free: freeIndex{}, holds: map[string]*hold{}, gone: newGraveyard(), now: time.Now,
		freed: func(*v1.PersistentVolume) {},
	}
}

// get returns the volume called name, or nil.
func (s *volumes) get(name string) *v1.PersistentVolume {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byName[name]
}

func (s *volumes) list() []*v1.PersistentVolume {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]*v1.PersistentVolume, 0, len(s.byName))
	for _, pv := range s.byName {
		out = append(out, pv)
	}
	return out
}

// referTo lists the names of the volumes whose claimRef names the claim called key.
func (s *volumes) referTo(key string) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var names []string
	for name := range s.byClaim[key] {
		names = append(names, name)
	}
	return names
}

// put keeps pv unless what is known is newer or pv is known to be deleted.
func (s *volumes) put(pv *v1.PersistentVolume) {
	s.mu.Lock()
	free := s.putNoLock(pv)
	s.mu.Unlock()
	if free {
		s.freed(pv)
	}
}

func (s *volumes) putNoLock(pv *v1.PersistentVolume) (free bool) {
	if s.gone.has(pv.UID) {
		return false
	}
	old := s.byName[pv.Name]
	if old != nil && older(pv.ResourceVersion, old.ResourceVersion) {
		return false
	}
	s.unlinkNoLock(old)
	s.byName[pv.Name] = pv
	if r := pv.Spec.ClaimRef; r != nil {
		key := keyOfRef(r)
		if s.byClaim[key] == nil {
			s.byClaim[key] = map[string]struct{}{}
		}
		s.byClaim[key][pv.Name] = struct{}{}
	}
	return s.holds[pv.Name] == nil && s.free.add(pv)
}

// remove forgets a deleted volume.
func (s *volumes) remove(pv *v1.PersistentVolume) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone.add(pv.UID)
	if old := s.byName[pv.Name]; old != nil && old.UID == pv.UID {
		s.unlinkNoLock(old)
		delete(s.byName, pv.Name)
	}
}

func (s *volumes) unlinkNoLock(old *v1.PersistentVolume) {
	if old == nil {
		return
	}
	s.free.remove(old)
	if r := old.Spec.ClaimRef; r != nil {
		key := keyOfRef(r)
		delete(s.byClaim[key], old.Name)
		if len(s.byClaim[key]) == 0 {
			delete(s.byClaim, key)
		}
	}
}

// busy is returned by hold and match when another worker writes the volume; the worker that got it has been
// registered to be woken.
type busy struct {
	volume, holder, step string
	since                time.Time
}

func (b *busy) Error() string {
	return fmt.Sprintf("volume %q is held by %s (%s) since %s", b.volume, b.holder, b.step, b.since.Format(time.RFC3339Nano))
}

// hold takes the volume called name for holder until the returned release is called. When somebody else has it, the
// error is *busy, and wake is called once the volume is free.
func (s *volumes) hold(name, holder, step string, wake func()) (pv *v1.PersistentVolume, release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.holds[name]; h != nil {
		h.woken = append(h.woken, wake)
		return nil, nil, &busy{volume: name, holder: h.holder, step: h.step, since: h.since}
	}
	return s.byName[name], s.holdNoLock(name, holder, step), nil
}

func (s *volumes) holdNoLock(name, holder, step string) (release func()) {
	if pv := s.byName[name]; pv != nil {
		s.free.remove(pv)
	}
	s.holds[name] = &hold{holder: holder, step: step, since: s.now()}
	return func() { s.release(name) }
}

func (s *volumes) release(name string) {
	s.mu.Lock()
	h := s.holds[name]
	delete(s.holds, name)
	pv := s.byName[name]
	free := pv != nil && s.free.add(pv)
	s.mu.Unlock()
	if h == nil {
		return
	}
	if free {
		s.freed(pv)
	}
	for _, wake := range h.woken {
		wake()
	}
}

// match finds the best volume for c and holds it. A volume whose claimRef names the claim comes first, whatever its
// phase; when delay is set no other comes into question (the scheduler chooses among the rest). No match: nil, nil, nil.
func (s *volumes) match(c *v1.PersistentVolumeClaim, delay bool, wake func()) (*v1.PersistentVolume, func(), error) {
	want, err := requestOf(c)
	if err != nil {
		return nil, nil, err
	}
	key := keyOf(c)
	s.mu.Lock()
	defer s.mu.Unlock()

	var best *v1.PersistentVolume
	for name := range s.byClaim[key] {
		pv := s.byName[name]
		if refersTo(pv, c) && fits(pv, want) && (best == nil || closer(pv, best)) {
			best = pv
		}
	}
	if best == nil && !delay {
		best = s.free.best(want)
	}
	if best == nil {
		return nil, nil, nil
	}
	if h := s.holds[best.Name]; h != nil {
		h.woken = append(h.woken, wake)
		return nil, nil, &busy{volume: best.Name, holder: h.holder, step: h.step, since: h.since}
	}
	return best, s.holdNoLock(best.Name, "claim "+key, "binding"), nil
}

// hasMatch says whether match would find a volume among the free ones now.
func (s *volumes) hasMatch(r request) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.free.best(r) != nil
}

// isFree says that the volume called name waits for a claim: Available, unclaimed, held by nobody.
func (s *volumes) isFree(name string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	pv := s.byName[name]
	return pv != nil && s.holds[name] == nil && matchable(pv)
}

// closer orders volumes that all refer to the same claim: the one bound to its UID, then fewer access modes, then by name.
func closer(a, b *v1.PersistentVolume) bool {
	if au, bu := a.Spec.ClaimRef.UID != "", b.Spec.ClaimRef.UID != ""; au != bu {
		return au
	}
	if len(a.Spec.AccessModes) != len(b.Spec.AccessModes) {
		return len(a.Spec.AccessModes) < len(b.Spec.AccessModes)
	}
	return a.Name < b.Name
}

// refersTo says that pv's claimRef names c, and c's UID if it names one.
func refersTo(pv *v1.PersistentVolume, c *v1.PersistentVolumeClaim) bool {
	r := pv.Spec.ClaimRef
	return r != nil && r.Name == c.Name && r.Namespace == c.Namespace && (r.UID == "" || r.UID == c.UID)
}

// selects applies a claim's label selector; none selects everything.
func selects(sel labels.Selector, pv *v1.PersistentVolume) bool {
	return sel == nil || sel.Matches(labels.Set(pv.Labels))
}
