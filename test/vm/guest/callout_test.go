//go:build vmguest

package guest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// kubelet is the data directory of the kubelet that the tests play.
const kubelet = "/var/lib/kubelet"

// answer is what a driver said.
type answer struct {
	Status, Message, Warning, Device, VolumeName string
	Attached                                     bool
	VolumeNewSize                                int64
	Capabilities                                 map[string]bool
	took                                         time.Duration
}

// callDeadline bounds a call-out: longer than the driver's own bounds.
const callDeadline = 3 * time.Minute

// call runs one call-out, and holds it to the protocol: one JSON object on stdout, nothing on stderr, an exit code that agrees.
func call(t *testing.T, driver string, args ...string) answer {
	t.Helper()
	a, err := callWith(nil, driver, args...)
	if err != nil {
		t.Fatalf("%s %s: %v", driver, args, err)
	}
	return a
}

func callWith(env []string, driver string, args ...string) (answer, error) {
	var a answer
	cmd := exec.Command(filepath.Join(plugins, "berth~"+driver, driver), args...)
	cmd.Env = append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	began := time.Now()
	timer := time.AfterFunc(callDeadline, func() { _ = cmd.Process.Kill() })
	err := cmd.Run()
	timer.Stop()
	a.took = time.Since(began)
	if strings.Contains(errs.String(), "boundary: killed at") {
		return a, errKilled
	}
	if errs.Len() > 0 {
		return a, errors.New("stderr: " + errs.String())
	}
	d := json.NewDecoder(&out)
	if err := d.Decode(&a); err != nil {
		return a, err
	}
	if _, rest := d.Token(); !errors.Is(rest, io.EOF) {
		return a, errors.New("more than one object on stdout")
	}
	if (a.Status == "Success") != (err == nil) {
		return a, errors.New("status " + a.Status + " and exit " + cmd.ProcessState.String())
	}
	return a, nil
}

var errKilled = errors.New("killed at a boundary")

// succeeds is call of what must go well.
func succeeds(t *testing.T, driver string, args ...string) answer {
	t.Helper()
	a := call(t, driver, args...)
	if a.Status != "Success" {
		t.Fatalf("%s %s: %s: %s", driver, args, a.Status, a.Message)
	}
	return a
}

// fails is call of what must be refused, with the words in its message.
func fails(t *testing.T, words string, driver string, args ...string) answer {
	t.Helper()
	a := call(t, driver, args...)
	if a.Status != "Failure" || !strings.Contains(a.Message, words) {
		t.Fatalf("%s %s: %s: %s; want a Failure with %q", driver, args, a.Status, a.Message, words)
	}
	return a
}

// twice is succeeds, and once more.
func twice(t *testing.T, driver string, args ...string) answer {
	t.Helper()
	succeeds(t, driver, args...)
	return succeeds(t, driver, args...)
}

// options are those of a call: what a host always sends, and the volume's.
func options(more map[string]string) string {
	all := map[string]string{
		"kubernetes.io/fsType": "", "kubernetes.io/readwrite": "rw", "kubernetes.io/pvOrVolumeName": "pv1",
		"kubernetes.io/pod.name": "p", "kubernetes.io/pod.namespace": "default", "kubernetes.io/pod.uid": "u1",
		"kubernetes.io/serviceAccount.name": "default",
	}
	maps.Copy(all, more)
	text, err := json.Marshal(all)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// with adds to options.
func with(base map[string]string, pairs ...string) map[string]string {
	out := maps.Clone(base)
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i]] = pairs[i+1]
	}
	return out
}

func secret(v string) string { return base64.StdEncoding.EncodeToString([]byte(v)) }

// podDir is a directory for mount, with its parents, as a kubelet makes them.
func podDir(t *testing.T, driver string) string {
	t.Helper()
	name := strings.NewReplacer("/", "-", " ", "-").Replace(t.Name())
	dir := filepath.Join(kubelet, "pods", "6f1c-"+name, "volumes", "berth~"+driver, "pv1")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	return dir
}

// mountLine is the last line of /proc/mounts for a directory, in its fields; nil for none.
func mountLine(t *testing.T, dir string) []string {
	t.Helper()
	text, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) >= 4 && f[1] == dir {
			found = f
		}
	}
	return found
}

// isMounted asserts a mount's source, type and options, by /proc/mounts.
func isMounted(t *testing.T, dir, source, fsType string, options ...string) {
	t.Helper()
	f := mountLine(t, dir)
	if f == nil || f[0] != source || f[2] != fsType {
		t.Fatalf("at %s: %v, want %s %s", dir, f, source, fsType)
	}
	for _, o := range options {
		if !strings.Contains(","+f[3]+",", ","+o+",") {
			t.Errorf("at %s: options %s without %s", dir, f[3], o)
		}
	}
	text, _ := os.ReadFile("/proc/mounts")
	if n := strings.Count(string(text), " "+dir+" "); n != 1 {
		t.Errorf("%d mounts at %s", n, dir)
	}
}

func notMounted(t *testing.T, dir string) {
	t.Helper()
	if f := mountLine(t, dir); f != nil {
		t.Fatalf("mounted at %s: %v", dir, f)
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, args, err, out)
	}
	return string(out)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func holds(t *testing.T, path, text string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != text {
		t.Fatalf("%s holds %q, %v; want %q", path, got, err, text)
	}
}

// survives kills a call-out at each boundary that it crosses, on both sides, and asserts after each death that the next call makes
// it whole: prepare makes the world before, check looks at it after.
func survives(t *testing.T, prepare func(t *testing.T), check func(t *testing.T), driver string, args ...string) {
	t.Helper()
	record := filepath.Join(t.TempDir(), "crossed")
	prepare(t)
	if a, err := callWith([]string{"BERTH_KILL_RECORD=" + record}, driver, args...); err != nil || a.Status != "Success" {
		t.Fatalf("%s %s: %+v %v", driver, args, a, err)
	}
	check(t)
	crossed, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	for _, boundary := range strings.Fields(string(crossed)) {
		for _, side := range []string{":before", ":after"} {
			prepare(t)
			if _, err := callWith([]string{"BERTH_KILL_AT=" + boundary + side}, driver, args...); !errors.Is(err, errKilled) {
				t.Fatalf("%s at %s%s: %v, want its death", driver, boundary, side, err)
			}
			succeeds(t, driver, args...)
			check(t)
		}
	}
	t.Logf("killed at both sides of %s", strings.Join(strings.Fields(string(crossed)), ", "))
}
