//go:build component

package pool

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func mustTake(t *testing.T, p *Pool, id, volume string) Snapshot {
	t.Helper()
	take, err := p.Begin("", "", TakeRequest{ID: id, Name: id, VolumeID: volume})
	if err != nil {
		t.Fatal(err)
	}
	if err := take.Copy(true); err != nil {
		t.Fatal(err)
	}
	s, err := take.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return s[0]
}

func writeAt(t *testing.T, path string, offset, length int64, b byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{b}, int(length)), offset); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func readByte(t *testing.T, path string, offset int64) byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, offset); err != nil {
		t.Fatal(err)
	}
	return b[0]
}

// A snapshot keeps what the volume held, costs what was allocated then, and is whole without its volume; a volume made from it is
// whole without the snapshot.
func TestSnapshotKeepsWhatWasThere(t *testing.T) {
	o := Options{Dir: t.TempDir(), LimitBytes: 2 * gib}
	p := openTest(t, o)
	mustCreate(t, p, "v", 200*mib)
	writeAt(t, p.Disk("v"), 0, 10*mib, 'a')
	s := mustTake(t, p, "s", "v")
	if want := 11 * mib; s.ReservedBytes != want || p.Capacity().Reserved != 200*mib+want {
		t.Errorf("reserved for the snapshot: %d MiB, in all %d MiB", s.ReservedBytes/mib, p.Capacity().Reserved/mib)
	}
	writeAt(t, p.Disk("v"), 0, 10*mib, 'b')
	if got := readByte(t, p.SnapshotDisk(s), 5*mib); got != 'a' {
		t.Errorf("the snapshot changed: %q", got)
	}
	if _, err := p.Create(Spec{ID: "small", SizeBytes: 100 * mib, Source: &Source{SnapshotID: "s"}}); !errors.Is(err, ErrTooSmall) {
		t.Errorf("smaller than its source: %v", err)
	}
	if _, err := p.Create(Spec{ID: "r", SizeBytes: 300 * mib, FSType: "ext4", Source: &Source{SnapshotID: "s"}, Content: Formatted}); err != nil {
		t.Fatal(err)
	}
	if err := p.Delete("v"); err != nil {
		t.Fatal(err)
	}
	if got := readByte(t, p.SnapshotDisk(s), 5*mib); got != 'a' {
		t.Errorf("the snapshot without its volume: %q", got)
	}
	if err := p.DeleteSnapshot("s"); err != nil {
		t.Fatal(err)
	}
	if got := readByte(t, p.Disk("r"), 5*mib); got != 'a' {
		t.Errorf("the volume without its snapshot: %q", got)
	}
	if got := readByte(t, p.Disk("r"), 299*mib); got != 0 {
		t.Errorf("beyond the snapshot's end: %q", got)
	}
	if p.Capacity().Reserved != 300*mib {
		t.Errorf("reserved at the end: %d MiB", p.Capacity().Reserved/mib)
	}
	checkPromise(t, p)
}

// Snapshots and groups outlive the process; what a crash left of others is removed; a damaged one is left alone and keeps its room.
func TestSnapshotsOutliveTheProcess(t *testing.T) {
	o := Options{Dir: t.TempDir(), LimitBytes: 2 * gib}
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	mustCreate(t, p, "a", 100*mib)
	mustCreate(t, p, "b", 100*mib)
	writeAt(t, p.Disk("a"), 0, 8*mib, 'a')
	mustTake(t, p, "s", "a")
	mustTake(t, p, "damaged", "a")
	os.WriteFile(filepath.Join(p.path(snapshotsName, "damaged"), describeSnapshotName), []byte("{"), 0o600)
	take, err := p.Begin("g", "g", TakeRequest{"g-a", "g", "a"}, TakeRequest{"g-b", "g", "b"})
	if err == nil {
		err = take.Copy(true)
	}
	if err == nil {
		_, err = take.Finish()
	}
	if err != nil {
		t.Fatal(err)
	}
	half, err := p.Begin("", "", TakeRequest{"half", "half", "a"})
	if err != nil {
		t.Fatal(err)
	}
	half.close() // as a process that dies
	p.Close()
	p = openTest(t, o)
	if s, err := p.Snapshot("s"); err != nil || s.VolumeID != "a" || s.ReservedBytes != 9*mib {
		t.Errorf("after reopening: %+v, %v", s, err)
	}
	if _, err := p.Snapshot("damaged"); !errors.Is(err, ErrDamaged) {
		t.Errorf("damaged: %v", err)
	}
	if _, members, err := p.Group("g"); err != nil || len(members) != 2 || members[1].VolumeID != "b" {
		t.Errorf("group after reopening: %+v, %v", members, err)
	}
	if want := 200*mib + 3*9*mib + mib; p.Capacity().Reserved != want {
		t.Errorf("reserved %d MiB, want %d", p.Capacity().Reserved/mib, want/mib)
	}
	if err := p.DeleteSnapshot("g-a"); err == nil {
		t.Error("a member of a group was deleted alone")
	}
	if err := p.DeleteGroup("g"); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(p.path(groupsName)); len(entries) != 0 {
		t.Errorf("left: %v", entries)
	}
	checkPromise(t, p)
}

