package attach

import (
	"context"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"berth.io/berth/internal/plugin"
)

// rebuild fills the state before any worker runs: what the nodes' status says is attached, what the attachers believe
// beside that (uncertain: perhaps dangling), and what the pods want. Only when all three are known anything may be
// detached. Then every entry decides for itself: a wanted one is confirmed or attached, any other is detached.
func (c *Controller) rebuild(ctx context.Context) {
	nodes, _ := c.nodeList.List(labels.Everything())
	for _, o := range nodes {
		c.nodeChanged(o, false)
		if _, managed := o.Annotations[annManaged]; !managed {
			continue
		}
		c.mu.Lock()
		for _, a := range o.Status.VolumesAttached {
			e := c.ensure(key{a.Name, types.NodeName(o.Name)})
			e.actual, e.reported, e.devicePath = attached, true, a.DevicePath
			e.attacher = c.attacherOf(a.Name)
		}
		c.mu.Unlock()
	}
	for _, p := range c.opts.Plugins.All() {
		if a, ok := p.(plugin.Attacher); ok {
			c.believe(ctx, a)
		}
	}
	pods, _ := c.pods.List(labels.Everything())
	for _, p := range pods {
		if p.Spec.NodeName != "" {
			c.syncPod(cache.MetaObjectToName(p).String())
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.entries {
		c.keyQueue.Add(k)
	}
	for n := range c.nodes {
		c.nodeQueue.Add(n)
	}
}

// believe takes over what an attacher holds to be attached. What it does not know of, although the node's status has
// it, is uncertain: it was taken away behind our back.
func (c *Controller) believe(ctx context.Context, a plugin.Attacher) {
	ctx, cancel := context.WithTimeout(ctx, c.opts.Timeout)
	defer cancel()
	list, err := a.Attached(ctx)
	if err != nil {
		c.opts.Log.Warn("attacher could not list all attachments", "plugin", a.Name(), "err", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	known := map[key]bool{}
	for _, v := range list {
		k := key{v.Name, v.Node}
		known[k] = true
		n := c.nodes[v.Node]
		if n != nil && n.exists && !n.managed {
			continue // its own node attaches
		}
		e := c.ensure(k)
		if e.actual == detached || v.Uncertain {
			e.actual = uncertain
		}
		if e.devicePath == "" {
			e.devicePath = v.DevicePath
		}
		c.setVolume(e, a, v.Volume)
	}
	if err != nil || list == nil {
		return // it cannot tell
	}
	for k, e := range c.entries {
		if e.attacher == a && !known[k] && e.actual == attached {
			e.actual = uncertain
			e.reported, e.persists = false, true
			c.nodeQueue.Add(k.node)
		}
	}
}

// attacherOf finds the plugin of a unique name: "<plugin's name>/<rest>".
func (c *Controller) attacherOf(name v1.UniqueVolumeName) plugin.Attacher {
	var best plugin.Attacher
	for _, p := range c.opts.Plugins.All() {
		a, ok := p.(plugin.Attacher)
		if f, family := p.(plugin.Family); family && ok {
			if _, own := f.Member(string(name)); own && best == nil {
				best = a
			}
			continue
		}
		if ok && strings.HasPrefix(string(name), p.Name()+"/") && (best == nil || len(p.Name()) > len(best.Name())) {
			best = a
		}
	}
	return best
}
