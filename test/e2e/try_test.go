package e2e

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"

	"berth.io/berth/test/instance"
)

// buildSmall builds the small correct driver of test/try, which has a bug on demand.
var buildSmall = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(shared.Dir, "small")
	out, err := exec.Command("go", "build", "-o", bin, "berth.io/berth/test/try/driver").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

// bench is a user of `berth try`, with a directory of its own for what the bench makes.
type bench struct {
	*testing.T
	tmp, driver string
}

func newBench(t *testing.T, bug string) *bench {
	t.Helper()
	bin, err := buildSmall()
	if err != nil {
		t.Fatal(err)
	}
	tmp, err := os.MkdirTemp("", "bt") // short: there are sockets below it
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{T: t, tmp: tmp, driver: bin + " --state={{dir}} --endpoint={{endpoint}}"}
	if bug != "" {
		b.driver += " --bug=" + bug
	}
	t.Cleanup(func() {
		if left := b.left(); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		os.Remove(tmp)
	})
	return b
}

// left is what the bench has in the world: directories, mounts, loop devices, processes.
func (b *bench) left() (all []string) {
	b.Helper()
	entries, err := os.ReadDir(b.tmp)
	if err != nil {
		b.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, "directory "+e.Name())
	}
	return append(all, b.leftRunning()...)
}

