//go:build component

package loop

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A process without a descriptor left does not take an attached file for detached, and attach it a second time later.
func TestAttachedWhileNobodyCanTell(t *testing.T) {
	table, f, id := backed(t)
	first, err := table.Attach(f, Options{SectorBytes: 512})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = table.Detach(id) })
	first.Close()

	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	_, attached, err := table.Open(id)
	if restore := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); restore != nil {
		t.Fatal(restore)
	}
	if err == nil || attached {
		t.Fatalf("attached %v, error %v", attached, err)
	}
	again, err := table.Attach(f, Options{SectorBytes: 512})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if again.Name() != first.Name() {
		t.Errorf("attached twice: %s and %s", first.Name(), again.Name())
	}
}
