//go:build component

package block

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/host/command"
	"berth.io/berth/internal/host/filesystem"
)

// Each filesystem: a snapshot of the mounted volume, not synced by its user, is clean and has all; what is restored and cloned from
// it is mounted beside it, at the same time, larger than the source, and each is whole when the others are deleted.
func TestCopiesOfAMountedVolume(t *testing.T) {
	for _, fsType := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fsType, func(t *testing.T) {
			s := serve(t, 6<<30)
			v := s.make(backend.CreateRequest{Name: "v", RequiredBytes: 400 * mib, FSType: fsType})
			at := s.mounted(v)
			write(t, filepath.Join(at, "data"), "before") // not synced
			snap := s.snapshot("s", v.ID)
			if fsType != "xfs" { // whose freeze leaves one record in the log, for the files that were deleted and are still open
				clean(t, fsType, s.o.Pool.SnapshotDisk(mustSnapshot(t, s, snap.ID)))
			}
			write(t, filepath.Join(at, "data"), "after") // it was thawed
			restored := s.make(backend.CreateRequest{Name: "r", RequiredBytes: 700 * mib, FSType: "ext4", FSTypeIsDefault: true, Source: backend.Source{SnapshotID: snap.ID}})
			cloned := s.make(backend.CreateRequest{Name: "c", FSType: fsType, Source: backend.Source{VolumeID: v.ID}})
			second := s.make(backend.CreateRequest{Name: "c2", FSType: fsType, Source: backend.Source{VolumeID: cloned.ID}})
			if restored.FSType != fsType || restored.Source.SnapshotID != snap.ID || cloned.SizeBytes != v.SizeBytes {
				t.Errorf("restored %+v, cloned %+v", restored, cloned)
			}
			for v, want := range map[*backend.Volume]string{&restored: "before", &cloned: "after", &second: "after"} {
				wantContent(t, filepath.Join(s.mounted(*v), "data"), want)
				write(t, filepath.Join(s.at(v.ID), "own"), v.ID)
			}
			stats, err := s.Stats(t.Context(), restored.ID, s.at(restored.ID))
			if err != nil || stats.TotalBytes < 600*mib {
				t.Errorf("restored to a larger size: %+v, %v", stats, err)
			}
			wantContent(t, filepath.Join(at, "data"), "after")
			s.unmount(v)
			if err := errors.Join(s.Delete(t.Context(), v.ID), s.DeleteSnapshot(t.Context(), snap.ID)); err != nil {
				t.Error(err)
			}
			for _, v := range []backend.Volume{restored, cloned, second} {
				wantContent(t, filepath.Join(s.at(v.ID), "own"), v.ID)
				s.unmount(v)
				clean(t, fsType, s.o.Pool.Disk(v.ID))
				if err := s.Delete(t.Context(), v.ID); err != nil {
					t.Error(err)
				}
			}
			if c := s.o.Pool.Capacity(); c.Reserved != 0 {
				t.Errorf("reserved at the end: %d MiB", c.Reserved/mib)
			}
		})
	}
}

// clean runs the filesystem's own checker, which must find nothing to do, not even a log to replay.
func clean(t *testing.T, fsType, disk string) {
	t.Helper()
	args := map[string][]string{"ext4": {"e2fsck", "-f", "-n"}, "xfs": {"xfs_repair", "-n"}, "btrfs": {"btrfs", "check", "--readonly"}}[fsType]
	if out, err := command.Run(t.Context(), time.Minute, args[0], append(args[1:], disk)...); err != nil {
		t.Errorf("not clean: %v\n%s", err, out)
	}
}

