//go:build component

package flexvolume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/plugin"
)

// TestUnmountOfASilentServer: the server of what is mounted reads no request. The driver, who knows what to do then, is asked all
// the same, and at once.
func TestUnmountOfASilentServer(t *testing.T) {
	r := newRig(t)
	r.recorder("foo/cifs")
	r.answer("unmount", `{"status":"Not supported"}`)
	r.run()
	v := inPod("foo/cifs", "data")
	if _, err := r.Publish(t.Context(), plugin.PublishRequest{Volume: v}); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(r.data, "pods/u1/volumes/foo~cifs/data")
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("this test needs root and FUSE: %v", err)
	}
	if err := errors.Join(os.MkdirAll(target, 0o750), unix.Mount("silent", target, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd))); err != nil {
		unix.Close(fd)
		t.Fatal(err)
	}
	defer unix.Unmount(target, unix.MNT_DETACH)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- r.Unpublish(ctx, plugin.UnpublishRequest{PodUID: "u1", SpecName: "data", Volume: v}) }()
	select {
	case err := <-done:
		if err != nil || r.count("unmount") != 1 {
			t.Errorf("unmount was called %d times: %v", r.count("unmount"), err)
		}
		unix.Close(fd)
	case <-time.After(10 * time.Second):
		t.Error("it waits for the server")
		unix.Close(fd) // and is let go
		<-done
	}
}
