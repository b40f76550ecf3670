//go:build component

package volume

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Numbers of devices are given anew after a restart of the machine, and after a take-down in the same one: what has the number
// then at a recorded path is another's, and stays.
func TestTakeDownLeavesAnothersMount(t *testing.T) {
	dataDir, path := t.TempDir(), t.TempDir()
	mount := func() {
		t.Helper()
		if err := unix.Mount("tmpfs", path, "tmpfs", 0, "size=1m"); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	isMounted := func() bool {
		t.Helper()
		at, err := shownAt(path)
		if err != nil {
			t.Fatal(err)
		}
		return at != nil
	}
	note := func(boot string) *record {
		t.Helper()
		at, err := shownAt(path)
		if err != nil {
			t.Fatal(err)
		}
		m := &record{Path: path, Namespace: ns, Name: "data", Mounted: at, Boot: boot}
		if err := recordsIn(dataDir).write(m); err != nil {
			t.Fatal(err)
		}
		return m
	}

	mount()
	note("a former boot")
	if err := TakeDown(dataDir); err != nil || !isMounted() {
		t.Fatalf("after a restart of the machine: mounted %v, %v", isMounted(), err)
	}

	m := note(thisBoot())
	if err := TakeDown(dataDir); err != nil || isMounted() {
		t.Fatalf("our own: mounted %v, %v", isMounted(), err)
	}
	mount() // another's, that happens to look the same
	at, err := shownAt(path)
	if err != nil {
		t.Fatal(err)
	}
	if *at != *m.Mounted {
		t.Logf("the kernel gave another number (%v, was %v); the record is made to match", at, m.Mounted)
		kept, err := recordsIn(dataDir).get(path)
		if err != nil || kept == nil {
			t.Fatal(kept, err)
		}
		if kept.Mounted != nil {
			kept.Mounted = at
			if err := recordsIn(dataDir).write(kept); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := TakeDown(dataDir); err != nil || !isMounted() {
		t.Errorf("a second take-down: mounted %v, %v", isMounted(), err)
	}
	if kept, err := recordsIn(dataDir).get(path); kept == nil || err != nil || kept.Leaving {
		t.Errorf("what is wanted there is kept: %v %v", kept, err)
	}
	if _, err := os.Stat(filepath.Join(dataDir, "volumes")); err != nil {
		t.Error(err)
	}
}
