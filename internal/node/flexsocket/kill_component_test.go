//go:build component

package flexsocket

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/boundary"
)

const lifeDir = "BERTH_TEST_LIFE_DIR"

// The agent is killed before and after each note that it writes or removes, and at what the backend does between them. The next
// agent must complete a whole life of the volume, with what was synced still in it, and leave nothing.
func TestKilledAtEveryNote(t *testing.T) {
	for _, at := range []struct {
		name string
		most int // crossings in a life: attach, mountdevice, mount, unmount, unmountdevice; detach is the one that forgets
	}{
		{"flexsocket/note", 5}, {"flexsocket/forget", 1},
		{"backend-block/publish", 1}, {"backend-block/mount", 1}, {"backend-block/bind", 1},
		{"backend-block/unbind", 1}, {"backend-block/unmount", 1}, {"backend-block/unpublish", 1},
	} {
		for n := 1; n <= at.most; n++ {
			for _, side := range []string{"before", "after"} {
				t.Run(fmt.Sprintf("%s:%s %d", at.name, side, n), func(t *testing.T) {
					dir, err := os.MkdirTemp("", "flexk")
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() {
						if err := pool.Teardown(filepath.Join(dir, "pools")); err != nil {
							t.Error(err)
							return
						}
						os.RemoveAll(dir)
					})
					cmd := exec.Command(os.Args[0], "-test.run", "^TestLifeToBeKilled$", "-test.v")
					cmd.Env = append(os.Environ(), lifeDir+"="+dir, fmt.Sprintf("%s=%s:%s#%d", boundary.EnvKillAt, at.name, side, n))
					out, err := cmd.CombinedOutput()
					if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); err == nil || !ok || status.Signal() != syscall.SIGKILL {
						t.Fatalf("the life was not killed: %v\n%s", err, out)
					}
					a := serveIn(t, dir)
					defer a.stop()
					a.live(t)
					a.nothingNoted()
					if loops := loopsBelow(t, filepath.Join(dir, "pools", "default")); len(loops) > 0 {
						t.Errorf("loop devices are left: %q", loops)
					}
				})
			}
		}
	}
}

func loopsBelow(t *testing.T, dir string) (found []string) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && len(b) > len(dir) && string(b[:len(dir)+1]) == dir+"/" {
			found = append(found, string(b))
		}
	}
	slices.Sort(found)
	return found
}

// TestLifeToBeKilled is the other process.
func TestLifeToBeKilled(t *testing.T) {
	dir := os.Getenv(lifeDir)
	if dir == "" {
		t.Skip("run by TestKilledAtEveryNote")
	}
	a := serveIn(t, dir)
	a.live(t)
	a.stop()
}

// live goes through a volume's life, and finds what an earlier process has synced in it. Like a kubelet it ends what an earlier
// process began before it begins anew.
func (a *agent) live(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	o := options(a.volume("data"), "pv")
	device, pod := a.device("pv"), a.pod("1", "pv")
	file, mark := filepath.Join(pod.Path(), "f"), filepath.Join(a.dir, "synced")
	steps := func(what string, calls ...func() error) {
		t.Helper()
		for i, call := range calls {
			if err := call(); err != nil {
				t.Fatalf("%s, step %d: %v", what, i+1, err)
			}
		}
	}
	away := func() {
		t.Helper()
		steps("take away",
			func() error { return a.unmount(ctx, pod) },
			func() error { return a.driver.UnmountDevice(ctx, device) },
			func() error { return a.driver.Detach(ctx, "pv", "n") })
	}
	if _, err := os.Stat(filepath.Join(a.dir, "begun")); err == nil {
		away()
	}
	steps("begin", func() error { return os.WriteFile(filepath.Join(a.dir, "begun"), nil, 0o600) },
		func() error { _, err := a.driver.Attach(ctx, o, "n"); return err },
		func() error { return a.driver.MountDevice(ctx, device, "", o) },
		func() error { return a.driver.Mount(ctx, pod, o) })
	if _, err := os.Stat(mark); err == nil {
		if b, err := os.ReadFile(file); err != nil || string(b) != "synced" {
			t.Errorf("what was synced is %q, %v", b, err)
		}
	}
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString("synced")
	steps("write", func() error { return err }, f.Sync, f.Close, func() error { return os.WriteFile(mark, nil, 0o600) })
	away()
	if is, err := a.driver.IsAttached(ctx, o, "n"); is || err != nil {
		t.Errorf("still attached: %v", err)
	}
}
