package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/host/mountpoint"
	"berth.io/berth/internal/plugin"
)

// Teardown unpublishes and unstages everything (`berth down`), but for what a plugin keeps for a pod that lives on. Run must be
// running. When ctx ends before all is taken away, the pods get their volumes back, and the error says what stayed and why.
func (m *Manager) Teardown(ctx context.Context) error {
	m.mu.Lock()
	m.drain()
	for {
		left, settled := m.unsettled(), m.settled
		m.mu.Unlock()
		if left == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			m.mu.Lock()
			left = m.unsettled() // with the reasons by now
			m.resume()
			m.mu.Unlock()
			return fmt.Errorf("tear down: %w: %w", ctx.Err(), left)
		case <-settled:
		}
		m.mu.Lock()
	}
}

// drain releases all pods. While not all of them are known, any that the disk remembers may live on.
func (m *Manager) drain() {
	m.draining, m.known, m.complete = true, m.complete, true
	m.wanted = map[types.UID]*v1.Pod{}
	for _, e := range m.pods {
		lives := e.pod != nil && !e.released
		if lives {
			m.wanted[e.uid] = e.pod
		}
		for u := range e.uses {
			k, keeps := u.volume.plugin.(plugin.Keeper)
			u.kept = (lives || !m.known) && keeps && u.state != absent && k.Keeps(u.pod, u.specName)
		}
		m.release(e)
	}
	m.kickAll()
}

// resume undoes drain.
func (m *Manager) resume() {
	m.draining, m.complete = false, m.known
	for _, pod := range m.wanted {
		m.setPod(pod)
	}
	m.wanted = nil
	for _, e := range m.pods {
		for u := range e.uses {
			u.kept = false
		}
	}
	if m.complete {
		m.releaseUnknown()
	}
	m.kickAll()
}

// unsettled names what a teardown has not taken away yet.
func (m *Manager) unsettled() error {
	var errs []error
	for _, v := range m.volumes {
		if v.kept() {
			continue
		}
		err := fmt.Errorf("%s is still mounted", v.specName)
		if last := v.lastError(); last != nil {
			err = fmt.Errorf("%s: %w", v.specName, last)
		}
		errs = append(errs, err)
	}
	if m.reporting {
		errs = append(errs, errors.New("node.status.volumesInUse is being written"))
	}
	for name := range m.reported {
		if m.volumes[name] == nil {
			errs = append(errs, fmt.Errorf("node.status.volumesInUse still names %s", name))
		}
	}
	for _, e := range m.pods {
		if e.cleanErr != nil {
			errs = append(errs, e.cleanErr)
		} else if e.cleaning {
			errs = append(errs, fmt.Errorf("directory of pod %s is being removed", e.uid))
		}
	}
	return errors.Join(errs...)
}

// kept: some pod keeps it through a teardown.
func (v *volume) kept() bool {
	for _, u := range v.uses {
		if u.kept {
			return true
		}
	}
	return false
}

// Busy names the processes that have something open in a volume which a teardown would unmount; nil when there are none. It is
// a look beforehand, so that most teardowns that cannot succeed take nothing away: what begins later is found by Teardown.
func (m *Manager) Busy() error {
	names := map[string]string{}
	m.mu.Lock()
	for _, v := range m.volumes {
		for _, u := range v.uses {
			if u.state != absent && u.path != "" {
				names[u.path] = fmt.Sprintf("volume %s of pod %s", u.specName, podName(u))
			}
		}
	}
	m.mu.Unlock()
	targets := map[string]string{}
	for path, name := range names {
		if !strings.HasPrefix(path, podsDir(m.opts.DataDir)+"/") {
			continue // a directory of the host
		}
		real, err := filepath.EvalSymlinks(path) // a raw device's path is a link
		if err != nil {
			continue
		}
		if is, err := mountpoint.Is(real); err == nil && is { // else nothing is unmounted there
			targets[real] = name
		}
	}
	own := strconv.Itoa(os.Getpid()) + " "
	var errs []error
	for path, users := range mountpoint.UsersOf(targets) {
		users = slices.DeleteFunc(users, func(u string) bool { return strings.HasPrefix(u, own) })
		if len(users) > 0 {
			errs = append(errs, fmt.Errorf("%s is in use by process %s", targets[path], strings.Join(users, ", ")))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}