// leftRunning is what keeps resources: a killed bench may leave files for the next one, but nothing of this.
func (b *bench) leftRunning() (all []string) {
	b.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(b.tmp))
	if err != nil {
		b.Fatal(err)
	}
	for _, m := range mounts {
		all = append(all, "mount "+m.Mountpoint)
	}
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(text), b.tmp+"/") {
			all = append(all, "loop device of "+strings.TrimSpace(string(text)))
		}
	}
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range commands {
		if text, err := os.ReadFile(f); err == nil && bytes.Contains(text, []byte(b.tmp+"/")) {
			all = append(all, "process "+strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
	return all
}

func (b *bench) command(args ...string) *exec.Cmd {
	c := exec.Command(filepath.Join(os.Getenv(instance.EnvBin), "berth"), append([]string{"try"}, args...)...)
	c.Env = append(os.Environ(), "TMPDIR="+b.tmp)
	return c
}

// tried is the part of the report that the tests read.
type tried struct {
	Steps []struct {
		Name, Outcome, Reason string
		Violations            []struct{ Rule, Section string }
		Shown                 []string
		RPCs                  []struct{ Method, Injected string } `json:"rpcs"`
	}
	Summary map[string]int
}

func (r *tried) rules() (all []string) {
	for _, s := range r.Steps {
		for _, v := range s.Violations {
			all = append(all, v.Rule)
		}
	}
	return all
}

// run runs the bench to its end and returns its report, the exit code, and what it told.
func (b *bench) run(args ...string) (*tried, int, string) {
	b.Helper()
	c := b.command(append([]string{"--driver", b.driver, "-o", "json"}, args...)...)
	var out, told bytes.Buffer
	c.Stdout, c.Stderr = &out, &told
	err := c.Run()
	if c.ProcessState == nil {
		b.Fatal(err)
	}
	r := &tried{}
	if out.Len() > 0 {
		if err := json.Unmarshal(out.Bytes(), r); err != nil {
			b.Fatalf("%v in\n%s", err, out.String())
		}
		if strings.Contains(out.String(), "hunter2") {
			b.Error("the report shows a secret")
		}
	}
	return r, c.ProcessState.ExitCode(), told.String()
}

// A correct driver passes everything: the real flow, csi-sanity, every fault, many volumes at once.
func TestTryCorrectDriver(t *testing.T) {
	b := newBench(t, "")
	junit := filepath.Join(t.TempDir(), "report.xml")
	r, code, told := b.run("--scale", "20", "--junit", junit, "--secret", "password=hunter2hunter2", "--csidriver", "../try/driver/csidriver.yaml")
	if code != 0 {
		t.Fatalf("exit code %d:\n%s", code, told)
	}
	injected := map[string]bool{}
	for _, s := range r.Steps {
		if s.Outcome == "skipped" {
			t.Errorf("%s was skipped: %s", s.Name, s.Reason)
		}
		for _, c := range s.RPCs {
			injected[c.Injected] = true
		}
	}
	for _, what := range []string{"driver killed during the call", "answer lost", "delivered after its deadline", "sent twice: the second time"} {
		if !injected[what] {
			t.Errorf("no RPC was spoilt this way: %s", what)
		}
	}
	text, err := os.ReadFile(junit)
	var suites struct {
		Failures int `xml:"failures,attr"`
		Tests    int `xml:"tests,attr"`
	}
	if err != nil || xml.Unmarshal(text, &suites) != nil || suites.Failures != 0 || suites.Tests < 50 {
		t.Errorf("JUnit has %+v: %v", suites, err)
	}
}

// A driver with its controller service on a socket of its own; the two share their state, as a backend would be shared.
func TestTryControllerApart(t *testing.T) {
	b := newBench(t, "")
	state := " --state=" + t.TempDir()
	controller := b.driver + " --services=controller" + state
	b.driver += " --services=node" + state
	r, code, told := b.run("--controller", controller, "--only", "protocol,mount,snapshot,expand-online,fault-kill,fault-lost")
	if code != 0 {
		t.Errorf("exit code %d, found %q:\n%s", code, r.rules(), told)
	}
}

// Each bug is found, and named with the rule that it breaks.
func TestTryBrokenDrivers(t *testing.T) {
	for _, c := range []struct{ bug, steps, rule string }{
		{"smaller-than-asked", "access", "CreateVolume/capacity-below-required"},
		{"another-volume-again", "idempotency", "CreateVolume/same-name-other-id"},
		{"data-lost-at-unstage", "idempotency", "volume/data-lost"},
		{"advertises-expansion", "promises", "ControllerExpandVolume/advertised-but-unimplemented"},
		{"delete-missing-fails", "idempotency", "DeleteVolume/missing-not-ok"},
		{"list-loses-a-page", "paging", "ListVolumes/paging-loses"},
		{"publishes-no-mount", "idempotency", "NodePublishVolume/not-a-mount"},
		{"errors-without-message", "promises", "NodeStageVolume/error-without-message"},
		{"shows-secrets", "access", "CreateVolume/secret-in-answer"},
		{"any-size-again", "idempotency", "CreateVolume/incompatible-accepted"},
		{"leaks-at-delete", "idempotency", "DeleteVolume/still-there"},
	} {
		t.Run(c.bug, func(t *testing.T) {
			r, code, told := newBench(t, c.bug).run("--only", c.steps, "--secret", "password=hunter2hunter2")
			if code != 1 || !slices.Contains(r.rules(), c.rule) {
				t.Errorf("exit code %d, found %q, want %s:\n%s", code, r.rules(), c.rule, told)
			}
		})
	}
}

// Bugs that only the flow through the API shows, with what Kubernetes would have said.
func TestTryBrokenInTheFlow(t *testing.T) {
	for _, c := range []struct{ bug, steps, rule string }{
		{"read-only-ignored", "read-only", "NodePublishVolume/readonly-ignored"},
		{"empty-snapshots", "snapshot", "CreateVolume/snapshot-not-restored"},
		{"forgets-at-restart", "restart", "ControllerPublishVolume/forgotten"},
		{"crashes-at-stage", "mount", "driver/crashed"},
	} {
		t.Run(c.bug, func(t *testing.T) {
			r, code, told := newBench(t, c.bug).run("--only", c.steps)
			if code != 1 || !slices.Contains(r.rules(), c.rule) {
				t.Errorf("exit code %d, found %q, want %s:\n%s", code, r.rules(), c.rule, told)
			}
			if c.bug == "crashes-at-stage" && !slices.ContainsFunc(r.Steps[1].Shown, func(l string) bool { return strings.Contains(l, "FailedMount") }) {
				t.Errorf("Kubernetes shows %q", r.Steps[1].Shown)
			}
		})
	}
}

// A driver that is not there, ends, or is none is told in words and with exit code 2.
func TestTryBadInput(t *testing.T) {
	for _, c := range []struct {
		name, driver, bug, want string
		args                    []string
	}{
		{name: "no driver", driver: " ", want: "--driver is needed"},
		{name: "no socket", driver: "/nowhere/csi.sock", want: "there is no driver at"},
		{name: "no command", driver: "no-such-driver --x", want: "cannot be run"},
		{name: "an open quote", driver: "a 'b", want: "not closed"},
		{name: "ends at once", bug: "exits-at-start", want: "no route to host"},
		{name: "rubbish", bug: "rubbish-on-the-socket", want: "does not speak gRPC"},
		{name: "no such step", args: []string{"--only", "banana"}, want: "expand-online"},
		{name: "no size", args: []string{"--size", "banana"}, want: "is not a size"},
		{name: "no CSIDriver", args: []string{"--csidriver", "/nowhere", "--only", "provision"}, want: "--csidriver"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, c.bug)
			if c.driver != "" {
				b.driver = c.driver
			}
			_, code, told := b.run(c.args...)
			if code != 2 || !strings.Contains(told, c.want) {
				t.Errorf("exit code %d, want 2 and %q:\n%s", code, c.want, told)
			}
		})
	}
}

