package e2e

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// `berth down` does not tear a volume away from a process, and does not wait for it without a word: it says which
// process has which volume, and takes nothing away. Once the process has ended, it goes through. A command of `berth exec`
// is ended by it.
func TestDownNamesWhoUsesAVolume(t *testing.T) {
	in := own(t)
	s := tellOn(t, in)
	s.apply(claimYAML("data", "32Mi") + podYAML("app", "data"))
	dir := paths(s, s.ready("app"))["data"]
	inside := exec.Command(in.Bin+"/berth", "exec", "--data-dir", in.Dir, "-n", s.ns, "app", "--", "sh", "-c", "exec 3>/data/held; touch /data/started; exec sleep 600")
	if err := inside.Start(); err != nil {
		t.Fatal(err)
	}
	s.until("the command to run", func() (bool, string) {
		_, err := os.Stat(dir + "/started")
		return err == nil, ""
	})
	user := exec.Command("sleep", "600")
	user.Dir = dir
	if err := user.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = user.Process.Kill(); _ = user.Wait() }()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	out, err := in.Berth(ctx, "down")
	if want := strconv.Itoa(user.Process.Pid) + " (sleep)"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("berth down with the volume in use: %q, %v; want an error that names process %s", out, err, want)
	}
	if !in.Running() {
		t.Error("berth up has ended, with a volume still mounted")
	}
	// Nothing was taken down: the pod has its volume, and the command runs on.
	if now := paths(s, s.ready("app"))["data"]; now != dir {
		t.Errorf("the volume is at %q, was at %q", now, dir)
	}
	if err := inside.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the command: %v", err)
	}
	_ = user.Process.Kill()
	_ = user.Wait()
	if out, err := in.Berth(s.ctx, "down"); err != nil {
		t.Errorf("berth down afterwards: %s %v", out, err)
	}
	_ = inside.Wait()
	s.until("the end of berth up", func() (bool, string) { return !in.Running(), "" })
}