// A snapshot is the same again by name, another's name is refused, and what cannot be is refused in words, leaving nothing.
func TestSnapshotRequests(t *testing.T) {
	s := serve(t, 4<<30)
	v := s.make(backend.CreateRequest{Name: "v", RequiredBytes: 400 * mib, FSType: "xfs"})
	other := s.make(backend.CreateRequest{Name: "other", RequiredBytes: 16 * mib})
	s.mounted(v)
	s.unmount(v) // it is formatted now
	snap := s.snapshot("s", v.ID)
	if again := s.snapshot("s", v.ID); again != snap {
		t.Errorf("again: %+v, first %+v", again, snap)
	}
	source := backend.Source{SnapshotID: snap.ID}
	refused := map[string]struct {
		err  error
		want error
	}{}
	try := func(name string, err, want error) {
		refused[name] = struct{ err, want error }{err, want}
	}
	_, err := s.CreateSnapshot(t.Context(), backend.SnapshotRequest{Name: "s", VolumeID: other.ID})
	try("another volume's", err, backend.ErrExists)
	_, err = s.CreateSnapshot(t.Context(), backend.SnapshotRequest{Name: "t", VolumeID: "vol-none"})
	try("of no volume", err, backend.ErrNotFound)
	_, err = s.CreateSnapshot(t.Context(), backend.SnapshotRequest{Name: "t", VolumeID: v.ID, Parameters: map[string]string{"a": "b"}})
	try("unknown parameter", err, backend.ErrInvalid)
	_, err = s.Create(t.Context(), backend.CreateRequest{Name: "r", RequiredBytes: 390 * mib, FSType: "xfs", Source: source})
	try("smaller", err, backend.ErrTooLarge)
	_, err = s.Create(t.Context(), backend.CreateRequest{Name: "r", LimitBytes: 390 * mib, FSType: "xfs", Source: source})
	try("limited to less", err, backend.ErrTooLarge)
	_, err = s.Create(t.Context(), backend.CreateRequest{Name: "r", FSType: "ext4", Source: source})
	try("another filesystem", err, backend.ErrInvalid)
	_, err = s.Create(t.Context(), backend.CreateRequest{Name: "r", FSType: "xfs", Source: backend.Source{SnapshotID: "snap-none"}})
	try("no such snapshot", err, backend.ErrSnapshotNotFound)
	_, err = s.Create(t.Context(), backend.CreateRequest{Name: "r", FSType: "xfs", Source: backend.Source{SnapshotID: "../../etc"}})
	try("a path for a snapshot", err, backend.ErrSnapshotNotFound)
	_, err = s.Create(t.Context(), backend.CreateRequest{Name: "r", FSType: "xfs", Source: backend.Source{VolumeID: "nfs-other"}})
	try("no such volume", err, backend.ErrNotFound)
	_, err = s.Create(t.Context(), backend.CreateRequest{Name: "other", Source: source})
	try("there with another source", err, backend.ErrExists)
	_, err = s.Create(t.Context(), backend.CreateRequest{Name: "r", RequiredBytes: 1 << 40, FSType: "xfs", Source: source})
	try("too large", err, backend.ErrTooLarge)
	for name, r := range refused {
		if !errors.Is(r.err, r.want) {
			t.Errorf("%s: %v, want %v", name, r.err, r.want)
		}
		t.Logf("%s: %v", name, r.err)
	}
	restored := s.make(backend.CreateRequest{Name: "r", FSType: "xfs", Source: source})
	if err := s.DeleteSnapshot(t.Context(), snap.ID); err != nil {
		t.Error(err)
	}
	if again := s.make(backend.CreateRequest{Name: "r", FSType: "xfs", Source: source}); again.ID != restored.ID {
		t.Errorf("again, its source gone: %+v", again)
	}
	if list, err := s.List(t.Context()); err != nil || len(list) != 3 {
		t.Errorf("volumes at the end: %v, %v", list, err)
	}
}

