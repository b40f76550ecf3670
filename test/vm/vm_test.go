//go:build vm

// Package vm runs the tests that need a kernel with NFS, CIFS and device-mapper in an emulated machine: one boot, one compiled
// test binary (guest/). `make test-vm`.
package vm

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

const (
	buildDeadline = 10 * time.Minute
	guestDeadline = time.Hour
	diskBytes     = 3 << 30 // sparse
)

// TestGuest boots the machine once and runs guest/ in it. BERTH_VM_RUN chooses tests as -run does.
func TestGuest(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("the machine's root is this one's, which only root can read: run this as root")
	}
	dir := t.TempDir()
	program, tests, disk := filepath.Join(dir, "berth-flexvolume"), filepath.Join(dir, "guest.test"), filepath.Join(dir, "disk")
	stream(t, buildDeadline, "go", "build", "-ldflags", "-s -w", "-o", program, "berth.io/berth/cmd/berth-flexvolume")
	stream(t, buildDeadline, "go", "test", "-c", "-tags", "vmguest", "-o", tests, "berth.io/berth/test/vm/guest")
	f, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(diskBytes); err != nil {
		t.Fatal(err)
	}
	f.Close()
	pattern := os.Getenv("BERTH_VM_RUN")
	if pattern == "" {
		pattern = "."
	}
	stream(t, guestDeadline, "./run.sh", "--disk", disk, "--timeout", "3500", "--",
		"env", "BERTH_FLEXVOLUME="+program, tests, "-test.v", "-test.timeout=55m", "-test.run="+pattern)
}

// stream runs a program and shows what it says.
func stream(t *testing.T, deadline time.Duration, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v", name, args, err)
	}
}
