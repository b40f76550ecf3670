//go:build component

package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"berth.io/berth/internal/host/mountpoint"
)

// events keeps what was said.
type events struct {
	mu   sync.Mutex
	said []string
}

func (e *events) Event(_ runtime.Object, kind, reason, text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.said = append(e.said, kind+" "+reason+" "+text)
}

func (e *events) Eventf(o runtime.Object, kind, reason, format string, args ...any) {
	e.Event(o, kind, reason, fmt.Sprintf(format, args...))
}

func (e *events) AnnotatedEventf(o runtime.Object, _ map[string]string, kind, reason, format string, args ...any) {
	e.Eventf(o, kind, reason, format, args...)
}

func (e *events) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.said, "\n")
}

// host is one node with a discovery on it, an API that is a fake, and disks that are real.
type host struct {
	*testing.T
	dir    string
	api    *fake.Clientset
	events *events
	stop   func()

	mu      sync.Mutex
	watches map[string]int // begun, by resource
	before  map[string]int // of them before the last start
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{T: t, dir: t.TempDir(), events: &events{}, stop: func() {}, watches: map[string]int{}}
	h.api = fake.NewClientset(node("n"), &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceSystem, UID: "here"}},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fs"}, Provisioner: "kubernetes.io/no-provisioner"},
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "raw"}, Provisioner: "kubernetes.io/no-provisioner"})
	h.api.PrependWatchReactor("*", func(a clienttesting.Action) (bool, apiwatch.Interface, error) {
		w, err := h.api.Tracker().Watch(a.GetResource(), a.GetNamespace())
		h.mu.Lock()
		h.watches[a.GetResource().Resource]++
		h.mu.Unlock()
		return true, w, err
	})
	for _, d := range []string{"fs", "raw"} {
		h.must(os.MkdirAll(filepath.Join(h.dir, d), 0o755))
	}
	h.configure("")
	t.Cleanup(func() { h.stop() })
	return h
}

func (h *host) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

func (h *host) configure(raw string) {
	h.Helper()
	text := fmt.Sprintf("fs: {hostDir: %[1]s/fs, mountDir: %[1]s/fs}\nraw: {hostDir: %[1]s/raw, mountDir: %[1]s/raw, volumeMode: Block%[2]s}\n", h.dir, raw)
	h.must(os.MkdirAll(filepath.Join(h.dir, "config"), 0o755))
	h.must(os.WriteFile(filepath.Join(h.dir, "config", keyClasses), []byte(text), 0o644))
}

// start runs a discovery until the test ends or stop is called.
func (h *host) start(change ...func(*Options)) {
	h.Helper()
	o := Options{Client: h.api, Informers: informers.NewSharedInformerFactory(h.api, 0), Node: "n", Config: filepath.Join(h.dir, "config"),
		LockDir: filepath.Join(h.dir, "locks"), Events: h.events, Log: slog.New(slog.NewTextHandler(h.Output(), nil))}
	for _, c := range change {
		c(&o)
	}
	d, err := New(o)
	h.must(err)
	h.mu.Lock()
	h.before = maps.Clone(h.watches)
	h.mu.Unlock()
	ctx, cancel := context.WithCancel(h.Context())
	o.Informers.Start(ctx.Done())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	h.stop = func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			h.Error(err)
		}
		h.stop = func() {}
	}
	h.watched("persistentvolumes", "nodes", "storageclasses")
}

// watched waits until the discovery that was started last watches these. What happens between an informer's list and its watch, the fake
// API tells nobody.
func (h *host) watched(resources ...string) {
	h.Helper()
	for _, r := range resources {
		h.until("a watch of "+r, func() error {
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.watches[r] <= h.before[r] {
				return errors.New("there is none")
			}
			return nil
		})
	}
}

