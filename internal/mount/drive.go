package mount

import (
	"context"
	"errors"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/trace"
)

// kick lets the volume decide again. One goroutine at a time drives a volume, and ends when there is nothing to do.
func (m *Manager) kick(v *volume) {
	if !m.ready || v.running {
		return // a running one decides again when its step ends
	}
	v.running = true
	m.running.Add(1)
	go func() {
		defer m.running.Done()
		m.drive(v)
	}()
}

// wake is kick after an input has changed: what failed is tried again at once.
func (m *Manager) wake(v *volume) {
	v.back.wake()
	for _, u := range v.uses {
		u.back.wake()
	}
	m.kick(v)
}

func (m *Manager) kickAll() {
	for _, v := range m.volumes {
		m.kick(v)
	}
}

// drive takes the volume's steps until there is none.
func (m *Manager) drive(v *volume) {
	var lane chan struct{}
	defer func() {
		if lane != nil {
			<-lane
		}
	}()
	m.mu.Lock()
	for {
		if m.ctx.Err() != nil {
			v.running = false
			m.mu.Unlock()
			return
		}
		d := next(v, m.world(v))
		m.noteWaits(v, d)
		switch {
		case d.step == doDrop:
			m.dropUse(d.use)
			continue
		case d.step == doForget:
			m.forget(v)
			fallthrough
		case d.step == doNothing:
			v.running = false
			m.wakeAt(v, d.retryAt)
			m.mu.Unlock()
			return
		case lane == nil:
			// Decide again once the lane is free: what was to be done may have changed by then.
			lane = m.enterLane(v)
			continue
		}
		m.take(v, d.step, d.use)
	}
}

// enterLane waits, without the lock, until the volume's driver has room for one more operation.
func (m *Manager) enterLane(v *volume) chan struct{} {
	lane := m.lanes[v.lane]
	if lane == nil {
		lane = make(chan struct{}, lanesWidth)
		m.lanes[v.lane] = lane
	}
	select {
	case lane <- struct{}{}:
		return lane
	default:
	}
	for u := range v.uses {
		m.setWait(v.uses[u], fmt.Sprintf("%s, which has %d other operations under way", v.lane, lanesWidth))
	}
	m.mu.Unlock()
	defer m.mu.Lock()
	select {
	case lane <- struct{}{}:
		return lane
	case <-m.ctx.Done():
		return nil
	}
}

func (m *Manager) world(v *volume) world {
	device, attached := m.attached[v.name]
	if attached && device != "" {
		v.devicePath = device
	}
	return world{
		now:                time.Now(),
		complete:           m.complete,
		controllerAttaches: m.opts.AttachOnController,
		reported:           m.reported[v.name],
		attached:           attached,
		expands:            canExpand(v.plugin),
	}
}

// take takes one step. It is called and returns with the lock held, and lets it go for the step.
func (m *Manager) take(v *volume, s step, u *use) {
	switch s {
	case doUnpublish:
		m.unpublish(v, u)
	case doAttach:
		m.attach(v, u)
	case doStage:
		m.stage(v, u)
	case doPublish:
		m.publish(v, u)
	case doExpand:
		m.expand(v, u)
	case doUnstage:
		m.unstage(v)
	case doDetach:
		m.detach(v)
	}
}

// during runs an operation without the lock; meanwhile Holders shows it.
func (m *Manager) during(v *volume, s trace.Step, u *use, operation string, f func(context.Context) error) error {
	h := &Holder{Volume: v.name, PV: pvName(v), Step: s, Since: time.Now()}
	if u != nil {
		h.Pod = u.ref
	}
	v.op = h
	m.traceStep(v, u, s, trace.Began, "")
	m.mu.Unlock()
	err := f(m.ctx)
	m.mu.Lock()
	m.metrics.observe(v, operation, h.Since, err)
	v.op = nil
	if m.ctx.Err() != nil && err != nil {
		err = fmt.Errorf("%w: %w", errStopping, err)
	}
	switch {
	case err == nil:
		m.traceStep(v, u, s, trace.Done, "")
	case errors.Is(err, errStopping):
	case errors.Is(err, plugin.ErrDriverMissing):
		m.traceStep(v, u, s, trace.Waiting, err.Error())
	default:
		m.traceStep(v, u, s, trace.Failed, err.Error())
	}
	return err
}

// errStopping marks what failed because this process stops: nobody is told, the next start goes on.
var errStopping = errors.New("stopping")

func (m *Manager) stage(v *volume, u *use) {
	r := plugin.StageRequest{
		Volume:     u.resolved,
		DevicePath: v.devicePath,
		FSGroup:    fsGroup(u.resolved.Pod),
		Again:      v.stage == uncertain,
	}
	p := v.plugin
	err := m.during(v, trace.Staged, u, "volume_mount", func(ctx context.Context) error { return p.Stage(ctx, r) })
	m.signal(m.journalDue)
	if err == nil {
		v.stage, v.err = present, nil
		v.back.reset()
		return
	}
	if errors.Is(err, plugin.ErrUncertain) || errors.Is(err, errStopping) {
		v.stage = uncertain
	}
	v.err = err
	v.back.fail(time.Now())
	for _, u := range v.uses {
		if u.desired && u.resolved != nil {
			u.since = time.Now()
			m.mountFailed(u, "MountVolume.MountDevice", "MapVolume.SetUpDevice", err)
		}
	}
}

