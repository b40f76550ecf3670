//go:build component

package mountpoint

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMountOfASilentServer: a FUSE filesystem whose server never reads a request is a mount point, and that is said without waiting
// for it. One whose server is gone still is one.
func TestMountOfASilentServer(t *testing.T) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("this test needs root and FUSE: %v", err)
	}
	dir := t.TempDir()
	if err := unix.Mount("silent", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)); err != nil {
		unix.Close(fd)
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	type answer struct {
		is  bool
		err error
	}
	answered := make(chan answer, 1)
	go func() {
		is, err := Is(dir)
		answered <- answer{is, err}
	}()
	select {
	case a := <-answered:
		if !a.is || a.err != nil {
			t.Errorf("silent: %+v", a)
		}
	case <-time.After(3 * time.Second):
		t.Error("it waits for the server")
		defer func() { <-answered }() // it is let go when the server ends
	}
	unix.Close(fd)
	if is, err := Is(dir); !is || err != nil {
		t.Errorf("the server is gone: %v %v", is, err)
	}
}