func (h *host) run(name string, args ...string) string {
	h.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		h.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// loop is a device of 32 MiB.
func (h *host) loop(name string) string {
	h.Helper()
	file := filepath.Join(h.dir, name+".img")
	h.must(os.WriteFile(file, nil, 0o600))
	h.must(os.Truncate(file, 32<<20))
	dev := h.run("losetup", "--find", "--show", file)
	h.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			h.Errorf("losetup --detach %s: %v: %s", dev, err, out)
		}
	})
	return dev
}

// disk is a mounted ext4 in the discovery directory.
func (h *host) disk(name string) string {
	h.Helper()
	dev := h.loop(name)
	h.run("mkfs.ext4", "-q", dev)
	at := filepath.Join(h.dir, "fs", name)
	h.must(os.MkdirAll(at, 0o755))
	h.mount(dev, at, "ext4", 0)
	return at
}

func (h *host) mount(source, at, fsType string, flags uintptr) {
	h.Helper()
	h.must(os.MkdirAll(at, 0o755))
	h.must(unix.Mount(source, at, fsType, flags, ""))
	h.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
}

func (h *host) volume(class, file string) (*v1.PersistentVolume, error) {
	return h.api.CoreV1().PersistentVolumes().Get(h.Context(), volumeName(file, "n", class), metav1.GetOptions{})
}

func (h *host) offered(class, file string) *v1.PersistentVolume {
	h.Helper()
	var pv *v1.PersistentVolume
	h.until("a volume for "+file, func() (err error) {
		pv, err = h.volume(class, file)
		return err
	})
	return pv
}

func (h *host) phase(pv *v1.PersistentVolume, phase v1.PersistentVolumePhase) {
	h.Helper()
	pv = pv.DeepCopy()
	pv.Status.Phase = phase
	_, err := h.api.CoreV1().PersistentVolumes().UpdateStatus(h.Context(), pv, metav1.UpdateOptions{})
	h.must(err)
}

