package flexvolume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"berth.io/berth/internal/boundary"
)

// rescanPeriod is for a kernel that gives no inotify watch (its limit is reached).
const rescanPeriod = 10 * time.Second

// makeDir makes the drivers' directory, as upstream does, so that it can be watched.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return boundary.Do("flexvolume/make-plugin-dir", func() error { return os.MkdirAll(dir, 0o755) })
}

// Run watches the drivers' directory until ctx ends.
func (p *Plugin) Run(ctx context.Context) error {
	t := p.table
	if err := makeDir(t.root); err != nil {
		p.log.Warn("the FlexVolume drivers' directory can't be made", "dir", t.root, "err", err)
	}
	defer t.stop()
	watcher, err := fsnotify.NewWatcher()
	if err == nil {
		defer watcher.Close()
		err = watchAll(watcher, t.root)
	}
	t.start(ctx) // after the watch: what comes in between is seen by one of both
	if err != nil {
		p.log.Warn("the FlexVolume drivers' directory can't be watched; it is read every 10 s instead", "dir", t.root, "err", err)
		t.tell("Warning", "FlexVolumeWatchFailed", fmt.Sprintf("%s can't be watched (%v); it is read every %s instead", t.root, err, rescanPeriod))
		return t.rescan(ctx)
	}
	return t.follow(ctx, watcher)
}

func watchAll(w *fsnotify.Watcher, root string) error {
	if err := w.Add(root); err != nil {
		return err
	}
	list, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, d := range list {
		if d.IsDir() && !strings.HasPrefix(d.Name(), ".") {
			if err := w.Add(filepath.Join(root, d.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// rescan reads the directory again and again.
func (t *table) rescan(ctx context.Context) error {
	tick := time.NewTicker(rescanPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			t.scan()
		}
	}
}

// follow turns events into probes.
func (t *table) follow(ctx context.Context, w *fsnotify.Watcher) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-w.Errors:
			// Events may be lost (the queue overflowed): everything is looked at.
			t.log.Warn("watch of the FlexVolume drivers' directory", "err", err)
			t.scan()
		case event := <-w.Events:
			t.seen(ctx, w, event)
		}
	}
}

func (t *table) seen(ctx context.Context, w *fsnotify.Watcher, event fsnotify.Event) {
	if event.Name == t.root {
		if event.Has(fsnotify.Remove) || event.Has(fsnotify.Rename) {
			t.rootGone(ctx, w)
		}
		return
	}
	rel, err := filepath.Rel(t.root, event.Name)
	if err != nil || strings.HasPrefix(rel, "..") {
		return
	}
	base, inside, nested := strings.Cut(rel, "/")
	if nested && strings.HasPrefix(inside, ".") {
		return // written aside, to be renamed when it is whole
	}
	if !nested && event.Has(fsnotify.Create) && !strings.HasPrefix(base, ".") {
		if info, err := os.Lstat(event.Name); err == nil && info.IsDir() {
			if err := w.Add(event.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.log.Warn("a FlexVolume driver's directory can't be watched; what changes in it is seen when it is called", "dir", event.Name, "err", err)
			}
		}
	}
	t.changed(base)
}

// rootGone makes the directory again, as upstream does: else nothing that is installed later would be seen.
func (t *table) rootGone(ctx context.Context, w *fsnotify.Watcher) {
	_ = w.Remove(t.root)
	err := makeDir(t.root)
	if err == nil {
		err = watchAll(w, t.root)
	}
	t.scan()
	if err != nil && ctx.Err() == nil {
		t.log.Warn("the FlexVolume drivers' directory was removed and can't be made again", "dir", t.root, "err", err)
		time.AfterFunc(rescanPeriod, func() {
			if ctx.Err() == nil {
				t.rootGone(ctx, w)
			}
		})
	}
}