// A raw block volume: its snapshot restored as a device, and a filesystem's snapshot as a device.
func TestCopiesOfRawVolumes(t *testing.T) {
	s := serve(t, 4<<30)
	raw := s.make(backend.CreateRequest{Name: "raw", RequiredBytes: 64 * mib})
	if err := s.Stage(t.Context(), backend.StageRequest{ID: raw.ID, Path: s.at(raw.ID), Block: true}); err != nil {
		t.Fatal(err)
	}
	dev, ok, err := s.openLoop(raw.ID)
	if err != nil || !ok {
		t.Fatal(err)
	}
	if _, err := dev.WriteAt([]byte("in the cache of the device"), 5*mib); err != nil {
		t.Fatal(err)
	}
	dev.Close()
	snap := s.snapshot("s", raw.ID) // in use: of one instant by itself
	_, err = s.CreateGroupSnapshot(t.Context(), backend.GroupSnapshotRequest{Name: "g", VolumeIDs: []string{raw.ID, s.make(backend.CreateRequest{Name: "b", RequiredBytes: 16 * mib}).ID}})
	if !errors.Is(err, backend.ErrCannotFreeze) {
		t.Errorf("a group with a device in use: %v", err)
	}
	t.Log(err)
	s.unmount(raw)
	restored := s.make(backend.CreateRequest{Name: "r", RequiredBytes: 128 * mib, Source: backend.Source{SnapshotID: snap.ID}})
	got := make([]byte, 26)
	disk, err := os.Open(s.o.Pool.Disk(restored.ID))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if _, err := disk.ReadAt(got, 5*mib); err != nil || string(got) != "in the cache of the device" {
		t.Errorf("%q, %v", got, err)
	}
	if st, _ := disk.Stat(); st.Size() != 128*mib {
		t.Errorf("size %d", st.Size())
	}
	if entries, _ := os.ReadDir(filepath.Join(filepath.Dir(s.o.Pool.Directory("x")), "..", "groups")); len(entries) != 0 {
		t.Errorf("left of the group that was refused: %v", entries)
	}
}