func (h *host) until(what string, done func() error) {
	h.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := done()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			h.Fatalf("waited for %s: %v\nevents:\n%s", what, err, h.events)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (h *host) said(text string) {
	h.Helper()
	h.until(fmt.Sprintf("an event with %q", text), func() error {
		if !strings.Contains(h.events.String(), text) {
			return errors.New("not said")
		}
		return nil
	})
}

// again waits for another volume of the same name: the old one went, its disk was wiped, a new one came.
func (h *host) again(class, file string, check func()) {
	h.Helper()
	h.until("a new volume for "+file, func() error {
		pv, err := h.volume(class, file)
		if err == nil && pv.Status.Phase == v1.VolumeReleased {
			return errors.New("it is still Released")
		}
		return err
	})
	check()
}

// A mounted disk is offered, found again at its second look, emptied when it was released (not through links, root and
// mark stay), and offered again.
func TestDirectoryIsEmptiedAndOfferedAgain(t *testing.T) {
	h := newHost(t)
	at := h.disk("d0")
	outside := filepath.Join(h.dir, "outside")
	h.must(os.WriteFile(outside, []byte("precious"), 0o600))
	h.start()
	pv := h.offered("fs", "d0")
	disk := pv.Annotations[annDisk]
	h.phase(pv, v1.VolumeBound)
	h.must(os.MkdirAll(filepath.Join(at, "a/b/c"), 0o700))
	h.must(os.WriteFile(filepath.Join(at, "a/b/file"), []byte("x"), 0o600))
	h.must(os.Symlink(outside, filepath.Join(at, "link")))
	h.must(os.Symlink(h.dir, filepath.Join(at, "a/up")))
	h.must(os.Chmod(at, 0o2770))
	h.must(os.Chown(at, 0, 1000))
	h.must(unix.Setxattr(at, "user.left", []byte("x"), 0))
	bound, err := h.volume("fs", "d0")
	h.must(err)
	h.phase(bound, v1.VolumeReleased)
	h.again("fs", "d0", func() {
		entries, err := os.ReadDir(at)
		h.must(err)
		if len(entries) != 1 || entries[0].Name() != lostAndFound {
			t.Errorf("left in it: %v", entries)
		}
		if b, err := os.ReadFile(outside); string(b) != "precious" {
			t.Errorf("a link was followed: %v", err)
		}
		var st unix.Stat_t
		h.must(unix.Stat(at, &st))
		if st.Mode&0o7777 != 0o755 || st.Gid != 0 {
			t.Errorf("the root has mode %o and group %d", st.Mode, st.Gid)
		}
		if _, err := unix.Getxattr(at, "user.left", make([]byte, 9)); err == nil {
			t.Error("an attribute is left")
		}
	})
	if now := h.offered("fs", "d0"); now.Annotations[annDisk] != disk {
		t.Errorf("the disk is %s, was %s", now.Annotations[annDisk], disk)
	}
}

// What is refused is named, and what is beside it is offered.
func TestRefusals(t *testing.T) {
	h := newHost(t)
	h.disk("good")
	full := h.disk("full")
	h.must(os.WriteFile(filepath.Join(full, "data"), []byte("x"), 0o600))
	h.must(os.Mkdir(filepath.Join(h.dir, "fs", "plain"), 0o755))
	h.must(os.Mkdir(filepath.Join(h.dir, "elsewhere"), 0o755))
	h.must(os.Symlink(filepath.Join(h.dir, "elsewhere"), filepath.Join(h.dir, "fs", "linked")))
	h.must(os.WriteFile(filepath.Join(h.dir, "fs", "file"), nil, 0o600))
	h.mount(filepath.Join(h.dir, "fs", "good"), filepath.Join(h.dir, "fs", "twice"), "", unix.MS_BIND)
	data := h.loop("data")
	h.run("mkfs.ext4", "-q", data)
	h.must(os.Symlink(data, filepath.Join(h.dir, "raw", "data")))
	blank := h.loop("blank")
	h.must(os.Symlink(blank, filepath.Join(h.dir, "raw", "blank")))
	h.must(os.Symlink("/dev/not-there", filepath.Join(h.dir, "raw", "dangling")))
	foreign := h.disk("foreign")
	root, err := openRoot(foreign)
	h.must(err)
	m, err := newMark(root, "there", "m")
	h.must(err)
	h.must(errors.Join(m.write(root), root.Close()))
	h.start()
	h.offered("raw", "blank")
	for _, text := range []string{
		"/fs/full is not offered in class fs: there is data in it (data)", "/fs/plain is not offered in class fs: it is a directory and nothing is mounted there",
		"/fs/linked is not offered in class fs: it is a link to the directory", "/fs/file is not offered in class fs: it is neither a directory nor a block device",
		"/raw/data is not offered in class raw: there is data on it (ext4)", "/raw/dangling is not offered in class raw",
		"/fs/foreign is not offered in class fs: it carries the mark of another cluster (there)",
	} {
		h.said(text)
	}
	h.said("it is the same disk as")
	list, err := h.api.CoreV1().PersistentVolumes().List(h.Context(), metav1.ListOptions{})
	h.must(err)
	if len(list.Items) != 2 { // blank, and one of good and twice
		t.Errorf("%d volumes", len(list.Items))
	}
	// What was refused for its data is offered as soon as that is gone.
	h.must(os.Remove(filepath.Join(full, "data")))
	h.must(unix.Unmount(filepath.Join(h.dir, "fs", "twice"), 0)) // an event
	h.offered("fs", "full")
}

// A device is wiped whatever its class asks for, and offered again; nothing of the last claim can be read.
func TestDeviceIsWiped(t *testing.T) {
	script := filepath.Join(t.TempDir(), "mine.sh")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho cleaning \"$LOCAL_PV_BLKDEVICE\" \"$1\"\nexec dd if=/dev/zero of=\"$LOCAL_PV_BLKDEVICE\" bs=1M count=32\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, command := range map[string]string{
		"quick": "", "discard": ", blockCleanerCommand: [/scripts/blkdiscard.sh]", "zeros": ", blockCleanerCommand: [/scripts/dd_zero.sh]",
		"shred": ", blockCleanerCommand: [/scripts/shred.sh, '1']", "a program": ", blockCleanerCommand: [" + script + ", 'a b; touch /x']",
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.configure(command)
			dev := h.loop("disk")
			h.must(os.Symlink(dev, filepath.Join(h.dir, "raw", "disk")))
			h.start()
			pv := h.offered("raw", "disk")
			if !strings.HasPrefix(pv.Annotations[annDisk], "loop-") {
				t.Errorf("disk %q", pv.Annotations[annDisk])
			}
			h.run("sh", "-c", "tr '\\0' 'x' </dev/zero | dd of="+dev+" bs=1M count=32 iflag=fullblock conv=fsync status=none")
			h.phase(pv, v1.VolumeReleased)
			h.again("raw", "disk", func() {
				b, err := os.ReadFile(dev)
				h.must(err)
				if i := strings.IndexByte(string(b), 'x'); i >= 0 || len(b) != 32<<20 {
					t.Errorf("%d bytes, the first of the last claim's at %d", len(b), i)
				}
			})
		})
	}
}

