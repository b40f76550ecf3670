package volume

import (
	"context"
	"sync"
	"time"
)

// startsWithin is how long after an engine's mount its container may not have the volume yet, as far as the kernel shows: the
// engine has the path, and binds it when it starts the container.
const startsWithin = 10 * time.Second

// mounting keeps apart, for each volume, mounts that are being made and an unmount by force: the latter looks who has the volume
// and then forgets every caller, so that none may come, nor be on its way to a container, in between. Its zero value is ready.
type mounting struct {
	mu      sync.Mutex
	volumes map[string]*mountingVolume // by namespace/name; those that nothing is known of are not there
}

type mountingVolume struct {
	mounts  int                  // under way
	engines map[string]time.Time // when an engine got the path of its mount, by caller
	forced  chan struct{}        // not nil while an unmount by force runs; closed at its end
}

// begin waits for the end of an unmount by force; the mount is under way until end, which is told the engine's caller that has
// got a path, if one has.
func (m *mounting) begin(ctx context.Context, volume string) (end func(engine string), err error) {
	for {
		m.mu.Lock()
		v := m.of(volume)
		if v.forced == nil {
			v.mounts++
			m.mu.Unlock()
			return func(engine string) {
				m.mu.Lock()
				defer m.mu.Unlock()
				if v.mounts--; engine != "" {
					v.engines[engine] = time.Now()
				}
				m.tidy(volume, v)
			}, nil
		}
		forced := v.forced
		m.mu.Unlock()
		select {
		case <-forced:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// force keeps new mounts waiting until end. It refuses while a mount is under way or another force is.
func (m *mounting) force(volume, name string) (end func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.of(volume)
	if v.mounts > 0 || v.forced != nil {
		return nil, refuse("volume %s is being mounted or unmounted at this moment; try again", name)
	}
	v.forced = make(chan struct{})
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		close(v.forced)
		v.forced = nil
		m.tidy(volume, v)
	}, nil
}

// starting says for how long yet a container that an engine has mounted the volume for may be on its way.
func (m *mounting) starting(volume string) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	left := time.Duration(0)
	if v := m.volumes[volume]; v != nil {
		for _, since := range v.engines {
			left = max(left, startsWithin-time.Since(since))
		}
	}
	return left
}

// released forgets that an engine's caller got a path: it has given it back.
func (m *mounting) released(volume, engine string) {
	m.forget(volume, func(v *mountingVolume) { delete(v.engines, engine) })
}

// releasedAll is released for every caller.
func (m *mounting) releasedAll(volume string) {
	m.forget(volume, func(v *mountingVolume) { clear(v.engines) })
}

func (m *mounting) forget(volume string, drop func(*mountingVolume)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := m.volumes[volume]; v != nil {
		drop(v)
		m.tidy(volume, v)
	}
}

// of and tidy are called locked.
func (m *mounting) of(volume string) *mountingVolume {
	if m.volumes == nil {
		m.volumes = map[string]*mountingVolume{}
	}
	v := m.volumes[volume]
	if v == nil {
		v = &mountingVolume{engines: map[string]time.Time{}}
		m.volumes[volume] = v
	}
	return v
}

func (m *mounting) tidy(volume string, v *mountingVolume) {
	if v.mounts == 0 && v.forced == nil && len(v.engines) == 0 {
		delete(m.volumes, volume)
	}
}
