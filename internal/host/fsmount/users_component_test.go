//go:build component

package fsmount

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Who has a device open is told: a process, another run of this very program (apart), a loop device on top; and nobody when they have let go.
func TestUsersOfADevice(t *testing.T) {
	attach := func(file string) string {
		out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
		if err != nil {
			t.Fatalf("losetup %s: %v: %s", file, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	detach := func(dev string) {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach %s: %v: %s", dev, err, out)
		}
	}
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	dev := attach(file)
	defer detach(dev)
	var st unix.Stat_t
	if err := unix.Stat(dev, &st); err != nil {
		t.Fatal(err)
	}
	users := func() ([]string, bool) { return UsersOf(int(unix.Major(st.Rdev)), int(unix.Minor(st.Rdev))) }

	holder := exec.Command("sh", "-c", "exec 3<>"+dev+"; echo; exec sleep 1000")
	out, err := holder.StdoutPipe()
	if err == nil {
		err = holder.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	found, own := users()
	if !slices.ContainsFunc(found, func(u string) bool {
		return strings.HasPrefix(u, "process ") && strings.HasSuffix(u, "(sleep)") || strings.HasSuffix(u, "(sh)")
	}) || own {
		t.Errorf("users %v, own %v", found, own)
	}
	_ = holder.Process.Kill()
	_ = holder.Wait()

	self, err := os.OpenFile(dev, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	again := exec.Command(os.Args[0], "-test.run=TestHoldsADevice", "-test.v") // until its standard input ends
	again.Env = append(os.Environ(), "BERTH_HOLD=1")
	again.ExtraFiles = []*os.File{self}
	in, err := again.StdinPipe()
	if err == nil {
		out, err = again.StdoutPipe()
	}
	if err == nil {
		err = again.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if found, own := users(); len(found) != 0 || !own {
		t.Errorf("users %v, own %v; want this program alone", found, own)
	}
	_ = in.Close()
	_ = again.Process.Kill()
	_ = again.Wait()
	_ = self.Close()

	over := attach(dev)
	if found, own := users(); !slices.Contains(found, over) || own {
		t.Errorf("users %v, own %v; want %s", found, own, over)
	}
	detach(over)
	if found, own := users(); len(found) != 0 || own {
		t.Errorf("users %v, own %v; want none", found, own)
	}
}

// TestHoldsADevice is the other run of TestUsersOfADevice.
func TestHoldsADevice(t *testing.T) {
	if os.Getenv("BERTH_HOLD") == "" {
		return // a test of its own it is not
	}
	_, _ = os.Stdin.Read(make([]byte, 1))
}
