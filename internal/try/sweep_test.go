package try

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Where TMPDIR is too long for sockets below it, a run is in /tmp, and what a killed one leaves there is found, too.
func TestWhatAKilledRunLeavesIsFoundWithALongTMPDIR(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("long", 20))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", long)
	work, lock, err := makeWork()
	if err != nil {
		t.Fatal(err)
	}
	lock.Close() // its process is dead
	t.Cleanup(func() { os.RemoveAll(work) })
	sweepFormer("", func(string) {})
	if _, err := os.Lstat(work); !os.IsNotExist(err) {
		t.Errorf("%s is still there (%v)", work, err)
	}
}

// Runs that begin at once take away what killed ones left, and never each other's new directory.
func TestRunsThatBeginAtOnce(t *testing.T) {
	base, err := os.MkdirTemp("/tmp", "b") // the test's own is too long for a run
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	t.Setenv("TMPDIR", base)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 10 {
				work, lock, err := makeWork()
				if err != nil {
					t.Error(err)
					return
				}
				sweepFormer(work, func(string) {})
				if _, err := os.Lstat(filepath.Join(work, "lock")); err != nil {
					t.Errorf("the directory of a run that lives: %v", err)
				}
				lock.Close()
			}
		})
	}
	all.Wait()
}
