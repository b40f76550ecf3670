package e2e

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"

	"berth.io/berth/test/instance"
)

// The disk under the pool file fills up: a running volume takes every byte that it was promised, provisioning refuses
// with the reason, and goes on by itself when there is space again.
func TestTheDiskUnderThePoolFillsUp(t *testing.T) {
	disk := smallDisk(t, 5<<30)
	in, err := instance.New(filepath.Join(disk, "b"), "--pool-size", "4Gi")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			tail(filepath.Join(in.Dir, "log", "berth.log"))
		}
		if err := in.Down(context.Background()); err != nil {
			t.Errorf("berth down: %v", err)
		}
	})
	if err := in.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := tellOn(t, in)
	s.apply(claimYAML("data", "512Mi") + podYAML("app", "data"))
	dir := paths(s, s.ready("app"))["data"]

	fill := filepath.Join(disk, "fill")
	if err := writeUntilFull(fill); err != nil {
		t.Fatal(err)
	}
	if err := writeExactly(filepath.Join(dir, "big"), 400<<20); err != nil {
		t.Errorf("the running volume could not take what it was promised: %v", err)
	}
	s.apply(claimYAML("more", "2Gi", "storageClassName: berth-block-immediate") + podYAML("late", "more"))
	s.event("more", "ProvisioningFailed", "space")
	if n := len(mustGlob(t, filepath.Join(in.Dir, "pools/default/volumes/*"))); n != 1 {
		t.Errorf("%d volumes in the pool, want the first one alone: nothing half-made", n)
	}

	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	s.ready("late")
	s.kubectl("delete", "pod", "late", "app")
	s.kubectl("delete", "pvc", "more", "data")
	s.claimGone("more")
	s.apply(claimYAML("again", "2Gi") + podYAML("again", "again"))
	s.ready("again")
}

// smallDisk is an ext4 of its own, for an instance that may fill it.
func smallDisk(t *testing.T, size int64) string {
	t.Helper()
	base, err := os.MkdirTemp("", "berth-fd-")
	if err != nil {
		t.Fatal(err)
	}
	image, at := base+".img", base
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, at}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	t.Cleanup(func() {
		if mounted, _ := mountinfo.Mounted(at); mounted {
			if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
				t.Errorf("umount %s: %v: %s", at, err, out)
				return
			}
		}
		os.Remove(at)
		os.Remove(image)
	})
	return at
}

func writeUntilFull(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	chunk := make([]byte, 1<<20)
	for err == nil {
		_, err = f.Write(chunk)
	}
	if errors.Is(err, syscall.ENOSPC) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

func writeExactly(path string, n int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.Reader, n)
	return errors.Join(err, f.Sync(), f.Close())
}

func mustGlob(t *testing.T, pattern string) []string {
	t.Helper()
	m, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(fmt.Errorf("%s: %w", pattern, err))
	}
	return m
}