// Nothing is wiped that somebody uses, or that is another disk than was offered.
func TestNothingInUseIsWiped(t *testing.T) {
	type world struct {
		*host
		dev, at  string
		raw, dir *v1.PersistentVolume
	}
	for name, tc := range map[string]struct {
		use  func(w *world) (end func())
		says string
	}{
		"a device that is mounted": {func(w *world) func() {
			w.run("mkfs.ext4", "-q", "-F", w.dev)
			at := filepath.Join(w.dir0(), "mounted")
			w.mount(w.dev, at, "ext4", 0)
			w.phase(w.raw, v1.VolumeReleased)
			return func() { w.must(unix.Unmount(at, 0)) }
		}, "mounted at"},
		"a device that is open": {func(w *world) func() {
			c := exec.Command("sh", "-c", "exec 3<"+w.dev+"; echo open; exec sleep 1000")
			out, err := c.StdoutPipe()
			w.must(err)
			w.must(c.Start())
			_, _ = out.Read(make([]byte, 5))
			w.phase(w.raw, v1.VolumeReleased)
			return func() { _ = c.Process.Kill(); _ = c.Wait() }
		}, "is open in process"},
		"a directory that a pod has mounted": {func(w *world) func() {
			at := filepath.Join(w.dir0(), "pod")
			w.mount(w.at, at, "", unix.MS_BIND)
			w.phase(w.dir, v1.VolumeReleased)
			return func() { w.must(unix.Unmount(at, 0)) }
		}, "it is mounted at"},
		"a directory with a mount in it": {func(w *world) func() {
			at := filepath.Join(w.at, "inner")
			w.mount("tmpfs", at, "tmpfs", 0)
			w.phase(w.dir, v1.VolumeReleased)
			return func() { w.must(unix.Unmount(at, 0)) }
		}, "something is mounted in it"},
		"a directory where a process is": {func(w *world) func() {
			c := exec.Command("sleep", "1000")
			c.Dir = w.at
			w.must(c.Start())
			w.phase(w.dir, v1.VolumeReleased)
			return func() { _ = c.Process.Kill(); _ = c.Wait() }
		}, "is used by process"},
		"a claim that is still there": {func(w *world) func() {
			claims := w.api.CoreV1().PersistentVolumeClaims("default")
			_, err := claims.Create(w.Context(), &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "c", UID: "7"}}, metav1.CreateOptions{})
			w.must(err)
			pv := w.dir.DeepCopy()
			pv.Spec.ClaimRef, pv.Status.Phase = &v1.ObjectReference{Namespace: "default", Name: "c", UID: "7"}, v1.VolumeReleased
			_, err = w.api.CoreV1().PersistentVolumes().Update(w.Context(), pv, metav1.UpdateOptions{})
			w.must(err)
			return func() { w.must(claims.Delete(w.Context(), "c", metav1.DeleteOptions{})) }
		}, "claim default/c is still there"},
		"another disk in its place": {func(w *world) func() {
			w.until("the end of a look at it", func() error { return unix.Unmount(w.at, 0) })
			other := w.loop("other")
			w.run("mkfs.ext4", "-q", other)
			w.mount(other, w.at, "ext4", 0)
			w.must(os.WriteFile(filepath.Join(w.at, "precious"), []byte("x"), 0o600))
			w.phase(w.dir, v1.VolumeReleased)
			return nil
		}, "it is not the disk that was offered"},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{host: newHost(t)}
			w.dev, w.at = w.loop("raw"), w.disk("d0")
			w.must(os.Symlink(w.dev, filepath.Join(w.host.dir, "raw", "disk")))
			w.start()
			w.raw, w.dir = w.offered("raw", "disk"), w.offered("fs", "d0")
			w.must(os.WriteFile(filepath.Join(w.at, "precious"), []byte("x"), 0o600))
			end := tc.use(w)
			w.said(tc.says)
			if _, err := os.Stat(filepath.Join(w.at, "precious")); err != nil {
				t.Errorf("the directory was emptied: %v", err)
			}
			if end == nil {
				return
			}
			end()
			w.until("new volumes", func() error {
				for _, v := range [][2]string{{"raw", "disk"}, {"fs", "d0"}} {
					if pv, err := w.volume(v[0], v[1]); err != nil || pv.Status.Phase == v1.VolumeReleased {
						return fmt.Errorf("%s: %v", v, err)
					}
				}
				return nil
			})
		})
	}
}