func (m *Manager) publish(v *volume, u *use) {
	r := plugin.PublishRequest{Volume: u.resolved, FSGroup: fsGroup(u.resolved.Pod), Again: u.state != absent}
	first := u.state != present
	u.refresh = false // a change that comes during the call is seen by the next one
	var published plugin.Published
	p := v.plugin
	err := m.during(v, trace.Published, u, "volume_mount", func(ctx context.Context) error {
		var err error
		published, err = p.Publish(ctx, r)
		return err
	})
	if err == nil {
		u.state, u.path, u.err, u.wait = present, published.Path, nil, ""
		u.back.reset()
		if first {
			u.since = time.Now()
			u.settling = canExpand(v.plugin) && expansionDue(v, u)
			m.signal(m.journalDue)
			m.mounted(u)
			if !u.settling {
				m.changed(u.pod)
			}
		}
		return
	}
	switch {
	case u.state == present: // a refresh has failed: the pod keeps what it has
		u.refresh = true
	case errors.Is(err, plugin.ErrUncertain), errors.Is(err, errStopping):
		u.state = uncertain
	}
	u.err, u.since = err, time.Now()
	u.back.fail(time.Now())
	m.mountFailed(u, "MountVolume.SetUp", "MapVolume.MapPodDevice", err)
}

func (m *Manager) unpublish(v *volume, u *use) {
	r := plugin.UnpublishRequest{PodUID: u.pod, SpecName: u.specName, Mode: u.mode, Volume: u.resolved}
	p, names := v.plugin, u.names()
	err := m.during(v, trace.Unpublished, u, "volume_unmount", func(ctx context.Context) error {
		if err := removeSubpaths(m.opts.DataDir, r.PodUID, names...); err != nil {
			return err
		}
		return p.Unpublish(ctx, r)
	})
	u.refresh, u.settling = false, false
	if err != nil {
		u.state, u.err, u.since = uncertain, err, time.Now()
		u.back.fail(time.Now())
		m.unmountFailed(v, u, "unpublish", err)
		m.changed(u.pod)
		return
	}
	u.state, u.path, u.err = absent, "", nil
	u.back.reset() // it is dropped next, unless the pod wants it again
	m.noteSettled()
}

func (m *Manager) unstage(v *volume) {
	r := plugin.UnstageRequest{Name: v.name, Volume: v.latest, GlobalPath: v.globalPath}
	p := v.plugin
	err := m.during(v, trace.Unstaged, nil, "unmount_device", func(ctx context.Context) error { return p.Unstage(ctx, r) })
	m.signal(m.journalDue)
	if err != nil {
		v.stage, v.err = uncertain, err
		v.back.fail(time.Now())
		m.unmountFailed(v, nil, "unstage", err)
		return
	}
	v.stage, v.err, v.expandedTo = absent, nil, 0
	v.back.reset()
	// The detach waits for this: report before anything else is done.
	m.signal(m.reportDue)
	m.noteSettled()
}

// forget drops a volume of which nothing is wanted and nothing is there.
func (m *Manager) forget(v *volume) {
	delete(m.volumes, v.name)
	if m.reported[v.name] {
		m.signal(m.reportDue)
	}
	m.noteSettled()
}

// wakeAt arms the volume's timer for the end of a back-off.
func (m *Manager) wakeAt(v *volume, t time.Time) {
	if v.timer != nil {
		v.timer.Stop()
		v.timer = nil
	}
	if t.IsZero() || m.volumes[v.name] != v {
		return
	}
	v.timer = time.AfterFunc(time.Until(t), func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.kick(v)
	})
}

// noteWaits keeps for each pod the reason why it does not go on, and records it when it changes.
func (m *Manager) noteWaits(v *volume, d decision) {
	for _, u := range v.uses {
		reason := d.waits[u]
		if d.use != nil && d.use != u && reason == "" {
			continue // it was not asked: another pod's step comes first
		}
		m.setWait(u, reason)
	}
}

func (m *Manager) setWait(u *use, reason string) {
	if u.wait == reason {
		return
	}
	u.wait = reason
	if reason == "" {
		return
	}
	u.since = time.Now()
	m.traceStep(u.volume, u, trace.Published, trace.Waiting, reason)
}

func fsGroup(pod *v1.Pod) *int64 {
	if pod == nil || pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

func pvName(v *volume) string {
	if v.latest != nil && v.latest.PV != nil {
		return v.latest.PV.Name
	}
	return ""
}

// attach and detach are for nodes that attach by themselves.
func (m *Manager) attach(v *volume, u *use) {
	a, volume := v.plugin.(plugin.Attacher), u.resolved
	if v.attach == absent {
		v.attach = uncertain
	}
	var got plugin.Attachment
	err := m.during(v, trace.Attached, u, "volume_attach", func(ctx context.Context) error {
		var err error
		got, err = a.Attach(ctx, volume, types.NodeName(m.opts.Node))
		return err
	})
	if err != nil {
		v.err = err
		v.back.fail(time.Now())
		m.attachFailed(v, err)
		return
	}
	v.err, v.attachPending = nil, got.Pending
	v.back.reset()
	if got.Pending == "" {
		v.attach, v.devicePath = present, got.DevicePath
	}
}

func (m *Manager) detach(v *volume) {
	a := v.plugin.(plugin.Attacher)
	at := plugin.AttachedVolume{Name: v.name, Node: types.NodeName(m.opts.Node), DevicePath: v.devicePath, Volume: v.latest}
	v.attach = uncertain
	var done bool
	err := m.during(v, trace.Detached, nil, "volume_detach", func(ctx context.Context) error {
		var err error
		done, err = a.Detach(ctx, at, at.Node)
		return err
	})
	switch {
	case err != nil:
		v.err = err
		v.back.fail(time.Now())
	case done:
		v.attach, v.devicePath, v.err = absent, "", nil
		v.back.reset()
		m.noteSettled()
	default:
		v.attachPending = "the detach from this node"
	}
}