// A new instance, whose API begins to serve the kinds of snapshots only then, takes the first snapshot of a driver that dies in each RPC.
func TestTryFirstSnapshotOfADriverThatDies(t *testing.T) {
	r, code, told := newBench(t, "").run("--only", "fault-kill")
	if code != 0 {
		t.Errorf("exit code %d, found %q:\n%s", code, r.rules(), told)
	}
}

// Nothing is left behind by Ctrl-C, and by kill -9 nothing but files, which the next run takes away.
func TestTryEndedByTheUser(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			b := newBench(t, "")
			c := b.command("--driver", b.driver, "--only", "block,fault-kill")
			told := &told{text: make(chan string, 1000)}
			c.Stdout = told
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			told.await(t, "ok    block")
			if err := c.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			_ = c.Wait()
			if sig == syscall.SIGINT {
				return // newBench looks
			}
			for deadline := time.Now().Add(time.Minute); len(b.leftRunning()) > 0; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("left by kill -9: %q", b.leftRunning())
				}
			}
			if _, code, told := b.run("--only", "identity"); code != 0 || !strings.Contains(told, "took away what a killed run left") {
				t.Errorf("the next run: exit code %d\n%s", code, told)
			}
		})
	}
}

// told follows the output of a command.
type told struct{ text chan string }

func (o *told) Write(p []byte) (int, error) {
	select {
	case o.text <- string(p):
	default:
	}
	return len(p), nil
}

func (o *told) await(t *testing.T, want string) {
	t.Helper()
	all := ""
	for end := time.After(2 * time.Minute); !strings.Contains(all, want); {
		select {
		case s := <-o.text:
			all += s
		case <-end:
			t.Fatalf("it did not say %q:\n%s", want, all)
		}
	}
}

// Our own driver, served by another instance, passes as anybody's would.
func TestTryOwnDriver(t *testing.T) {
	b := newBench(t, "")
	b.driver = filepath.Join(shared.Dir, "plugins", "block.csi.berth.io", "csi.sock")
	r, code, told := b.run("--only", "protocol,mount,snapshot,block,ephemeral,fault-kill,fault-twice", "--csidriver", "../../internal/standalone/manifests/berth.yaml",
		"--size", "320Mi", "--class-parameters", "csi.storage.k8s.io/fstype=xfs")
	if code != 0 {
		t.Errorf("exit code %d, found %q:\n%s", code, r.rules(), told)
	}
}