// A writer counts up in one volume, then in the other, each synced: in every group snapshot the second is at most one behind.
func TestGroupIsOfOneInstant(t *testing.T) {
	s := serve(t, 8<<30)
	a := s.make(backend.CreateRequest{Name: "a", RequiredBytes: 64 * mib, FSType: "ext4"})
	b := s.make(backend.CreateRequest{Name: "b", RequiredBytes: 320 * mib, FSType: "xfs"})
	stop, counted := make(chan bool), make(chan int)
	var files []*os.File
	for _, v := range []backend.Volume{a, b} {
		f, err := os.OpenFile(filepath.Join(s.mounted(v), "count"), os.O_RDWR|os.O_CREATE, 0o600)
		if err == nil {
			_, err = f.WriteAt(make([]byte, 8), 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	go func() {
		n := 0
		for ; ; n++ {
			select {
			case <-stop:
				counted <- n
				return
			default:
			}
			for _, f := range files {
				if _, err := f.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(n)), 0); err != nil {
					t.Error(err)
				}
				if err := f.Sync(); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	var groups []backend.GroupSnapshot
	for i := range 10 {
		g, err := s.CreateGroupSnapshot(t.Context(), backend.GroupSnapshotRequest{Name: fmt.Sprint("g", i), VolumeIDs: []string{b.ID, a.ID}})
		if err != nil {
			t.Fatal(err)
		}
		groups = append(groups, g)
	}
	close(stop)
	total := <-counted
	for i, g := range groups {
		var n [2]int64
		for k, volume := range []backend.Volume{a, b} {
			for _, m := range g.Snapshots {
				if m.VolumeID != volume.ID {
					continue
				}
				if err := s.DeleteSnapshot(t.Context(), m.ID); !errors.Is(err, backend.ErrInGroup) {
					t.Errorf("a member deleted alone: %v", err)
				}
				v := s.make(backend.CreateRequest{Name: "of-" + m.ID, FSType: volume.FSType, Source: backend.Source{SnapshotID: m.ID}})
				content, err := os.ReadFile(filepath.Join(s.mounted(v), "count"))
				if err != nil || len(content) != 8 {
					t.Fatalf("%d bytes, %v", len(content), err)
				}
				n[k] = int64(binary.LittleEndian.Uint64(content))
				s.unmount(v)
				if err := s.Delete(t.Context(), v.ID); err != nil {
					t.Error(err)
				}
			}
		}
		if n[0] < n[1] || n[1] < n[0]-1 {
			t.Errorf("group %d: %d in the first, %d in the second", i, n[0], n[1])
		}
		t.Logf("group %d of %d: %v", i, total, n)
		if err := s.DeleteGroupSnapshot(t.Context(), g.ID); err != nil {
			t.Error(err)
		}
	}
	if snaps, _ := s.Snapshots(t.Context()); len(snaps) != 0 {
		t.Errorf("left: %v", snaps)
	}
}

// Groups of the same volumes in different orders at once: none waits for the other for ever.
func TestGroupsAtOnce(t *testing.T) {
	s := serve(t, 4<<30)
	var ids []string
	for _, name := range []string{"a", "b", "c"} {
		v := s.make(backend.CreateRequest{Name: name, RequiredBytes: 32 * mib, FSType: "ext4"})
		s.mounted(v)
		ids = append(ids, v.ID)
	}
	var all sync.WaitGroup
	for i := range 6 {
		all.Go(func() {
			order := []string{ids[i%3], ids[(i+1)%3], ids[(i+2)%3]}
			_, err := s.CreateGroupSnapshot(t.Context(), backend.GroupSnapshotRequest{Name: fmt.Sprint(i), VolumeIDs: order})
			var busy *backend.BusyError
			if err != nil && !errors.As(err, &busy) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, id := range ids {
		write(t, filepath.Join(s.at(id), "x"), "thawed")
	}
}

// A name is taken once at a time, also for other volumes: of two that make the same snapshot, one would remove what the other makes.
func TestOneNameForTwoVolumesAtOnce(t *testing.T) {
	s := serve(t, 4<<30)
	a := s.make(backend.CreateRequest{Name: "a", RequiredBytes: 32 * mib})
	b := s.make(backend.CreateRequest{Name: "b", RequiredBytes: 32 * mib})
	s.formats.Wait()
	for _, group := range []string{"", backend.GroupID("s")} {
		request := pool.TakeRequest{ID: backend.SnapshotID("s"), Name: "s", VolumeID: a.ID}
		if group != "" {
			request.ID = backend.MemberID(group, a.ID)
		}
		h, err := s.holds.Acquire(t.Context(), cmp.Or(group, request.ID), "the first")
		if err != nil {
			t.Fatal(err)
		}
		first, err := s.o.Pool.Begin(group, "s", request)
		if err != nil {
			t.Fatal(err)
		}
		if group == "" {
			_, err = s.CreateSnapshot(t.Context(), backend.SnapshotRequest{Name: "s", VolumeID: b.ID})
		} else {
			_, err = s.CreateGroupSnapshot(t.Context(), backend.GroupSnapshotRequest{Name: "s", VolumeIDs: []string{b.ID}})
		}
		if busy := (*backend.BusyError)(nil); !errors.As(err, &busy) {
			t.Errorf("the second, group %q: %v", group, err)
		}
		err = first.Copy(true)
		if err == nil {
			_, err = first.Finish()
		}
		if err != nil {
			t.Errorf("the first, group %q: %v", group, err)
		}
		h.Release()
	}
}

// A process that dies while it has a filesystem frozen leaves a note; the next one thaws before anything else.
func TestFrozenByADeadProcess(t *testing.T) {
	s := serve(t, 4<<30)
	v := s.make(backend.CreateRequest{Name: "v", RequiredBytes: 32 * mib, FSType: "ext4"})
	at := s.mounted(v)
	pv, err := s.get(v.ID)
	if err != nil {
		t.Fatal(err)
	}
	h, err := s.holds.Acquire(t.Context(), v.ID, "test")
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.freezable(held{pv, h}, false)
	if err == nil {
		err = s.freeze(t.Context(), f)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.watchdog.Stop() // dead
	f.root.Close()
	h.Release()
	written := make(chan error, 1)
	go func() { written <- os.WriteFile(filepath.Join(at, "waits"), nil, 0o600) }()
	s.stop()
	s.start(4 << 30)
	if err := <-written; err != nil {
		t.Error(err)
	}
	s.unmount(v)
}

// What its user has frozen by hand is copied as it is, and stays frozen.
func TestFrozenByItsUser(t *testing.T) {
	s := serve(t, 4<<30)
	v := s.make(backend.CreateRequest{Name: "v", RequiredBytes: 32 * mib, FSType: "ext4"})
	at := s.mounted(v)
	root, err := os.Open(at)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := unix.IoctlSetInt(int(root.Fd()), 0xc0045877, 0); err != nil {
		t.Fatal(err)
	}
	s.snapshot("s", v.ID)
	if err := unix.IoctlSetInt(int(root.Fd()), 0xc0045878, 0); err != nil {
		t.Errorf("it was thawed meanwhile: %v", err)
	}
}

// What its user has frozen is not noted as frozen by us while it is copied: whoever starts after a death would thaw it.
func TestFreezeOfItsUserIsNotNoted(t *testing.T) {
	s := serve(t, 4<<30)
	v := s.make(backend.CreateRequest{Name: "v", RequiredBytes: 32 * mib, FSType: "ext4"})
	root, err := os.Open(s.mounted(v))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	pv, err := s.get(v.ID)
	if err != nil {
		t.Fatal(err)
	}
	h, err := s.holds.Acquire(t.Context(), v.ID, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	if err := filesystem.Freeze(root); err != nil {
		t.Fatal(err)
	}
	err = s.quiesced(t.Context(), []held{{pv, h}}, copyBy(func() error {
		if _, err := os.Lstat(filepath.Join(s.o.Pool.Directory(v.ID), pool.FrozenLink)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the note while it is copied: %v", err)
		}
		return pool.Thaw(s.pools()) // as the start after a death
	}))
	if err != nil {
		t.Error(err)
	}
	if err := unix.IoctlSetInt(int(root.Fd()), 0xc0045878, 0); err != nil {
		t.Errorf("it was thawed meanwhile: %v", err)
	}
}

// An orderly stop leaves nothing frozen: it waits until what is being copied is thawed, and nothing is frozen after it.
func TestCloseWaitsForTheThaw(t *testing.T) {
	s := serve(t, 4<<30)
	v := s.make(backend.CreateRequest{Name: "v", RequiredBytes: 32 * mib, FSType: "ext4"})
	at := s.mounted(v)
	pv, err := s.get(v.ID)
	if err != nil {
		t.Fatal(err)
	}
	h, err := s.holds.Acquire(t.Context(), v.ID, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	copying, goOn, closed, done := make(chan bool), make(chan bool), make(chan bool), make(chan error, 1)
	go func() {
		done <- s.quiesced(t.Context(), []held{{pv, h}}, copyBy(func() error { close(copying); <-goOn; return nil }))
	}()
	<-copying
	go func() { s.Close(); close(closed) }()
	select {
	case <-closed:
		t.Error("closed, and a filesystem is frozen")
	case <-time.After(300 * time.Millisecond):
	}
	close(goOn)
	<-closed
	if _, err := os.Lstat(filepath.Join(s.o.Pool.Directory(v.ID), pool.FrozenLink)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the note after the stop: %v", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := s.quiesced(t.Context(), []held{{pv, h}}, copyBy(func() error { return nil })); !errors.Is(err, backend.ErrCannotFreeze) {
		t.Errorf("after the stop: %v", err)
	}
	write(t, filepath.Join(at, "x"), "thawed")
}

// What its user thaws while it is copied may have been written meanwhile: that is no copy of one instant with the others.
func TestThawedByItsUserMeanwhile(t *testing.T) {
	s := serve(t, 4<<30)
	var all []held
	for _, name := range []string{"a", "b"} {
		v := s.make(backend.CreateRequest{Name: name, RequiredBytes: 32 * mib, FSType: "ext4"})
		s.mounted(v)
		pv, err := s.get(v.ID)
		if err != nil {
			t.Fatal(err)
		}
		h, err := s.holds.Acquire(t.Context(), v.ID, "test")
		if err != nil {
			t.Fatal(err)
		}
		defer h.Release()
		all = append(all, held{pv, h})
	}
	root, err := os.Open(s.at(all[0].v.ID))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, meanwhile := range []bool{false, true} {
		if err := filesystem.Freeze(root); err != nil {
			t.Fatal(err)
		}
		thaw := func() error { return filesystem.Thaw(root) }
		copy := func() error { return nil }
		if meanwhile {
			copy = thaw
		}
		if err := s.quiesced(t.Context(), all, copyBy(copy)); errors.Is(err, backend.ErrCannotFreeze) != meanwhile {
			t.Errorf("thawed meanwhile: %v: %v", meanwhile, err)
		}
		if err := thaw(); err != nil {
			t.Error(err)
		}
		for _, one := range all {
			write(t, filepath.Join(s.at(one.v.ID), "x"), "thawed")
		}
	}
}

// copyBy is a copy that consists of the function.
type copyBy func() error

func (copyBy) Approach() error   { return nil }
func (f copyBy) Copy(bool) error { return f() }

func mustSnapshot(t *testing.T, s *served, id string) pool.Snapshot {
	t.Helper()
	out, err := s.o.Pool.Snapshot(id)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
