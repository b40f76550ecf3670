package flexvolume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/record"

	"berth.io/berth/internal/plugin"
	"berth.io/berth/test/flexdriver"
)

// rig is a running plugin on directories of its own.
type rig struct {
	*testing.T
	*Plugin
	dir, data, state string
	events           *record.FakeRecorder

	mu   sync.Mutex
	came []string
}

func newRig(t *testing.T, change ...func(*Options)) *rig {
	t.Helper()
	r := &rig{T: t, dir: filepath.Join(t.TempDir(), "exec"), data: t.TempDir(), state: t.TempDir(), events: record.NewFakeRecorder(1000)}
	o := Options{Dir: r.dir, DataDir: r.data, Node: "n1", Events: r.events, Limits: Limits{Init: 5 * time.Second, Call: 5 * time.Second, Attach: 5 * time.Second}}
	for _, f := range change {
		f(&o)
	}
	r.Plugin = New(o)
	r.NotifyDrivers(func(name string) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.came = append(r.came, name)
	})
	return r
}

// run runs the plugin until the test's end.
func (r *rig) run() *rig {
	r.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Plugin.Run(ctx) }()
	r.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			r.Error(err)
		}
	})
	<-r.table.first
	return r
}

func (r *rig) install(name, text string) {
	r.Helper()
	if err := flexdriver.InstallText(r.dir, name, "#!/bin/sh\n"+text); err != nil {
		r.Fatal(err)
	}
}

// until waits for a driver's state; with want "" it is to be loaded.
func (r *rig) until(name, want string) DriverStatus {
	r.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		have := r.Drivers()
		for _, d := range have {
			if d.Name == name && (want == "" && d.Loaded || want != "" && strings.Contains(d.Reason, want)) {
				return d
			}
		}
		if time.Now().After(deadline) {
			r.Fatalf("driver %s did not become %q: %+v", name, want, have)
		}
	}
}

func (r *rig) event(want string) {
	r.Helper()
	for {
		select {
		case e := <-r.events.Events:
			if strings.Contains(e, want) {
				return
			}
		case <-time.After(10 * time.Second):
			r.Fatalf("no event with %q", want)
		}
	}
}

const greets = `echo '{"status":"Success","capabilities":{"attach":false}}'`

