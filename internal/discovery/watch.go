package discovery

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// rescanPeriod is for a kernel that gives no inotify watch (its limit is reached).
const rescanPeriod = 10 * time.Second

// watch wakes the loop when a disk may have come or gone: names in the discovery directories (inotify), mounts (poll of
// mountinfo), block devices (the kernel's uevents and, after its links are made, udev's).
type watch struct {
	d             *Discovery
	configChanged chan struct{}
	notify        *fsnotify.Watcher // nil: the kernel gave none
	// Open before the first pass: it tells of what changes from then on.
	mounts *os.File

	watched map[string]bool // of the loop alone
	config  string          // file or directory
	// again: mounts or watched directories have changed, a watched path may lead elsewhere. No lock: whoever takes events must
	// never wait for the loop, which may wait in fsnotify for the event to be taken.
	again atomic.Bool
}

func newWatch(d *Discovery) *watch {
	w := &watch{d: d, configChanged: make(chan struct{}, 1), watched: map[string]bool{}, config: filepath.Clean(d.opts.Config)}
	var err error
	if w.notify, err = fsnotify.NewWatcher(); err != nil {
		d.log.Warn("the discovery directories can't be watched; they are read every 10 s instead", "error", err)
	}
	if w.mounts, err = openMounts(); err != nil {
		d.log.Warn("mounts can't be watched; a disk that is mounted is found at the next pass", "error", err)
	}
	return w
}

// follow watches the directories of the configuration; of one that is missing, what is nearest above it.
func (w *watch) follow(c *Config, o Options) {
	if w.notify == nil {
		w.d.wakeIn(rescanPeriod)
		return
	}
	again := w.again.Swap(false)
	wanted := map[string]bool{w.configDir(): true}
	for _, class := range c.Classes {
		dir := class.HostDir
		if o.InContainer {
			dir = class.MountDir
		}
		wanted[nearest(dir)] = true
	}
	for dir := range w.watched {
		if !wanted[dir] || again {
			_ = w.notify.Remove(dir)
			delete(w.watched, dir)
		}
	}
	for dir := range wanted {
		if w.watched[dir] {
			continue
		}
		if err := w.notify.Add(dir); err != nil {
			w.d.log.Warn("a discovery directory can't be watched", "dir", dir, "error", err)
			w.d.wakeIn(rescanPeriod)
			continue
		}
		w.watched[dir] = true
	}
}

func (w *watch) configDir() string {
	if st, err := os.Stat(w.config); err == nil && st.IsDir() {
		return w.config
	}
	return filepath.Dir(w.config)
}

func nearest(dir string) string {
	for dir != "/" {
		if st, err := os.Stat(dir); err == nil && st.IsDir() {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return dir
}

func (w *watch) run(ctx context.Context) {
	var wg sync.WaitGroup
	if w.notify != nil {
		wg.Go(func() { w.names(ctx) })
	}
	if w.mounts != nil {
		wg.Go(func() {
			if err := pollMounts(ctx, w.mounts, w.mountsChanged); err != nil {
				w.d.log.Warn("mounts can't be watched any more; a disk that is mounted is found at the next pass", "error", err)
			}
		})
	}
	wg.Go(func() {
		if err := readUevents(ctx, w.d.Wake); err != nil {
			w.d.log.Info("the kernel's device events can't be read; a device whose link is there before it is found at the next pass", "error", err)
		}
	})
	wg.Wait()
	if w.notify != nil {
		_ = w.notify.Close()
	}
}

func (w *watch) mountsChanged() {
	w.again.Store(true)
	w.d.Wake()
}

func (w *watch) names(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-w.notify.Errors: // events may be lost: everything is looked at
			w.d.log.Warn("watch of the discovery directories", "error", err)
			w.changed()
			w.mountsChanged()
		case event := <-w.notify.Events:
			if w.isConfig(event.Name) {
				w.changed()
				continue
			}
			if event.Has(fsnotify.Remove) || event.Has(fsnotify.Rename) { // a watched directory, perhaps
				w.again.Store(true)
			}
			w.d.Wake()
		}
	}
}

func (w *watch) isConfig(name string) bool {
	return name == w.config || strings.HasPrefix(name, w.config+"/")
}

func (w *watch) changed() {
	select {
	case w.configChanged <- struct{}{}:
	default:
	}
}

// openMounts opens mountinfo for pollMounts, and not by os.Open: the runtime would poll the file, too, and the kernel tells each open
// file of a change once, whoever asks first.
func openMounts() (*os.File, error) {
	const name = "/proc/self/mountinfo"
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// pollMounts calls changed whenever a mount of this namespace has come or gone since f, mountinfo, was opened (proc(5): poll gives
// POLLPRI and POLLERR).
func pollMounts(ctx context.Context, f *os.File, changed func()) error {
	defer f.Close()
	r, stop, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	defer context.AfterFunc(ctx, func() { _ = stop.Close() })()
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}, {Fd: int32(r.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		}
		if fds[0].Revents&(unix.POLLPRI|unix.POLLERR) != 0 {
			changed()
		}
	}
}

// Groups of NETLINK_KOBJECT_UEVENT: the kernel's own messages, and udev's, which come when its links are made.
const ueventGroups = 1 | 2

// readUevents calls changed for each event of a block device.
func readUevents(ctx context.Context, changed func()) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: ueventGroups}); err != nil {
		_ = unix.Close(fd)
		return err
	}
	f := os.NewFile(uintptr(fd), "uevent")
	defer context.AfterFunc(ctx, func() { _ = f.Close() })()
	message := make([]byte, 64<<10)
	for {
		n, err := f.Read(message)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil: // messages were lost
			if pe, is := err.(*os.PathError); !is || pe.Err != unix.ENOBUFS {
				return err
			}
			changed()
		case bytes.Contains(message[:n], []byte("SUBSYSTEM=block\x00")):
			changed()
		}
	}
}
