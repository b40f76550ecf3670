package e2e

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"

	"berth.io/berth/test/instance"
)

// A raw disk as the pool: formatted when it is blank, used again at the next start, refused when it holds something.
func TestPoolOnARawDevice(t *testing.T) {
	dev := rawDevice(t, 1<<30)
	dir, err := os.MkdirTemp("", "berth-dev-")
	if err != nil {
		t.Fatal(err)
	}
	in, err := instance.New(dir, "--pool-device", dev)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Down(context.Background()); err != nil {
			t.Errorf("berth down: %v", err)
			return
		}
		os.RemoveAll(dir)
	})
	if err := in.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := tellOn(t, in)
	s.apply(claimYAML("data", "64Mi") + podYAML("app", "data"))
	at := paths(s, s.ready("app"))["data"]
	mountAt(s, at)
	if err := in.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := in.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.until("the volume mounted again", func() (bool, string) {
		mounted, err := mountinfo.Mounted(at)
		return mounted, errText(err)
	})

	other := rawDevice(t, 64<<20)
	if out, err := exec.Command("mkfs.ext4", "-q", other).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	elsewhere, err := os.MkdirTemp("", "berth-dev-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(elsewhere)
	no, err := instance.New(elsewhere, "--pool-device", other)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, no, "ext4")
}

// rawDevice is a loop device that stands for a disk.
func rawDevice(t *testing.T, size int64) string {
	t.Helper()
	f, err := os.CreateTemp("", "berth-disk-")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", f.Name()).Output()
	if err != nil {
		t.Fatal(err)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", dev, err, out)
		}
		os.Remove(f.Name())
	})
	return dev
}