func (h *host) dir0() string { return h.dir }

// A disk that goes: the volume that nobody has goes with it, that of a claim is reported and found again.
func TestADiskThatGoesAndComes(t *testing.T) {
	h := newHost(t)
	free, taken := h.disk("free"), h.disk("taken")
	h.start()
	h.phase(h.offered("fs", "free"), v1.VolumeAvailable)
	h.phase(h.offered("fs", "taken"), v1.VolumeBound)
	dev := h.run("findmnt", "-no", "SOURCE", taken)
	for _, at := range []string{free, taken} {
		h.until("the end of a look at it", func() error { return unix.Unmount(at, 0) })
	}
	h.until("the free volume to go", func() error {
		if _, err := h.volume("fs", "free"); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there (%w)", err)
		}
		return nil
	})
	h.until("the status of the other", func() error {
		pv, err := h.volume("fs", "taken")
		if err == nil && pv.Status.Reason != reasonGone {
			err = fmt.Errorf("%+v", pv.Status)
		}
		return err
	})
	h.said("Warning DiskGone the disk of this volume is not at")
	// It comes to another place first: no second volume.
	wrong := filepath.Join(h.dir, "fs", "wrong")
	h.mount(dev, wrong, "ext4", 0)
	h.said("the disk of this volume is at " + wrong + " now")
	if _, err := h.volume("fs", "wrong"); !apierrors.IsNotFound(err) {
		t.Errorf("a second volume for one disk: %v", err)
	}
	h.until("the end of a look at it", func() error { return unix.Unmount(wrong, 0) })
	h.mount(dev, taken, "ext4", 0)
	h.until("the status to be right again", func() error {
		pv, err := h.volume("fs", "taken")
		if err == nil && pv.Status.Reason != "" {
			err = fmt.Errorf("%+v", pv.Status)
		}
		return err
	})
}