// No room for what a snapshot may come to own: refused in words, and nothing is made.
func TestSnapshotWithoutRoomIsRefused(t *testing.T) {
	o := Options{Dir: t.TempDir(), LimitBytes: gib}
	p := openTest(t, o)
	size := p.Capacity().Available / 4 * 3
	mustCreate(t, p, "v", size)
	size = RoundSize(size)
	writeAt(t, p.Disk("v"), 0, size/2, 'a')
	before := p.Capacity().Reserved
	if _, err := p.Begin("", "", TakeRequest{"s", "s", "v"}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("%v", err)
	} else {
		t.Log(err)
	}
	if entries, _ := os.ReadDir(p.path(snapshotsName)); len(entries) != 0 || p.Capacity().Reserved != before {
		t.Errorf("left: %v, reserved %d", entries, p.Capacity().Reserved)
	}
}

// A volume that could not be removed to the end is no obstacle for the next one of its id.
func TestHalfRemovedVolume(t *testing.T) {
	p := openTest(t, Options{Dir: t.TempDir(), LimitBytes: 2 * gib})
	mustCreate(t, p, "v", 100*mib)
	stuck := filepath.Join(p.Directory("v"), "stuck") // a mount point cannot be removed
	if err := errors.Join(os.Mkdir(stuck, 0o700), unix.Mount("none", stuck, "tmpfs", 0, "size=1m")); err != nil {
		t.Fatal(err)
	}
	if err := p.Delete("v"); err == nil {
		t.Fatal("removed with something mounted in it")
	}
	if p.Capacity().Reserved != 100*mib {
		t.Errorf("reserved: %d MiB", p.Capacity().Reserved/mib)
	}
	mustCreate(t, p, "v", 50*mib)
	if err := p.Delete("v"); err == nil {
		t.Error("deleted while the one before it is in the way")
	}
	if err := unix.Unmount(p.path(volumesName, removingPrefix+"v", "stuck"), 0); err != nil {
		t.Fatal(err)
	}
	if err := p.Delete("v"); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(p.path(volumesName)); len(entries) != 0 || p.Capacity().Reserved != 0 {
		t.Errorf("left: %v, reserved %d MiB", entries, p.Capacity().Reserved/mib)
	}
}

// A snapshot that could not be removed to the end is no obstacle for the next one of its id, and what it holds stays counted.
func TestHalfRemovedSnapshot(t *testing.T) {
	p := openTest(t, Options{Dir: t.TempDir(), LimitBytes: 2 * gib})
	mustCreate(t, p, "v", 100*mib)
	before := p.Capacity().Reserved
	mustTake(t, p, "s", "v")
	held := p.Capacity().Reserved
	stuck := filepath.Join(p.path(snapshotsName, "s"), "stuck") // a mount point cannot be removed
	if err := errors.Join(os.Mkdir(stuck, 0o700), unix.Mount("none", stuck, "tmpfs", 0, "size=1m")); err != nil {
		t.Fatal(err)
	}
	if err := p.DeleteSnapshot("s"); err == nil {
		t.Fatal("removed with something mounted in it")
	}
	if now := p.Capacity().Reserved; now != held {
		t.Errorf("reserved: %d MiB, before the deletion %d", now/mib, held/mib)
	}
	if err := p.DeleteSnapshot("s"); err == nil {
		t.Error("the second deletion says that it is gone")
	}
	mustTake(t, p, "s", "v")
	if err := p.DeleteSnapshot("s"); err == nil {
		t.Error("deleted while the one before it is in the way")
	}
	if err := unix.Unmount(p.path(snapshotsName, removingPrefix+"s", "stuck"), 0); err != nil {
		t.Fatal(err)
	}
	if err := p.DeleteSnapshot("s"); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(p.path(snapshotsName)); len(entries) != 0 || p.Capacity().Reserved != before {
		t.Errorf("left: %v, reserved %d MiB, at first %d", entries, p.Capacity().Reserved/mib, before/mib)
	}
}

// A group snapshot whose description cannot be read is not said to be deleted, nor not to be there.
func TestDamagedGroupIsLeftAlone(t *testing.T) {
	o := Options{Dir: t.TempDir(), LimitBytes: 2 * gib}
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	mustCreate(t, p, "a", 100*mib)
	take, err := p.Begin("g", "g", TakeRequest{"g-a", "g", "a"})
	if err == nil {
		err = take.Copy(true)
	}
	if err == nil {
		_, err = take.Finish()
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.path(groupsName, "g", describeGroupName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Close()
	p = openTest(t, o)
	if _, _, err := p.Group("g"); !errors.Is(err, ErrDamaged) {
		t.Errorf("read: %v", err)
	}
	if err := p.DeleteGroup("g"); !errors.Is(err, ErrDamaged) {
		t.Errorf("deleted: %v", err)
	}
	if _, err := os.Stat(p.path(groupsName, "g", "g-a", diskName)); err != nil {
		t.Error(err)
	}
}
