//go:build component

package flexsocket

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"berth.io/berth/internal/backend"
	backendblock "berth.io/berth/internal/backend/block"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/flexvolume"
	"berth.io/berth/internal/flexvolume/block"
	"berth.io/berth/internal/host/loop"
	"berth.io/berth/internal/host/mountpoint"
)

const mib = int64(1) << 20

// agent is a backend on a pool of its own, the socket before it, and the driver that asks there.
type agent struct {
	*backendblock.Backend
	t      testing.TB
	dir    string
	pool   *pool.Pool
	driver flexvolume.Driver
	server *Server
	end    context.CancelFunc
	ended  chan error
}

func serve(t testing.TB) *agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "flex") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	a := serveIn(t, dir)
	t.Cleanup(func() {
		a.stop()
		if err := pool.Teardown(filepath.Join(dir, "pools")); err != nil {
			t.Error(err)
			return // never remove a directory with something mounted in it
		}
		os.RemoveAll(dir)
	})
	return a
}

func serveIn(t testing.TB, dir string) *agent {
	t.Helper()
	a := &agent{t: t, dir: dir}
	t.Setenv(block.EnvSocket, filepath.Join(dir, "s"))
	a.driver = block.New()
	a.start()
	return a
}

func (a *agent) start() {
	a.t.Helper()
	loops, err := loop.NewTable()
	if err != nil {
		a.t.Fatal(err)
	}
	if a.pool, err = pool.Open(a.t.Context(), pool.Options{Dir: filepath.Join(a.dir, "pools"), LimitBytes: 2 << 30, Loops: loops}); err != nil {
		a.t.Fatal(err)
	}
	if a.Backend, err = backendblock.New(backendblock.Options{Pool: a.pool, Loops: loops, Node: "n"}); err != nil {
		a.t.Fatal(err)
	}
	s, err := New(Options{Socket: filepath.Join(a.dir, "s"), Notes: filepath.Join(a.dir, "notes"), Backends: map[string]backend.Backend{"block": a.Backend}})
	if err != nil {
		a.t.Fatal(err)
	}
	a.server = s
	ctx, cancel := context.WithCancel(context.Background())
	a.end, a.ended = cancel, make(chan error, 1)
	go func() { a.ended <- s.Run(ctx) }()
	select {
	case <-s.Serving():
	case err := <-a.ended:
		a.t.Fatal(err)
	}
}

func (a *agent) stop() {
	a.t.Helper()
	a.end()
	if err := <-a.ended; err != nil {
		a.t.Error(err)
	}
	a.Close()
	a.pool.Close()
}

// restart is an upgrade: volumes stay mounted.
func (a *agent) restart() { a.t.Helper(); a.stop(); a.start() }

func (a *agent) volume(name string) string { return a.volumeOf(name, "ext4", 32*mib) }

func (a *agent) volumeOf(name, fsType string, size int64) string {
	a.t.Helper()
	v, err := a.Create(a.t.Context(), backend.CreateRequest{Name: name, RequiredBytes: size, FSType: fsType})
	if err != nil {
		a.t.Fatal(err)
	}
	return v.ID
}

// options as a kubelet hands them over for the PersistentVolume called name.
func options(id, name string) *flexvolume.Options {
	return &flexvolume.Options{Name: name, User: map[string]string{block.OptionVolumeID: id}}
}

func (a *agent) device(name string) flexvolume.Dir {
	return flexvolume.Dir{Root: a.dir, Below: filepath.Join("plugins/kubernetes.io/flexvolume/berth/block/mounts", name), Vendor: "berth", Driver: "block", Volume: name}
}

func (a *agent) pod(uid, name string) flexvolume.Dir {
	return flexvolume.Dir{Root: a.dir, Below: filepath.Join("pods", uid, "volumes/berth~block", name), Vendor: "berth", Driver: "block", Volume: name}
}

// unmount is the driver's, which has nothing to warn of: nothing is forced.
func (a *agent) unmount(ctx context.Context, dir flexvolume.Dir) error {
	a.t.Helper()
	warning, err := a.driver.Unmount(ctx, dir)
	if warning != "" {
		a.t.Errorf("unmount of %s warns: %s", dir.Path(), warning)
	}
	return err
}