// A driver is installed, upgraded, broken, mended and removed while the plugin runs.
func TestDriversComeAndGo(t *testing.T) {
	r := newRig(t).run()
	if _, err := r.Attachable(pv("k8s/nfs", "x")); !errors.Is(err, plugin.ErrDriverMissing) || errors.Is(err, plugin.ErrDriverStarting) ||
		!strings.Contains(err.Error(), "there is no k8s~nfs/nfs in "+r.dir) {
		t.Fatal(err)
	}
	r.install("k8s/nfs", greets)
	if d := r.until("k8s/nfs", ""); d.Capabilities.Attach {
		t.Errorf("%+v", d)
	}
	r.event("FlexVolumeDriverLoaded FlexVolume driver k8s/nfs is loaded: attach no")
	if attaches, err := r.Attachable(pv("k8s/nfs", "x")); attaches || err != nil {
		t.Errorf("%v, %v", attaches, err)
	}
	r.install("k8s/nfs", `echo '{"status":"Success"}'`) // replaced by another
	r.event("was replaced, and is loaded again: attach yes")
	if attaches, err := r.Attachable(pv("k8s/nfs", "x")); !attaches || err != nil {
		t.Errorf("%v, %v", attaches, err)
	}
	if err := os.WriteFile(flexdriver.Path(r.dir, "k8s/nfs"), []byte("#!/bin/sh\n"+greets+"\n"), 0o755); err != nil { // written over
		t.Fatal(err)
	}
	r.event("was replaced, and is loaded again: attach no")
	r.install("k8s/nfs", `echo '{"status":"Failure","message":"no kernel module"}'`)
	r.event("not loaded: init of FlexVolume driver k8s/nfs failed: no kernel module")
	if _, err := r.Attachable(pv("k8s/nfs", "x")); !errors.Is(err, plugin.ErrDriverMissing) || !strings.Contains(err.Error(), "no kernel module") {
		t.Error(err)
	}
	r.install("k8s/nfs", greets)
	r.until("k8s/nfs", "")
	if err := os.Chmod(flexdriver.Path(r.dir, "k8s/nfs"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.until("k8s/nfs", "is not executable: chmod +x")
	if err := os.Chmod(flexdriver.Path(r.dir, "k8s/nfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.until("k8s/nfs", "")
	if err := os.Remove(flexdriver.Path(r.dir, "k8s/nfs")); err != nil {
		t.Fatal(err)
	}
	r.until("k8s/nfs", "is not there")
	r.install("k8s/nfs", greets)
	r.until("k8s/nfs", "")
	if err := os.RemoveAll(filepath.Join(r.dir, "k8s~nfs")); err != nil {
		t.Fatal(err)
	}
	r.event("FlexVolumeDriverRemoved")
	for len(r.Drivers()) > 0 {
		time.Sleep(5 * time.Millisecond)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.came) < 5 || slices.ContainsFunc(r.came, func(n string) bool { return n != "k8s/nfs" }) {
		t.Errorf("told of %v", r.came)
	}
}

// The whole directory goes and comes back.
func TestTheDirectoryIsRemoved(t *testing.T) {
	r := newRig(t)
	r.install("k8s/nfs", greets)
	r.run()
	r.until("k8s/nfs", "")
	if err := os.RemoveAll(r.dir); err != nil {
		t.Fatal(err)
	}
	r.event("FlexVolumeDriverRemoved")
	for { // it is made again
		if _, err := os.Stat(r.dir); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	r.install("k8s/nfs", greets)
	r.until("k8s/nfs", "")
}

// Whatever lies in the directory is reported by name, and the good driver beside it works.
func TestBadDirectories(t *testing.T) {
	r := newRig(t)
	r.install("good/one", greets)
	in := func(elem ...string) string { return filepath.Join(append([]string{r.dir}, elem...)...) }
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"novendor", "empty~driver", "a~b~c", "dir~ectory/ectory", "..~..", "kubernetes.io~csi", ".hidden~driver", "open~dir", "dangling~link", "plain~file", "no~exec", "open~file", "arch~wrong", "silent~init", "mute~init"} {
		must(os.MkdirAll(in(d), 0o755))
	}
	must(
		os.WriteFile(in("novendor/novendor"), []byte("#!/bin/sh\n"+greets), 0o755),
		os.WriteFile(in("a~b~c/c"), []byte("#!/bin/sh\n"+greets), 0o755),
		os.WriteFile(in("kubernetes.io~csi/csi"), []byte("#!/bin/sh\n"+greets), 0o755),
		os.WriteFile(in(".hidden~driver/driver"), []byte("#!/bin/sh\n"+greets), 0o755),
		os.WriteFile(in("open~dir/dir"), []byte("#!/bin/sh\n"+greets), 0o755), os.Chmod(in("open~dir"), 0o777),
		os.Symlink("/no/such/program", in("dangling~link/link")),
		os.WriteFile(in("a~file"), []byte("x"), 0o755),
		os.WriteFile(in("README"), []byte("x"), 0o644),
		os.WriteFile(in("no~exec/exec"), []byte("#!/bin/sh\n"+greets), 0o644),
		os.WriteFile(in("open~file/file"), []byte("#!/bin/sh\n"+greets), 0o755), os.Chmod(in("open~file/file"), 0o757),
		os.WriteFile(in("arch~wrong/wrong"), []byte("\x7fELF and no more"), 0o755),
		os.WriteFile(in("silent~init/init"), []byte("#!/bin/sh\n"), 0o755),
		os.WriteFile(in("mute~init/init"), []byte("#!/bin/sh\necho '{\"status\":\"Not supported\"}'\n"), 0o755),
		os.Symlink(in("good~one"), in("a~link")),
	)
	r.run()
	r.until("good/one", "")
	for name, want := range map[string]string{
		"novendor":          "no vendor: a driver is in a directory called VENDOR~DRIVER",
		"empty/driver":      "empty~driver/driver is not there",
		"a/b~c":             "is not VENDOR/DRIVER",
		"dir/ectory":        "ectory is a directory: want an executable file",
		"open/dir":          "everybody may write to",
		"dangling/link":     "is a link to /no/such/program, which is not there",
		"a/file":            "it is a file: want a directory with the file file in it",
		"no/exec":           "is not executable",
		"open/file":         "everybody may write to",
		"arch/wrong":        "is neither a program for this machine nor a script",
		"silent/init":       "it answered nothing",
		"mute/init":         "init is what every driver must do",
		"a/link":            "it is a symbolic link",
		"plain/file":        "is not there",
		"kubernetes.io/csi": "built-in plugins",
	} {
		if d := r.until(name, want); d.Loaded {
			t.Errorf("%s is loaded", name)
		}
	}
	for _, d := range r.Drivers() {
		if strings.Contains(d.Name, "hidden") || d.Name == "README" {
			t.Errorf("%s is listed", d.Name)
		}
	}
	if attaches, err := r.Attachable(pv("good/one", "x")); attaches || err != nil {
		t.Error(err)
	}
}

// Everybody may write to the directory of all drivers: none is run.
func TestAnOpenDirectory(t *testing.T) {
	r := newRig(t)
	r.install("k8s/nfs", `touch `+filepath.Join(r.state, "ran")+"\n"+greets)
	if err := os.Chmod(r.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	r.run()
	r.until("k8s/nfs", "everybody may write to "+r.dir)
	if _, err := os.Stat(filepath.Join(r.state, "ran")); err == nil {
		t.Error("it was run")
	}
}

// 200 drivers, of which some hang in init, hold nobody up but those that want the hanging ones.
func TestManyDrivers(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Limits.Init = 2 * time.Second })
	for i := range 200 {
		text := greets
		if i%50 == 0 {
			text = "sleep 60"
		}
		r.install(fmt.Sprintf("many/d%d", i), text)
	}
	r.run()
	for i := range 200 {
		want := ""
		if i%50 == 0 {
			want = "gave no answer for 2s and was killed"
		}
		r.until(fmt.Sprintf("many/d%d", i), want)
	}
}

// A driver that hangs in init does not hold up the lookup of another, nor its own for longer than the deadline.
func TestAHangingInitHoldsUpNobody(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Limits.Init = 3 * time.Second })
	r.install("slow/one", "sleep 60")
	r.install("fast/one", greets)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { _ = r.Plugin.Run(ctx) }()
	r.until("fast/one", "")
	began := time.Now()
	if _, err := r.table.get(ctx, "fast/one"); err != nil || time.Since(began) > time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
	if _, err := r.Attachable(pv("slow/one", "x")); !errors.Is(err, plugin.ErrDriverStarting) {
		t.Errorf("%v", err)
	}
	if _, err := r.table.get(ctx, "slow/one"); !errors.Is(err, plugin.ErrDriverMissing) || time.Since(began) > 10*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
}

// "Not supported" is remembered until the driver changes.
func TestNotSupportedIsRemembered(t *testing.T) {
	r := newRig(t)
	counts := filepath.Join(r.state, "isattached")
	text := `case $1 in init) echo '{"status":"Success"}';; *) echo x >>` + counts + `; echo '{"status":"Not supported"}';; esac`
	r.install("k8s/x", text)
	r.run()
	ask := func() {
		t.Helper()
		if still, err := r.StillAttached(t.Context(), pv("k8s/x", "v"), "n1"); !still || err != nil {
			t.Fatalf("%v, %v", still, err)
		}
	}
	ask()
	ask()
	if b, _ := os.ReadFile(counts); len(b) != 2 {
		t.Errorf("asked %d times", len(b)/2)
	}
	if d := r.until("k8s/x", ""); !slices.Equal(d.Unsupported, []string{"isattached"}) {
		t.Errorf("%+v", d)
	}
	r.install("k8s/x", text+"\n# another version")
	ask() // also before the event of its change: the file is another
	if b, _ := os.ReadFile(counts); len(b) != 4 {
		t.Errorf("asked %d times", len(b)/2)
	}
}

// A driver is replaced while one of its call-outs is under way: that one ends as it began, and the next is the new one's.
func TestReplacedDuringACall(t *testing.T) {
	r := newRig(t)
	hold, began := filepath.Join(r.state, "hold"), filepath.Join(r.state, "began")
	if err := os.WriteFile(hold, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	version := func(v string) string {
		return `case $1 in init) echo '{"status":"Success"}';; attach) : >` + began + `; while [ -e ` + hold + ` ]; do sleep 0.02; done; echo '{"status":"Success","device":"` + v + `"}';; *) echo '{"status":"Not supported"}';; esac`
	}
	r.install("k8s/x", version("old"))
	r.run()
	got := make(chan string, 1)
	go func() {
		a, err := r.Attach(context.Background(), pv("k8s/x", "v"), "n1")
		got <- fmt.Sprint(a.DevicePath, err)
	}()
	for c := r.Calls(); len(c) == 0 || c[0].CallOut != "attach"; c = r.Calls() {
		time.Sleep(5 * time.Millisecond)
	}
	for _, err := os.Stat(began); err != nil; _, err = os.Stat(began) { // the call is listed before its program is started
		time.Sleep(5 * time.Millisecond)
	}
	r.install("k8s/x", version("new"))
	r.event("was replaced")
	if err := os.Remove(hold); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s != "old<nil>" {
		t.Error(s)
	}
	if a, err := r.Attach(t.Context(), pv("k8s/x", "v"), "n1"); err != nil || a.DevicePath != "new" {
		t.Errorf("%+v, %v", a, err)
	}
}

// Init is asked again when it has failed, also when nothing of the driver changes; a log beside it does not make it run in a circle.
func TestInitIsTriedAgain(t *testing.T) {
	r := newRig(t)
	ready := filepath.Join(r.state, "ready")
	r.install("k8s/x", `echo try >>"$(dirname "$0")/log"; [ -e `+ready+` ] || { echo '{"status":"Failure","message":"not ready"}'; exit 1; }; `+greets)
	r.run()
	r.until("k8s/x", "not ready")
	time.Sleep(300 * time.Millisecond) // longer than events are collected
	if log, _ := os.ReadFile(filepath.Join(r.dir, "k8s~x/log")); strings.Count(string(log), "try") > 2 {
		t.Errorf("init ran in a circle: %s", log)
	}
	if err := os.WriteFile(ready, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.until("k8s/x", "")
}

// A program that is still being written is loaded when it is whole.
func TestBeingWritten(t *testing.T) {
	r := newRig(t).run()
	path := flexdriver.Path(r.dir, "k8s/x")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("#!/bin/sh\n" + greets + "\n"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * settleTime) // probed while it is open: ETXTBSY, or, on kernels that allow it, loaded
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r.until("k8s/x", "")
}

// Without a running plugin (berth down with nothing running), the drivers are asked once.
func TestProbe(t *testing.T) {
	r := newRig(t)
	r.install("k8s/nfs", greets)
	r.Probe(t.Context())
	if attaches, err := r.Attachable(pv("k8s/nfs", "x")); attaches || err != nil {
		t.Error(err)
	}
}

// TestBackBeforeItWasForgotten: a driver is removed, and is there again between the look that found nothing and the note of it. Its event
// came in between: it must not be lost with what was known of the directory.
func TestBackBeforeItWasForgotten(t *testing.T) {
	for name, event := range map[string]func(*table, *entry){
		"the event waits to be looked at":   func(tb *table, e *entry) { tb.changed(e.base) },
		"the event asked for another probe": func(tb *table, e *entry) { tb.probe(e.base) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			if err := os.MkdirAll(r.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			r.table.start(t.Context()) // and no watch, whose events would hide a lost one
			t.Cleanup(r.table.stop)
			const base = "k8s~nfs"
			r.table.mu.Lock()
			e := r.table.entry(base)
			e.name, e.probing, e.done = "k8s/nfs", true, make(chan struct{})
			r.table.mu.Unlock()
			f, err := look(r.dir, base)
			if !f.nothing {
				t.Fatalf("%+v, %v", f, err)
			}
			r.install("k8s/nfs", greets)
			event(r.table, e)
			r.table.examined(e, f, nil, err)
			r.until("k8s/nfs", "")
			if d, err := r.table.get(t.Context(), "k8s/nfs"); err != nil || d.caps.Attach {
				t.Errorf("%+v, %v", d, err)
			}
		})
	}
}
