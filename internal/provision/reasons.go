package provision

import "sync"

// reasons remembers the last thing told about each volume, so that a journey tells it once.
type reasons struct {
	mu   sync.Mutex
	told map[string]string
}

// Add reports whether reason differs from what was told last.
func (r *reasons) Add(volume, reason string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.told == nil {
		r.told = map[string]string{}
	}
	if old, ok := r.told[volume]; ok && old == reason {
		return false
	}
	r.told[volume] = reason
	return true
}

// Remove forgets what was told about a volume, and reports whether anything was.
func (r *reasons) Remove(volume string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, told := r.told[volume]
	delete(r.told, volume)
	return told
}