// Each mount and unmount is told, however close together they come.
func TestEveryMountIsTold(t *testing.T) {
	f, err := openMounts()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	told, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ended <- pollMounts(ctx, f, func() {
			select {
			case told <- struct{}{}:
			default:
			}
		})
	}()
	at := t.TempDir()
	for i := range 100 {
		for what, act := range map[string]func() error{
			"mount": func() error { return unix.Mount("none", at, "tmpfs", 0, "size=4k") }, "unmount": func() error { return unix.Unmount(at, 0) },
		} {
			if is, err := mountpoint.Is(at); err != nil || is != (what == "unmount") {
				continue // the other one first
			}
			if err := act(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-told:
			case <-time.After(10 * time.Second):
				_ = unix.Unmount(at, unix.MNT_DETACH)
				t.Fatalf("the %s of round %d was not told", what, i)
			}
		}
	}
	_ = unix.Unmount(at, unix.MNT_DETACH)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The original's volumes are taken over, not doubled; one that it had released is cleaned.
func TestTheOriginalsVolumesAreAdopted(t *testing.T) {
	h := newHost(t)
	at := h.disk("d0")
	dev := h.loop("raw")
	h.must(os.Symlink(dev, filepath.Join(h.dir, "raw", "disk")))
	h.must(os.WriteFile(filepath.Join(at, "data"), []byte("x"), 0o600))
	for _, e := range []*entry{{class: "fs", file: "d0", path: at}, {class: "raw", file: "disk", path: filepath.Join(h.dir, "raw", "disk"), device: true}} {
		pv := volume(e, v1.VolumeBound)
		delete(pv.Annotations, annDisk)
		pv.Annotations[AnnProvisionedBy] = "local-volume-provisioner-n-another-uid"
		_, err := h.api.CoreV1().PersistentVolumes().Create(h.Context(), pv, metav1.CreateOptions{})
		h.must(err)
	}
	h.start()
	for _, v := range [][2]string{{"fs", "d0"}, {"raw", "disk"}} {
		h.until("the volume to name its disk", func() error {
			if pv := h.offered(v[0], v[1]); pv.Annotations[annDisk] == "" {
				return errors.New("it does not")
			}
			return nil
		})
	}
	list, err := h.api.CoreV1().PersistentVolumes().List(h.Context(), metav1.ListOptions{})
	h.must(err)
	if len(list.Items) != 2 {
		t.Errorf("%d volumes", len(list.Items))
	}
	pv := h.offered("fs", "d0")
	h.phase(pv, v1.VolumeReleased)
	h.again("fs", "d0", func() {
		if _, err := os.Stat(filepath.Join(at, "data")); err == nil {
			t.Error("the data is left")
		}
	})
}

// Two discoveries on one host: one serves the disk, the other says who does, and takes over when the first has ended.
func TestTwoDiscoveries(t *testing.T) {
	h := newHost(t)
	dev := h.loop("raw")
	h.must(os.Symlink(dev, filepath.Join(h.dir, "raw", "disk")))
	other := newHost(t)
	other.must(os.Symlink(dev, filepath.Join(other.dir, "raw", "disk")))
	h.start()
	h.offered("raw", "disk")
	other.start(func(o *Options) { o.LockDir = filepath.Join(h.dir, "locks") })
	other.said("another discovery serves this disk: process")
	if _, err := other.volume("raw", "disk"); !apierrors.IsNotFound(err) {
		t.Errorf("offered twice: %v", err)
	}
}

