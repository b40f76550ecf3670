package mount

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"berth.io/berth/internal/plugin"
)

// comingPlugin has drivers of which nothing can be told before they are there.
type comingPlugin struct {
	*fakePlugin
	missing atomic.Pointer[error]
	notify  func(string)
}

func (p *comingPlugin) Attachable(v *plugin.Volume) (bool, error) {
	if err := p.missing.Load(); err != nil {
		return false, *err
	}
	return p.fakePlugin.Attachable(v)
}

func (p *comingPlugin) NotifyDrivers(f func(string)) { p.notify = f }

// A driver that is just starting is waited for without a word to the user; one that is not there is told; both volumes are mounted as
// soon as the driver comes.
func TestDriverThatIsNotThereYet(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		told bool
	}{
		"starting": {fmt.Errorf("driver is being asked: %w", plugin.ErrDriverStarting), false},
		"missing":  {fmt.Errorf("driver is not installed: %w", plugin.ErrDriverMissing), true},
	} {
		t.Run(name, func(t *testing.T) {
			var p *comingPlugin
			r := newRig(t, volumes(1), func(r *rig, o *Options) {
				r.plugin.attachable = false
				p = &comingPlugin{fakePlugin: r.plugin}
				p.missing.Store(&c.err)
				o.Plugins = plugin.NewRegistry(p)
			})
			r.manager.SetPod(pod("a", "claim-1"))
			r.manager.PodsComplete()
			r.until("the reason", func() bool {
				s := r.manager.Status("a")
				if len(s.Volumes) != 1 {
					return false
				}
				v := s.Volumes[0]
				return c.told && v.Err != nil || !c.told && strings.Contains(v.Waiting, "is being asked")
			})
			if told := len(r.events.Events) > 0; told != c.told {
				t.Errorf("told %v", told)
			}
			p.missing.Store(nil)
			p.notify("fake")
			r.untilMounted("a")
		})
	}
}
