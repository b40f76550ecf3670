package e2e

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// `berth down` does not tear a volume away from a process, and does not wait for it without a word: it says which
// process has which volume. Once the process has ended, it goes through. A command of `berth exec` is ended.
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
	_ = inside.Wait()
	if !in.Running() {
		t.Error("berth up has ended, with a volume still mounted")
	}
	_ = user.Process.Kill()
	_ = user.Wait()
	if out, err := in.Berth(s.ctx, "down"); err != nil {
		t.Errorf("berth down afterwards: %s %v", out, err)
	}
}