// A cleaner that hangs is killed at its deadline with all that it started, and tried again.
func TestCleanerIsKilledAtItsDeadline(t *testing.T) {
	h := newHost(t)
	pids := filepath.Join(h.dir, "pids")
	script := filepath.Join(h.dir, "hang.sh")
	h.must(os.WriteFile(script, []byte("#!/bin/sh\nsleep 1000 & echo $! >> "+pids+"\nwait\n"), 0o755))
	h.configure(", blockCleanerCommand: [" + script + "]")
	h.must(os.Symlink(h.loop("raw"), filepath.Join(h.dir, "raw", "disk")))
	h.start(func(o *Options) { o.CleanWithin = func(int64) time.Duration { return 300 * time.Millisecond } })
	h.phase(h.offered("raw", "disk"), v1.VolumeReleased)
	h.said("killed after")
	h.until("a second attempt", func() error {
		b, err := os.ReadFile(pids)
		if err == nil && len(strings.Fields(string(b))) < 2 {
			err = errors.New("none")
		}
		return err
	})
	h.stop()
	b, err := os.ReadFile(pids)
	h.must(err)
	for _, pid := range strings.Fields(string(b)) {
		h.until("the end of process "+pid, func() error {
			if c, err := os.ReadFile("/proc/" + pid + "/cmdline"); err == nil && strings.Contains(string(c), "sleep") {
				return errors.New("it runs")
			}
			return nil
		})
	}
}

// The configuration is read again when it changes; one with an error changes nothing and is told.
func TestConfigurationThatChanges(t *testing.T) {
	h := newHost(t)
	h.start()
	late := filepath.Join(h.dir, "late")
	path := filepath.Join(h.dir, "config", keyClasses)
	h.must(os.WriteFile(path, []byte("fs: {hostDir: late, mountDir: /x}"), 0o644))
	h.said("fs: hostDir: \"late\" is not an absolute path; the last one stays in force")
	h.must(os.WriteFile(path, []byte("fs: {hostDir: "+late+", mountDir: /x}"), 0o644))
	h.said("late: no such file or directory")
	// The directory is made after that, and a disk mounted in it.
	h.mount("tmpfs", filepath.Join(late, "d"), "tmpfs", 0)
	h.offered("fs", "d")
}

// A configuration that can't be used at the start ends a process that has nothing else to do. One that has tells it, touches no disk, and begins
// when it is corrected.
func TestConfigurationThatIsWrongAtTheStart(t *testing.T) {
	for name, wrong := range map[string]string{"no YAML": "fs: [", "a field": "fs: {hostDir: late, mountDir: /x}", "no such directory": ""} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.disk("d0")
			config := filepath.Join(h.dir, "config")
			h.must(os.Rename(config, config+".right"))
			want := "discovery configuration " + config + ": no such file or directory"
			if wrong != "" {
				h.must(os.Mkdir(config, 0o755))
				h.must(os.WriteFile(filepath.Join(config, keyClasses), []byte(wrong), 0o644))
				want = "discovery configuration " + config + ": " + keyClasses
			}
			o := Options{Client: h.api, Informers: informers.NewSharedInformerFactory(h.api, 0), Node: "n", Config: config, Events: h.events}
			if _, err := New(o); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("it is refused with %v, not with %q", err, want)
			}
			h.start(func(o *Options) { o.Patient = true })
			h.said(want)
			h.said("no disk is offered, wiped or taken away until it is corrected")
			if pv, err := h.volume("fs", "d0"); err == nil {
				t.Errorf("%s is offered by no configuration", pv.Name)
			}
			h.must(os.RemoveAll(config))
			h.must(os.Rename(config+".right", config))
			h.offered("fs", "d0")
		})
	}
}

