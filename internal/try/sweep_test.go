package try

import (
	"os"
	"path/filepath"
	"strings"
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
