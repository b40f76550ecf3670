//go:build component

package block

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"berth.io/berth/internal/backend"
)

// A volume's user writes and syncs: its file in the pool keeps its time, so that the pool's log has nothing to write for it. After a
// restart, which knows the device by its file's path, the volume is still the one that is mounted.
func TestWritesLeaveTheFilesTime(t *testing.T) {
	s := serve(t, 3<<30)
	v := s.make(backend.CreateRequest{Name: "v", RequiredBytes: 64 * mib, FSType: "ext4"})
	at := s.mounted(v)
	long := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	if err := os.Chtimes(s.o.Pool.Disk(v.ID), long, long); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(at, "data"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("written"); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	disk, err := os.Stat(s.o.Pool.Disk(v.ID))
	if err != nil {
		t.Fatal(err)
	}
	if !disk.ModTime().Equal(long) {
		t.Errorf("the file's time is %s: each fsync has it written to the pool's log", disk.ModTime())
	}

	s.stop()
	s.start(3 << 30)
	if got := s.stagedAt(v.ID); got != at {
		t.Errorf("after a restart it is staged at %q, want %s", got, at)
	}
	s.unmount(v)
	wantContent(t, filepath.Join(s.mounted(v), "data"), "written")
	s.unmount(v)
}

// A snapshot of a mounted volume leaves the machine's switch for short grace periods as it was, and no note.
func TestSnapshotLeavesTheSwitch(t *testing.T) {
	const file = "/sys/kernel/rcu_expedited"
	before, err := os.ReadFile(file)
	if err != nil {
		t.Skip("this kernel has no such switch: ", err)
	}
	s := serve(t, 3<<30)
	v := s.make(backend.CreateRequest{Name: "v", RequiredBytes: 64 * mib, FSType: "ext4"})
	s.mounted(v)
	s.snapshot("s", v.ID)
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("%s is %q, and was %q: %v", file, after, before, err)
	}
	if _, err := os.Lstat(s.o.Pool.Expedite().Note); !os.IsNotExist(err) {
		t.Errorf("the note is still there: %v", err)
	}
	s.unmount(v)
}
