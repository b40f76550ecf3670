package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"berth.io/berth/internal/boundary"
)

// registry takes in the plugins of this node: each socket in DIR/plugins_registry is a plugin that wants to register
// (the kubelet's plugin watcher). Every socket has a goroutine of its own (registrar.go), so a plugin that hangs or
// answers rubbish holds up nobody.
type registry struct {
	opts    *Options
	dir     string
	drivers *csiNode
	metrics *metrics

	mu      sync.Mutex
	sockets map[string]*registrar // by path
	names   map[string]*registrar // by driver name: who has it
	running sync.WaitGroup
}

func newRegistry(opts *Options, node *nodeObject, m *metrics) *registry {
	r := &registry{
		opts: opts, dir: filepath.Join(opts.DataDir, "plugins_registry"), metrics: m,
		drivers: newCSINode(opts, node),
		sockets: map[string]*registrar{}, names: map[string]*registrar{},
	}
	node.onUID = r.drivers.setOwner
	return r
}

// run watches the directory until ctx ends. What is registered then stays so in the API: the drivers still run.
func (r *registry) run(ctx context.Context) error {
	defer r.running.Wait()
	r.running.Go(func() { r.drivers.run(ctx) })
	delay := backoff{base: 50 * time.Millisecond, limit: 30 * time.Second}
	for ctx.Err() == nil {
		started := time.Now()
		err := r.watch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(started) > delay.limit {
			delay.reset()
		}
		r.opts.Log.Warn("plugin directory is watched again", "dir", r.dir, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(delay.next()):
		}
	}
	return nil
}

// watch makes the directory if it is missing, takes in what is there and then follows the changes. It returns when the
// watch is lost: the directory was removed, or events were dropped.
func (r *registry) watch(ctx context.Context) error {
	err := boundary.Do("node/make-registry", func() error { return os.MkdirAll(r.dir, 0o750) })
	if err != nil {
		return err
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("inotify: %w (raise fs.inotify.max_user_instances)", err)
	}
	defer w.Close()
	found := map[string]bool{}
	if err := r.scan(ctx, w, r.dir, found); err != nil {
		return err
	}
	r.forgetExcept(found)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-w.Errors:
			return err
		case e, ok := <-w.Events:
			switch {
			case !ok:
				return errors.New("watch closed")
			case e.Name == r.dir && e.Op.Has(fsnotify.Remove|fsnotify.Rename):
				r.forgetExcept(nil)
				return fmt.Errorf("%s was removed", r.dir)
			case e.Op.Has(fsnotify.Create):
				if err := r.scan(ctx, w, e.Name, found); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			case e.Op.Has(fsnotify.Remove), e.Op.Has(fsnotify.Rename):
				r.forgetBelow(e.Name)
			}
		}
	}
}

// scan takes in the socket at path, or those below it. Each directory is watched before it is read, so that nothing
// falls between the two.
func (r *registry) scan(ctx context.Context, w *fsnotify.Watcher, path string, found map[string]bool) error {
	if strings.HasPrefix(filepath.Base(path), ".") {
		return nil // as the kubelet: a plugin's unfinished socket
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	switch {
	case info.Mode()&os.ModeSocket != 0:
		found[path] = true
		r.take(ctx, path, info)
	case info.IsDir():
		if err := w.Add(path); err != nil {
			return err
		}
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := r.scan(ctx, w, filepath.Join(path, e.Name()), found); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// take starts a registrar for the socket, in the place of one for an earlier socket of the same path.
func (r *registry) take(ctx context.Context, path string, info os.FileInfo) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.sockets[path]
	if old != nil && os.SameFile(old.file, info) && old.file.ModTime().Equal(info.ModTime()) {
		return // a scan after a lost watch
	}
	if old != nil {
		old.stop()
	}
	g := newRegistrar(ctx, r, path, info)
	r.sockets[path] = g
	r.running.Go(func() {
		if old != nil {
			<-old.done // the same driver, most likely: one after the other
		}
		g.run()
	})
}

func (r *registry) forgetExcept(found map[string]bool) {
	r.forget(func(path string) bool { return !found[path] })
}

func (r *registry) forgetBelow(path string) {
	r.forget(func(p string) bool { return p == path || strings.HasPrefix(p, path+"/") })
}

// forget ends the registrars of sockets that are gone; they unregister their plugins.
func (r *registry) forget(gone func(path string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for path, g := range r.sockets {
		if gone(path) {
			g.stop()
			delete(r.sockets, path)
		}
	}
}

// claim gives the driver name to g, unless another plugin has it.
func (r *registry) claim(name string, g *registrar) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if holder := r.names[name]; holder != nil && holder != g {
		return fmt.Errorf("a plugin named %s is registered already, by %s", name, holder.path)
	}
	r.names[name] = g
	return nil
}

// yield takes the name back from g.
func (r *registry) yield(name string, g *registrar) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.names[name] == g {
		delete(r.names, name)
	}
}

// kick lets the plugins that wait for a name that g had try again. Only a registered plugin's end kicks: two plugins
// that both fail would wake each other without a pause.
func (r *registry) kick(g *registrar) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, other := range r.sockets {
		if other != g {
			other.kick()
		}
	}
}

// PluginStatus is one socket in the plugin directory.
type PluginStatus struct {
	Socket     string    `json:"socket"`
	Name       string    `json:"name,omitempty"`
	Endpoint   string    `json:"endpoint,omitempty"`
	Registered bool      `json:"registered"`
	Since      time.Time `json:"since"`
	// Error is why the plugin is not registered, for a user.
	Error string `json:"error,omitempty"`
}

func (r *registry) status() []PluginStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]PluginStatus, 0, len(r.sockets))
	for _, g := range r.sockets {
		list = append(list, g.report())
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Socket < list[j].Socket })
	return list
}
