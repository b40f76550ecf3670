package e2e

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/test/instance"
)

// Ctrl-C leaves volumes mounted and data readable; the next start finds what is there and goes on.
func TestStopLeavesVolumesMounted(t *testing.T) {
	in := own(t)
	s := tellOn(t, in)
	s.apply(claimYAML("data", "32Mi") + podYAML("app", "data"))
	dir := paths(s, s.ready("app"))["data"]
	before := mountAt(s, dir).ID
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := in.Stop(); err != nil {
		t.Fatal(err)
	}
	if code := in.ExitCode(); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0\n%s", code, in.Output())
	}
	if _, err := os.ReadFile(file); err != nil {
		t.Errorf("after the stop: %v", err)
	}
	if err := in.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.ready("app")
	if after := mountAt(s, dir).ID; after != before {
		t.Errorf("the volume was mounted anew (mount %d, now %d): a restart must not disturb who uses it", before, after)
	}
	s.kubectl("delete", "pod", "app")
	s.podGone("app")
}

// kill -9 takes the API server along, loses nothing, and the next start goes on.
func TestKillNineAndStartAgain(t *testing.T) {
	in := own(t)
	s := tellOn(t, in)
	s.apply(claimYAML("data", "32Mi") + podYAML("app", "data"))
	dir := paths(s, s.ready("app"))["data"]
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("precious"); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	children := childrenOf(t, in.PID())
	if len(children) == 0 {
		t.Fatal("berth up has no child: where is the API server?")
	}
	if err := in.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range children {
		s.within(5*time.Second, "the API server to die with berth up", func() (bool, string) {
			err := syscall.Kill(pid, 0)
			return err == syscall.ESRCH || zombie(pid), "pid " + strconv.Itoa(pid)
		})
	}
	if err := in.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.ready("app")
	if b, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(b) != "precious" {
		t.Errorf("after kill -9: %q, %v", b, err)
	}
	if out := s.berth("orphans"); !strings.Contains(out, "none") {
		t.Errorf("berth orphans: %s", out)
	}
}

// A pod deleted while nothing runs is unmounted after the next start; `berth down` works when nothing runs.
func TestDownWhenNothingRuns(t *testing.T) {
	in := own(t)
	s := tellOn(t, in)
	s.apply(claimYAML("data", "32Mi") + podYAML("app", "data"))
	dir := paths(s, s.ready("app"))["data"]
	if err := in.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := in.Down(context.Background()); err != nil {
		t.Fatal(err)
	}
	if mounted, _ := mountinfo.Mounted(dir); mounted {
		t.Errorf("%s is still mounted after berth down", dir)
	}
	if err := emptied(in); err != nil {
		t.Error(err)
	}
	if err := in.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.until("the volume mounted again", func() (bool, string) {
		mounted, err := mountinfo.Mounted(dir)
		return mounted, errText(err)
	})
}

// Two instances with different data directories run side by side, and two on one directory do not.
func TestInstancesSideBySide(t *testing.T) {
	in := own(t, "--node-name", "second")
	s := tellOn(t, in)
	s.apply(claimYAML("data", "32Mi") + podYAML("app", "data"))
	s.ready("app")
	again, err := instance.New(in.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Launch(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-again.Ended():
	case <-time.After(20 * time.Second):
		t.Fatal("a second berth up on the same directory runs")
	}
	if code := again.ExitCode(); code == 0 || !strings.Contains(again.Output(), "in use") {
		t.Errorf("exit code %d, %s", code, again.Output())
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// childrenOf lists the direct children of a process.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	var pids []int
	for _, path := range stats {
		b, _ := os.ReadFile(path)
		// pid (comm) state ppid …
		_, rest, _ := strings.Cut(string(b), ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(pid) {
			n, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			pids = append(pids, n)
		}
	}
	return pids
}

func zombie(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err != nil || strings.Contains(string(b), ") Z ")
}

// Nobody reads what `berth up` prints any more: it goes on, and goes down in order.
func TestUpOutlivesItsReader(t *testing.T) {
	dir, err := os.MkdirTemp("", "berth-own-")
	if err != nil {
		t.Fatal(err)
	}
	in, err := instance.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	up := exec.Command(filepath.Join(in.Bin, "berth"), "up", "--data-dir", dir, "--pool-size", "1Gi")
	up.Stdout, up.Stderr = w, w
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	ended := make(chan error, 1)
	go func() { ended <- up.Wait() }()
	lines := bufio.NewScanner(r)
	for lines.Scan() && !strings.Contains(lines.Text(), "  ready;") {
	}
	r.Close()
	out, err := in.Berth(t.Context(), "down")
	if err != nil || !strings.Contains(out, "unmounted, detached, stopped") {
		t.Errorf("berth down: %v: %s", err, out)
	}
	if err := <-ended; err != nil {
		t.Errorf("berth up ended with %v", err)
	}
	if err := emptied(in); err != nil {
		t.Error(err)
		return
	}
	os.RemoveAll(dir)
}

// After `berth down` nothing is mounted. From the moment that the next start says "ready", a pod that says Ready has its volumes: what
// somebody writes to its path goes into the volume, and not beside it.
func TestReadyPodsHaveTheirVolumesAfterAStart(t *testing.T) {
	const pods = 12
	in := own(t)
	s := tellOn(t, in)
	manifest := ""
	for i := range pods {
		n := strconv.Itoa(i)
		manifest += claimYAML("data-"+n, "32Mi") + podYAML("app-"+n, "data-"+n)
	}
	s.apply(manifest)
	at := map[string]string{}
	for i := range pods {
		name := "app-" + strconv.Itoa(i)
		for _, path := range paths(s, s.ready(name)) {
			if strings.Contains(path, "kubernetes.io~csi") {
				at[name] = path
			}
		}
	}
	if err := in.Down(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := in.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	list, err := s.client.CoreV1().Pods(s.ns).List(s.ctx, metav1.ListOptions{}) // before the mounts are read: those only become more
	if err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		p := &list.Items[i]
		if !isReady(p) {
			continue
		}
		if mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(at[p.Name])); err != nil || len(mounts) == 0 {
			t.Errorf("pod %s is Ready, and nothing is mounted at %s (%v)", p.Name, at[p.Name], err)
		}
	}
	for name := range at {
		s.ready(name)
		mountAt(s, at[name])
	}
}
