package flexvolume

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/plugin"
)

// Inspect is statfs of the published volume, for drivers that say that it tells something (supportsMetrics). A network filesystem
// whose server is gone holds the call up without end: it is left behind then, and not made again before it has returned.
func (p *Plugin) Inspect(ctx context.Context, v *plugin.Volume) (plugin.Inspection, error) {
	d, err := p.table.peek(p.Driver(v))
	if err != nil || !d.caps.SupportsMetrics || v.Pod == nil {
		return plugin.Inspection{}, err
	}
	path := p.paths.target(v.Pod.UID, d.name, v.SpecName())
	p.mu.Lock()
	hangs := p.asked[path]
	p.asked[path] = true
	p.mu.Unlock()
	if hangs {
		return plugin.Inspection{}, fmt.Errorf("the filesystem at %s has not answered yet", path)
	}
	type outcome struct {
		st  unix.Statfs_t
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		o.err = unix.Statfs(path, &o.st)
		p.mu.Lock()
		delete(p.asked, path)
		p.mu.Unlock()
		done <- o
	}()
	ctx, cancel := context.WithTimeout(ctx, d.host.limits.Init)
	defer cancel()
	select {
	case <-ctx.Done():
		return plugin.Inspection{}, fmt.Errorf("the filesystem at %s gives no answer: %w", path, ctx.Err())
	case o := <-done:
		if o.err != nil {
			return plugin.Inspection{}, fmt.Errorf("statfs %s: %w", path, o.err)
		}
		size := o.st.Bsize
		return plugin.Inspection{
			Bytes:  &plugin.Usage{Total: int64(o.st.Blocks) * size, Used: int64(o.st.Blocks-o.st.Bfree) * size, Available: int64(o.st.Bavail) * size},
			Inodes: &plugin.Usage{Total: int64(o.st.Files), Used: int64(o.st.Files - o.st.Ffree), Available: int64(o.st.Ffree)},
		}, nil
	}
}
