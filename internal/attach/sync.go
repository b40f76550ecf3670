package attach

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/trace"
)

// sync does the next step of one volume on one node. The queue never runs it twice at once for a key.
func (c *Controller) sync(ctx context.Context, k key) error {
	c.mu.Lock()
	e := c.entries[k]
	if e == nil || e.busy { // the end of its call wakes it
		c.mu.Unlock()
		return nil
	}
	s := c.situation(e)
	if s.wanted {
		e.detachSince, e.forced, e.unlisted, e.asked = time.Time{}, "", false, false
	}
	next, forced := decide(s)
	if forced != "" && e.forced != forced {
		e.forced = forced
		c.metrics.forced.WithLabelValues(forced).Inc()
		c.opts.Log.Warn("detaching a volume that the node may still use", "volume", k.volume, "node", k.node, "reason", forced)
	}
	switch next {
	case doAttach:
		return c.call(ctx, e, func(ctx context.Context) error { return c.attach(ctx, e) })
	case doDetach:
		return c.call(ctx, e, func(ctx context.Context) error { return c.detach(ctx, e, forced) })
	}
	defer c.mu.Unlock()
	switch next {
	case rest:
		c.done(e)
		if !s.wanted {
			c.forget(e)
		}
	case report:
		c.setReported(e, true)
		c.done(e)
	case refuse:
		c.refuseMultiAttach(e)
	case waitUse:
		c.wait(e, trace.Detached, fmt.Sprintf("node %s still uses the volume", k.node))
		if !s.nodeReady && s.forceAfter > 0 {
			c.keyQueue.AddAfter(k, s.forceAfter-s.waited)
		}
	case unreport:
		c.setReported(e, false)
		c.hold(e, "write node.status.volumesAttached")
	case waitWrite:
		c.hold(e, "write node.status.volumesAttached")
	}
	return nil
}

// call runs a step that asks the attacher; both it and the step are called locked and unlock. The step of an attacher that blocks
// runs beside the workers, for as long as it takes; meanwhile the entry does nothing else.
func (c *Controller) call(ctx context.Context, e *entry, step func(context.Context) error) error {
	if _, blocks := e.attacher.(plugin.Blocking); !blocks {
		return step(ctx)
	}
	e.busy = true
	c.apart.Go(func() {
		c.mu.Lock()
		err := step(ctx)
		c.mu.Lock()
		e.busy = false
		c.mu.Unlock()
		if err != nil {
			c.keyQueue.AddRateLimited(e.key)
			return
		}
		c.keyQueue.Forget(e.key)
		c.keyQueue.Add(e.key)
	})
	c.mu.Unlock()
	return nil
}

// within bounds a call of an attacher that does not bound its own.
func (c *Controller) within(ctx context.Context, a plugin.Attacher) (context.Context, context.CancelFunc) {
	if _, blocks := a.(plugin.Blocking); blocks {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, c.opts.Timeout)
}

func (c *Controller) situation(e *entry) situation {
	n := c.nodes[e.node]
	if n == nil {
		n = &node{}
	}
	s := situation{
		wanted: len(e.pods) > 0, actual: e.actual, reported: e.reported, persists: e.persists,
		exclusive: exclusive(e.volume), elsewhere: len(c.elsewhere(e)) > 0,
		inUse: n.inUse[e.key.volume], keepsUse: n.keepsUse, nodeGone: !n.exists, nodeReady: n.ready, outOfService: n.outOfService, evidence: n.evidence,
		forceAfter: max(c.opts.ForceDetachAfter, 0),
	}
	if !s.wanted && e.actual != detached {
		if e.detachSince.IsZero() {
			e.detachSince = time.Now()
		}
		s.waited = time.Since(e.detachSince)
	}
	return s
}

func (c *Controller) setReported(e *entry, reported bool) {
	if e.reported != reported {
		e.reported, e.persists = reported, true
		e.unlisted = false
		c.nodeQueue.Add(e.node)
	}
}

