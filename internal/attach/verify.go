package attach

import (
	"context"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/cache"

	"berth.io/berth/internal/plugin"
)

func isFamily(p plugin.Plugin) bool {
	_, family := p.(plugin.Family)
	return family
}

// driverCame: what a driver of a Family can do is known now, or is another thing than before. It happens a few times in a node's
// life, so every pod may look again.
func (c *Controller) driverCame(driver string) {
	pods, _ := c.pods.List(labels.Everything())
	for _, p := range pods {
		if p.Spec.NodeName != "" {
			c.podQueue.Add(cache.MetaObjectToName(p).String())
		}
	}
	c.mu.Lock()
	for k, e := range c.entries {
		if e.actual == uncertain {
			c.keyQueue.Add(k)
		}
	}
	ctx := c.runs
	c.mu.Unlock()
	if ctx != nil {
		c.verify(ctx, driver)
	}
}

// verify asks the attachers that can tell whether what is attached still is (upstream VolumesAreAttached, each minute). It does
// after a start, once a driver is there, and with the resync. What is not is attached again where it is wanted.
func (c *Controller) verify(ctx context.Context, driver string) {
	type question struct {
		entry *entry
		asks  plugin.AttachVerifier
		about *plugin.Volume
	}
	var questions []question
	c.mu.Lock()
	for _, e := range c.entries {
		asks, ok := e.attacher.(plugin.AttachVerifier)
		if !ok || e.volume == nil || e.actual != attached || e.busy {
			continue
		}
		if driver == "" || plugin.MemberOf(e.attacher, string(e.key.volume)) == driver {
			questions = append(questions, question{e, asks, e.volume})
		}
	}
	c.mu.Unlock()
	for _, q := range questions {
		c.apart.Go(func() {
			still, err := q.asks.StillAttached(ctx, q.about, q.entry.node)
			if err != nil || still {
				return // what is not known is assumed to be as it was
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if q.entry.actual == attached && !q.entry.busy && c.entries[q.entry.key] == q.entry {
				c.opts.Log.Warn("a volume is not attached any more", "volume", q.entry.key.volume, "node", q.entry.node)
				q.entry.actual = uncertain
				c.keyQueue.Add(q.entry.key)
			}
		})
	}
}