// A disk whose volume nobody has moves with no trace: to another path, and to a node of another name when the old one is no more.
func TestADiskThatMoves(t *testing.T) {
	h := newHost(t)
	at := h.disk("d0")
	dev := h.run("findmnt", "-no", "SOURCE", at)
	h.start()
	h.phase(h.offered("fs", "d0"), v1.VolumeAvailable)
	disk := h.offered("fs", "d0").Annotations[annDisk]
	h.until("the end of a look at it", func() error { return unix.Unmount(at, 0) })
	h.mount(dev, filepath.Join(h.dir, "fs", "d1"), "ext4", 0)
	if got := h.offered("fs", "d1").Annotations[annDisk]; got != disk {
		t.Errorf("disk %s, was %s", got, disk)
	}
	h.phase(h.offered("fs", "d1"), v1.VolumeAvailable)
	h.until("the old volume to go", func() error {
		if _, err := h.volume("fs", "d0"); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there (%w)", err)
		}
		return nil
	})
	h.stop()

	nodes := h.api.CoreV1().Nodes()
	_, err := nodes.Create(h.Context(), node("renamed"), metav1.CreateOptions{})
	h.must(err)
	h.start(func(o *Options) { o.Node = "renamed" })
	h.said("was made for this disk, at " + filepath.Join(h.dir, "fs", "d1") + " of node n")
	h.must(nodes.Delete(h.Context(), "n", metav1.DeleteOptions{}))
	h.until("the volume of the new node", func() error {
		pv, err := h.api.CoreV1().PersistentVolumes().Get(h.Context(), volumeName("d1", "renamed", "fs"), metav1.GetOptions{})
		if err == nil && pv.Annotations[annDisk] != disk {
			err = errors.New("it is for another disk")
		}
		return err
	})
}

// A filesystem without attributes has its mark in a file, which is nobody's data and outlives the emptying; a damaged mark
// is never taken for none.
func TestMarkWithoutAttributes(t *testing.T) {
	h := newHost(t)
	at := filepath.Join(h.dir, "fs", "d0")
	h.mount("ramfs", at, "ramfs", 0)
	if err := unix.Setxattr(at, markAttribute, []byte("x"), 0); !errors.Is(err, unix.ENOTSUP) {
		t.Fatalf("this kernel's ramfs has attributes (%v): another filesystem is needed here", err)
	}
	root, err := openRoot(at)
	h.must(err)
	defer root.Close()
	if _, marked, err := readMark(root); marked || err != nil {
		t.Errorf("before: %v, %v", marked, err)
	}
	m, err := newMark(root, "here", "n")
	h.must(err)
	h.must(m.write(root))
	h.must(os.WriteFile(filepath.Join(at, "data"), nil, 0o600))
	if data, err := contents(root); data != "data" || err != nil {
		t.Errorf("in it: %q, %v", data, err)
	}
	h.must(removeContents(t.Context(), root, func(string) {}))
	if data, err := contents(root); data != "" || err != nil {
		t.Errorf("in it after: %q, %v", data, err)
	}
	if again, marked, err := readMark(root); again != m || !marked || err != nil {
		t.Errorf("%+v, %v, %v, want %+v", again, marked, err, m)
	}
	h.must(os.WriteFile(filepath.Join(at, markFile), []byte("{"), 0o600))
	if _, _, err := readMark(root); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged mark: %v", err)
	}
}

// A discovery directory that is reached through a link: who uses a disk in it is found all the same.
func TestLinkedDiscoveryDirectory(t *testing.T) {
	h := newHost(t)
	at := h.disk("d0")
	h.must(os.Symlink(filepath.Join(h.dir, "fs"), filepath.Join(h.dir, "alias")))
	h.must(os.WriteFile(filepath.Join(h.dir, "config", keyClasses), []byte(fmt.Sprintf("fs: {hostDir: %[1]s/alias, mountDir: %[1]s/alias}", h.dir)), 0o644))
	h.start()
	pv := h.offered("fs", "d0")
	c := exec.Command("sleep", "1000")
	c.Dir = at
	h.must(c.Start())
	h.must(os.WriteFile(filepath.Join(at, "data"), nil, 0o600))
	h.phase(pv, v1.VolumeReleased)
	h.said("is used by process")
	if _, err := os.Stat(filepath.Join(at, "data")); err != nil {
		t.Error(err)
	}
	_ = c.Process.Kill()
	_ = c.Wait()
	h.again("fs", "d0", func() {
		if _, err := os.Stat(filepath.Join(at, "data")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the data: %v", err)
		}
	})
}