// attach asks the attacher. Called locked; the state becomes uncertain before the lock goes, so that no other node can take an
// exclusive volume meanwhile, and a crash or an error leaves something that will be detached.
func (c *Controller) attach(ctx context.Context, e *entry) error {
	e.actual = uncertain
	e.unlisted = false
	c.hold(e, "attach")
	if !e.began {
		e.began = true
		c.record(e, trace.Attached, trace.Began, "to node "+string(e.node))
	}
	attacher, volume := e.attacher, e.volume
	c.mu.Unlock()

	ctx, cancel := c.within(ctx, attacher)
	defer cancel()
	got, err := attacher.Attach(ctx, volume, e.node)

	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil:
		c.failed(e, trace.Attached, "FailedAttachVolume", "AttachVolume.Attach failed", err)
		return err
	case got.Pending != "":
		c.wait(e, trace.Attached, got.Pending)
	default:
		e.actual, e.devicePath, e.began = attached, got.DevicePath, false
		c.setReported(e, true)
		c.succeeded(e)
		c.done(e)
		if len(e.pods) == 0 {
			c.keyQueue.Add(e.key)
		}
	}
	return nil
}

// detach makes sure that the node does not use the volume and asks the attacher. Called locked.
func (c *Controller) detach(ctx context.Context, e *entry, forced string) error {
	// Older states of the node than the answer to our write are never adopted, so its use was read after the write.
	fresh := e.unlisted && c.node(e.node).exists
	e.unlisted = false
	asked := e.asked
	c.hold(e, "detach")
	attacher := e.attacher
	a := plugin.AttachedVolume{Name: e.key.volume, Node: e.node, DevicePath: e.devicePath, Volume: e.volume, Uncertain: e.actual == uncertain}
	c.mu.Unlock()

	ctx, cancel := c.within(ctx, attacher)
	defer cancel()
	if forced == "" && !fresh && !asked {
		used, err := c.usedNow(ctx, e.key)
		if err != nil {
			return err
		}
		if used {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.wait(e, trace.Detached, fmt.Sprintf("node %s still uses the volume", e.node))
			return nil
		}
	}
	if attacher == nil {
		return c.noAttacher(e)
	}
	c.mu.Lock()
	if len(e.pods) > 0 { // wanted again, before anything was asked
		c.keyQueue.Add(e.key)
		c.mu.Unlock()
		return nil
	}
	e.actual, e.asked = uncertain, true
	if !asked {
		c.record(e, trace.Detached, trace.Began, "from node "+string(e.node))
	}
	c.mu.Unlock()
	done, err := attacher.Detach(ctx, a, e.node)

	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil:
		// Nobody knows how far it came: uncertain, and only an attach that succeeds tells the node of it again.
		e.asked = false
		c.failed(e, trace.Detached, "FailedDetachVolume", "DetachVolume.Detach failed", err)
		return err
	case !done:
		c.hold(e, "detach") // the VolumeAttachment's going wakes us
	default:
		e.actual, e.devicePath, e.began, e.asked = detached, "", false, false
		c.record(e, trace.Detached, trace.Done, "from node "+string(e.node))
		c.done(e)
		for _, other := range c.byVolume[e.key.volume] {
			if other != e && len(other.pods) > 0 {
				c.keyQueue.Add(other.key) // it may attach now
			}
		}
		if len(e.pods) > 0 {
			c.keyQueue.Add(e.key)
		} else {
			c.forget(e)
		}
	}
	return nil
}

// usedNow asks the API whether the node uses the volume; a node that is gone does not. What the API says is taken
// over, so that the event that ends the use is news even when it has overtaken the answer.
func (c *Controller) usedNow(ctx context.Context, k key) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, c.opts.Timeout)
	defer cancel()
	live, err := c.opts.Client.CoreV1().Nodes().Get(ctx, string(k.node), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at node %s before detaching %s: %w", k.node, k.volume, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.adopt(live, false)
	return c.node(k.node).inUse[k.volume], nil
}