// twice does a call as a host does that has not seen the first answer.
func (a *agent) twice(what string, call func() error) {
	a.t.Helper()
	for range 2 {
		if err := call(); err != nil {
			a.t.Fatalf("%s: %v", what, err)
		}
	}
}

func (a *agent) attached(o *flexvolume.Options) bool {
	a.t.Helper()
	is, err := a.driver.IsAttached(a.t.Context(), o, "n")
	if err != nil {
		a.t.Fatal(err)
	}
	return is
}

func (a *agent) nothingNoted() {
	a.t.Helper()
	if left, err := os.ReadDir(filepath.Join(a.dir, "notes", "block")); err != nil || len(left) > 0 {
		a.t.Errorf("notes left: %v, %v", left, err)
	}
}

func wantMounted(t testing.TB, d flexvolume.Dir, want bool) {
	t.Helper()
	if is, err := mountpoint.Is(d.Path()); err != nil || is != want {
		t.Errorf("%s is mounted: %t, %v; want %t", d.Path(), is, err, want)
	}
}

func refused(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("accepted; want a refusal with %q", words)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("refused with %q; want %q in it", err, w)
		}
	}
}

// A volume is attached, mounted for two pods, one of which may only read, grown, and taken away again; each call is made twice,
// and the agent is another process each time.
func TestAVolumesLife(t *testing.T) {
	a := serve(t)
	ctx, id := t.Context(), a.volumeOf("data", "xfs", 320*mib) // XFS grows while it is mounted, whatever the process may do
	o, reads := options(id, "pv"), options(id, "pv")
	reads.ReadOnly = true
	device, first, second := a.device("pv"), a.pod("1", "pv"), a.pod("2", "pv")

	if name, err := a.driver.GetVolumeName(ctx, o); err != nil || name != id {
		t.Fatal(name, err)
	}
	if a.attached(o) {
		t.Error("attached before attach")
	}
	a.twice("attach", func() error { _, err := a.driver.Attach(ctx, o, "n"); return err })
	a.restart()
	if !a.attached(o) {
		t.Error("not attached after attach")
	}
	a.twice("mountdevice", func() error { return a.driver.MountDevice(ctx, device, "", o) })
	a.restart()
	a.twice("mount", func() error { return a.driver.Mount(ctx, first, o) })
	a.twice("mount for reading", func() error { return a.driver.Mount(ctx, second, reads) })
	if err := os.WriteFile(filepath.Join(first.Path(), "f"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(second.Path(), "g"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("a write where only reading is allowed: %v", err)
	}

	a.twice("expandvolume", func() error {
		size, err := a.driver.ExpandVolume(ctx, o, device, 640*mib, 320*mib)
		if size != 640*mib {
			t.Errorf("grown to %d bytes", size)
		}
		return err
	})
	a.twice("expandfs", func() error { return a.driver.ExpandFS(ctx, o, "", device, 640*mib, 320*mib) })
	var st syscall.Statfs_t
	if err := syscall.Statfs(first.Path(), &st); err != nil || int64(st.Blocks)*st.Bsize < 500*mib {
		t.Errorf("the filesystem has %d bytes, %v", int64(st.Blocks)*st.Bsize, err)
	}
	// Upstream's controllers never call expandvolume, and its node names the pod's directory.
	a.twice("expandfs alone", func() error { return a.driver.ExpandFS(ctx, o, "", first, 960*mib, 640*mib) })
	if err := syscall.Statfs(first.Path(), &st); err != nil || int64(st.Blocks)*st.Bsize < 800*mib {
		t.Errorf("the filesystem has %d bytes, %v", int64(st.Blocks)*st.Bsize, err)
	}
	refused(t, a.driver.ExpandFS(ctx, o, "", a.device("other"), 960*mib, 640*mib), "has not mounted")

	a.restart()
	refused(t, a.driver.UnmountDevice(ctx, device), "published at")
	a.twice("unmount", func() error { return a.unmount(ctx, first) })
	a.twice("unmount", func() error { return a.unmount(ctx, second) })
	a.restart()
	a.twice("unmountdevice", func() error { return a.driver.UnmountDevice(ctx, device) })
	wantMounted(t, device, false)
	a.twice("detach by the name that upstream has", func() error { return a.driver.Detach(ctx, "pv", "n") })
	if a.attached(o) {
		t.Error("attached after detach")
	}
	a.nothingNoted()
	if err := a.Delete(ctx, id); err != nil {
		t.Errorf("the volume is still held: %v", err)
	}
}

// Detach takes the id, too, and a host from before Kubernetes 1.6 names no node.
func TestDetachByID(t *testing.T) {
	a := serve(t)
	o := options(a.volume("data"), "pv")
	for _, node := range []string{"n", ""} {
		if _, err := a.driver.Attach(t.Context(), o, "n"); err != nil {
			t.Fatal(err)
		}
		if err := a.driver.Detach(t.Context(), o.User[block.OptionVolumeID], node); err != nil || a.attached(o) {
			t.Errorf("detach from node %q: %v", node, err)
		}
	}
	a.nothingNoted()
	refused(t, a.driver.Detach(t.Context(), "/dev/loop0", "n"), "answers no devices")
}

// One volume is never mounted by the CSI driver and by this one at once, and neither takes away what is the other's.
func TestTheCSIDriverAndThisOneExcludeEachOther(t *testing.T) {
	a := serve(t)
	ctx := t.Context()
	staged := filepath.Join(a.dir, "csi")
	byCSI := func(id string) error { return a.Stage(ctx, backend.StageRequest{ID: id, Path: staged}) }

	t.Run("attached by CSI", func(t *testing.T) {
		o := options(a.volume("attached"), "pv")
		id := o.User[block.OptionVolumeID]
		if err := a.Attach(ctx, id, "n", false); err != nil {
			t.Fatal(err)
		}
		_, err := a.driver.Attach(ctx, o, "n")
		refused(t, err, "in use", "CSI")
		if err := a.driver.Detach(ctx, "pv", "n"); err != nil {
			t.Error(err)
		}
		if v, err := a.Get(ctx, id); err != nil || len(v.Nodes) != 1 {
			t.Errorf("the CSI driver's attachment is gone: %+v, %v", v, err)
		}
	})
	t.Run("attached by FlexVolume", func(t *testing.T) {
		o := options(a.volume("flex-attached"), "pv")
		id := o.User[block.OptionVolumeID]
		attach := func() error {
			return a.server.Exclude(ctx, "block", id, func() error { return a.Attach(ctx, id, "n", false) })
		}
		if _, err := a.driver.Attach(ctx, o, "n"); err != nil {
			t.Fatal(err)
		}
		refused(t, attach(), "in use", "FlexVolume driver, as pv")
		if err := a.driver.Detach(ctx, "pv", "n"); err != nil {
			t.Fatal(err)
		}
		if err := attach(); err != nil {
			t.Error(err)
		}
		_, err := a.driver.Attach(ctx, o, "n")
		refused(t, err, "by its CSI driver")
	})
	t.Run("staged by CSI", func(t *testing.T) {
		o := options(a.volume("staged"), "pv")
		id := o.User[block.OptionVolumeID]
		if err := byCSI(id); err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(a.dir, "target")
		if err := a.Publish(ctx, backend.PublishRequest{ID: id, StagingPath: staged, Target: target}); err != nil {
			t.Fatal(err)
		}
		refused(t, a.driver.MountDevice(ctx, a.device("pv"), "", o), "staged at "+staged)
		refused(t, a.driver.Mount(ctx, a.pod("1", "pv"), o), "mountdevice has not mounted")
		a.twice("unmount after the refusal", func() error { return a.unmount(ctx, a.pod("1", "pv")) })
		a.twice("unmountdevice after the refusal", func() error { return a.driver.UnmountDevice(ctx, a.device("pv")) })
		a.nothingNoted()
		if err := errors.Join(a.Unpublish(ctx, id, target), a.Unstage(ctx, id, staged)); err != nil {
			t.Error(err)
		}
	})
	t.Run("mounted by FlexVolume", func(t *testing.T) {
		o := options(a.volume("flex"), "pv")
		if err := a.driver.MountDevice(ctx, a.device("pv"), "", o); err != nil {
			t.Fatal(err)
		}
		err := byCSI(o.User[block.OptionVolumeID])
		if !errors.Is(err, backend.ErrInUse) {
			t.Errorf("staged by the CSI driver as well: %v", err)
		}
		refused(t, a.driver.MountDevice(ctx, a.device("other"), "", o), "is mounted at "+a.device("pv").Path())
		a.restart()
		if err := byCSI(o.User[block.OptionVolumeID]); !errors.Is(err, backend.ErrInUse) {
			t.Errorf("staged by the CSI driver after a restart: %v", err)
		}
		if err := a.driver.UnmountDevice(ctx, a.device("pv")); err != nil {
			t.Error(err)
		}
	})
}

func TestRefusals(t *testing.T) {
	a := serve(t)
	ctx, id := t.Context(), a.volume("data")
	attach := func(o *flexvolume.Options, node string) error { _, err := a.driver.Attach(ctx, o, node); return err }

	refused(t, attach(options(id, "pv"), "elsewhere"), `"elsewhere"`, `on node "n"`, "nodeSelector")
	a.nothingNoted()
	refused(t, attach(options("vol-0123456789abcdef", "pv"), "n"), "no pool of this node has it")
	refused(t, attach(&flexvolume.Options{Name: "pv"}, "n"), "volumeID is missing")
	refused(t, attach(options("../../etc", "pv"), "n"), "volume id")
	misspelt := options(id, "pv")
	misspelt.User["volumeId"] = id
	refused(t, attach(misspelt, "n"), `"volumeId"`)
	wrong := options(id, "pv")
	wrong.FSType = "xfs"
	refused(t, a.driver.MountDevice(ctx, a.device("pv"), "", wrong), "ext4")
	wantMounted(t, a.device("pv"), false)

	other := a.pod("1", "foreign")
	if err := os.MkdirAll(other.Path(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", other.Path(), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	refused(t, a.unmount(ctx, other), "left alone")
	wantMounted(t, other, true)
	if err := syscall.Unmount(other.Path(), 0); err != nil {
		t.Error(err)
	}
}

// Two pods have each a volume of their own that both call "data": upstream's kubelet would detach both by that name.
func TestTwoVolumesOfOneName(t *testing.T) {
	a := serve(t)
	one, two := options(a.volume("one"), "data"), options(a.volume("two"), "data")
	for _, o := range []*flexvolume.Options{one, two} {
		if _, err := a.driver.Attach(t.Context(), o, "n"); err != nil {
			t.Fatal(err)
		}
	}
	refused(t, a.driver.Detach(t.Context(), "data", "n"), one.User[block.OptionVolumeID], two.User[block.OptionVolumeID], "names of their own")
	for _, o := range []*flexvolume.Options{one, two} {
		if err := a.driver.Detach(t.Context(), o.User[block.OptionVolumeID], "n"); err != nil || a.attached(o) {
			t.Error(err)
		}
	}
}

// A machine that lost its power has no mounts, and notes of them.
func TestNotesOfMountsThatAreGone(t *testing.T) {
	a := serve(t)
	o := options(a.volume("data"), "pv")
	if err := a.driver.MountDevice(t.Context(), a.device("pv"), "", o); err != nil {
		t.Fatal(err)
	}
	a.stop()
	if err := syscall.Unmount(a.device("pv").Path(), 0); err != nil {
		t.Fatal(err)
	}
	a.start()
	a.twice("unmountdevice", func() error { return a.driver.UnmountDevice(t.Context(), a.device("pv")) })
	a.twice("mountdevice elsewhere", func() error { return a.driver.MountDevice(t.Context(), a.device("other"), "", o) })
	a.twice("unmountdevice", func() error { return a.driver.UnmountDevice(t.Context(), a.device("other")) })
	a.nothingNoted()
}

func TestTheSocketIsRootsAlone(t *testing.T) {
	a := serve(t)
	fi, err := os.Lstat(filepath.Join(a.dir, "s"))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
}
