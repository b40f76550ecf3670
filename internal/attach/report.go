package attach

import (
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/trace"
)

// All of these are called with Controller.mu held; the recorder and the journal do not block.

// hold notes what is under way.
func (c *Controller) hold(e *entry, step string) {
	if e.step != step {
		e.step, e.since = step, time.Now()
	}
}

// done: nothing is under way and nothing is waited for.
func (c *Controller) done(e *entry) { e.step, e.told = "", "" }

// wait notes what is waited for, and tells it once.
func (c *Controller) wait(e *entry, s trace.Step, reason string) {
	c.hold(e, reason)
	if e.told != reason {
		e.told = reason
		c.record(e, s, trace.Waiting, reason)
	}
}

func (c *Controller) record(e *entry, s trace.Step, state trace.State, detail string) {
	entry := trace.Entry{Step: s, State: state, Detail: detail, Node: string(e.node), Volume: string(e.key.volume)}
	if e.volume != nil {
		entry.Volume = e.volume.SpecName()
		entry.Claim = trace.ClaimOf(e.volume.PV)
	}
	for _, p := range e.pods {
		entry.Pod = trace.Pod(p)
		break
	}
	c.opts.Trace.Record(entry)
}

func (e *entry) name() string {
	if e.volume != nil {
		return e.volume.SpecName()
	}
	return string(e.key.volume)
}

func (c *Controller) event(p *v1.Pod, kind, reason, message string) {
	if c.opts.Events != nil {
		c.opts.Events.Event(p, kind, reason, message)
	}
}

func (c *Controller) succeeded(e *entry) {
	c.record(e, trace.Attached, trace.Done, "to node "+string(e.node))
	for _, p := range e.pods {
		c.event(p, v1.EventTypeNormal, "SuccessfulAttachVolume", fmt.Sprintf("AttachVolume.Attach succeeded for volume %q ", e.name()))
	}
}

// failed tells an error once, until it is another one.
func (c *Controller) failed(e *entry, s trace.Step, reason, act string, err error) {
	c.hold(e, "retry after: "+err.Error())
	if e.told == err.Error() {
		return
	}
	e.told = err.Error()
	c.record(e, s, trace.Failed, err.Error())
	for _, p := range e.pods {
		c.event(p, v1.EventTypeWarning, reason, fmt.Sprintf("%s for volume %q : %v", act, e.name(), err))
	}
}

// refuseMultiAttach tells the pods why their volume is not attached. The users of one namespace must not learn the
// names of another namespace's pods.
func (c *Controller) refuseMultiAttach(e *entry) {
	nodes := c.elsewhere(e)
	reason := fmt.Sprintf("the volume may be on one node only and is attached to %s", nodes[0])
	c.hold(e, reason)
	if e.told == reason {
		return
	}
	e.told = reason
	c.record(e, trace.Attached, trace.Waiting, reason)
	for _, p := range e.pods {
		var here []string
		others := 0
		for _, n := range nodes {
			for _, user := range c.byVolume[e.key.volume][n].pods {
				if user.Namespace == p.Namespace {
					here = append(here, user.Name)
				} else {
					others++
				}
			}
		}
		c.event(p, v1.EventTypeWarning, "FailedAttachVolume", fmt.Sprintf("Multi-Attach error for volume %q %s", e.name(), usedBy(here, others)))
	}
}

func usedBy(here []string, others int) string {
	switch {
	case len(here) > 0 && others > 0:
		return fmt.Sprintf("Volume is already used by pod(s) %s and %d pod(s) in different namespaces", strings.Join(here, ", "), others)
	case len(here) > 0:
		return "Volume is already used by pod(s) " + strings.Join(here, ", ")
	case others > 0:
		return fmt.Sprintf("Volume is already used by %d pod(s) in different namespaces", others)
	}
	return "Volume is already exclusively attached to one node and can't be attached to another"
}

// noAttacher: a volume of a plugin that is not here any more. Nothing can be done but to say so.
func (c *Controller) noAttacher(e *entry) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	reason := "no plugin here can detach " + string(e.key.volume)
	if e.told != reason {
		c.opts.Log.Warn("cannot detach", "volume", e.key.volume, "node", e.node)
	}
	c.wait(e, trace.Detached, reason)
	return nil
}
