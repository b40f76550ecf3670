package mount

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/trace"
)

// inspectPeriod is how often drivers are asked how full and how well their volumes are, as a kubelet does: no driver tells
// by itself.
const inspectPeriod = time.Minute

// Reasons of events, as the kubelet's; the second is that of the external health monitor.
const (
	eventAbnormal = "VolumeConditionAbnormal"
	eventNormal   = "VolumeConditionNormal"
)

func (m *Manager) inspectLoop(ctx context.Context) {
	t := time.NewTicker(inspectPeriod)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			m.inspectAll(ctx)
		}
	}
}

// inspectAll begins a round for each driver whose last one has ended: a driver that hangs is asked once, and holds up no other.
func (m *Manager) inspectAll(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	byLane := map[string][]*use{}
	for _, v := range m.volumes {
		if _, ok := v.plugin.(plugin.Inspector); !ok || m.inspecting[v.lane] {
			continue
		}
		for _, u := range v.uses {
			if u.state == present && u.desired && u.resolved != nil {
				byLane[v.lane] = append(byLane[v.lane], u)
			}
		}
	}
	for lane, uses := range byLane {
		m.inspecting[lane] = true
		m.running.Add(1)
		go func() {
			defer m.running.Done()
			for _, u := range uses {
				m.inspect(ctx, u)
			}
			m.mu.Lock()
			delete(m.inspecting, lane)
			m.mu.Unlock()
		}()
	}
}

// inspect asks once, and tells what has changed.
func (m *Manager) inspect(ctx context.Context, u *use) {
	m.mu.Lock()
	v, p := u.resolved, u.volume.plugin
	wanted := u.state == present && u.desired && v != nil
	m.mu.Unlock()
	if !wanted || ctx.Err() != nil {
		return
	}
	seen, err := p.(plugin.Inspector).Inspect(ctx, v)
	m.mu.Lock()
	defer m.mu.Unlock()
	if u.state != present || !u.desired {
		return // it was unmounted meanwhile: what the driver said is about nothing
	}
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, plugin.ErrDriverMissing) {
			m.log.Warn("the volume's usage or health can't be read", "volume", u.specName, "pod", podName(u), "err", err)
		}
		if !seen.Health {
			seen.Health, seen.Problems = u.inspected.Health, u.inspected.Problems
		}
	}
	m.tellHealth(u, seen)
	u.inspected = seen
}

// tellHealth makes an event of each change, in the kubelet's words.
func (m *Manager) tellHealth(u *use, now plugin.Inspection) {
	was, is := problemsText(u.inspected), problemsText(now)
	switch {
	case was == is:
	case is != "":
		if was == "" {
			u.unwellSince = time.Now()
		}
		m.opts.Events.Eventf(u.resolved.Pod, v1.EventTypeWarning, eventAbnormal, "Volume %s: %s", u.resolved.Name, is)
		m.log.Warn("volume is not well", "volume", u.specName, "pod", podName(u), "condition", is)
	default:
		m.opts.Events.Eventf(u.resolved.Pod, v1.EventTypeNormal, eventNormal, "Volume %s: its driver reports no problem any more", u.resolved.Name)
	}
}

func problemsText(i plugin.Inspection) string {
	list := make([]string, 0, len(i.Problems))
	for _, p := range i.Problems {
		list = append(list, p.String())
	}
	slices.Sort(list)
	return strings.Join(list, "; ")
}

// Unwell is a mounted volume whose driver says that it is not well.
type Unwell struct {
	PV string // empty for an inline volume
	// Claim is the zero value for an inline volume.
	Claim, Pod trace.ObjectRef
	// Name is the pod's for the volume.
	Name     string
	Problems []string
	Since    time.Time
}

// Unwell lists the volumes that were not well when their driver was asked last, once for each pod that uses them.
func (m *Manager) Unwell() []Unwell {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Unwell
	for _, v := range m.volumes {
		for _, u := range v.uses {
			if u.state != present || u.resolved == nil || len(u.inspected.Problems) == 0 {
				continue
			}
			x := Unwell{PV: pvName(v), Claim: v.claim, Pod: u.ref, Name: u.resolved.Name, Since: u.unwellSince}
			for _, p := range u.inspected.Problems {
				x.Problems = append(x.Problems, p.String())
			}
			slices.Sort(x.Problems)
			out = append(out, x)
		}
	}
	slices.SortFunc(out, func(a, b Unwell) int { return a.Since.Compare(b.Since) })
	return out
}
