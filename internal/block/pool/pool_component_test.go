//go:build component

package pool

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/host/loop"
)

// openTest opens a pool under dir and takes it down at the end.
func openTest(t *testing.T, o Options) *Pool {
	t.Helper()
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Close()
		if err := Teardown(o.Dir); err != nil {
			t.Error(err)
		}
	})
	return p
}

func mustCreate(t *testing.T, p *Pool, id string, size int64) Volume {
	t.Helper()
	v, err := p.Create(Spec{ID: id, Name: id, SizeBytes: size, FSType: "ext4"})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func checkPromise(t *testing.T, p *Pool) {
	t.Helper()
	if err := p.Verify(); err != nil {
		t.Error(err)
	}
}

// A pool is made, volumes are made, the process ends without a word, and the next finds everything.
func TestVolumesOutliveTheProcess(t *testing.T) {
	o := Options{Dir: t.TempDir(), LimitBytes: 2 * gib}
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	v := mustCreate(t, p, "pvc-1", 100*mib)
	if _, err := Open(t.Context(), o); !errors.Is(err, ErrInUse) {
		t.Errorf("a second open: %v", err)
	}
	id := p.ID()
	p.Close() // as after kill -9: mounted, attached
	os.MkdirAll(filepath.Join(MountPoint(o.Dir, "default"), volumesName, makingPrefix+"half"), 0o700)
	p = openTest(t, o)
	if got, err := p.Get("pvc-1"); err != nil || got.SizeBytes != v.SizeBytes || p.ID() != id {
		t.Errorf("after reopening: %+v, %v", got, err)
	}
	if p.Capacity().Reserved != 100*mib {
		t.Errorf("reserved %d", p.Capacity().Reserved)
	}
	checkPromise(t, p)
	p.Close()
	if err := Teardown(o.Dir); err != nil {
		t.Fatal(err)
	}
	p = openTest(t, o)
	if err := p.Delete("pvc-1"); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(p.path(volumesName))
	if len(entries) != 0 || p.Capacity().Reserved != 0 {
		t.Errorf("left after the delete: %v", entries)
	}
}

// hostDisk is a small ext4 of its own, to be filled.
func hostDisk(t *testing.T, size int64) string {
	t.Helper()
	dir := t.TempDir()
	image, at := filepath.Join(dir, "host.img"), filepath.Join(dir, "host")
	if err := allocateFile(image, size); err != nil {
		t.Fatal(err)
	}
	os.Mkdir(at, 0o700)
	run(t, "mkfs.ext4", "-q", "-F", "-m", "0", image)
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := loop.NewTable()
	if err != nil {
		t.Fatal(err)
	}
	dev, err := table.Attach(f, loop.Options{SectorBytes: 512, AutoClear: true})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if err := unix.Mount(dev.Name(), at, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	return at
}

// The disk under the pool fills up: new promises are refused, old ones hold to the last byte, and what is freed comes
// back to the host.
func TestTheHostsDiskFillsUp(t *testing.T) {
	host := hostDisk(t, 6*gib)
	p := openTest(t, Options{Dir: filepath.Join(host, "pools"), LimitBytes: 5 * gib})
	waitIdle(p)
	before := p.Capacity()
	fill := filepath.Join(host, "fill")
	fillDisk(t, fill)
	c := p.Capacity()
	if c.Available >= before.Available {
		t.Errorf("available %d MiB with a full disk, %d before", c.Available/mib, before.Available/mib)
	}
	v := mustCreate(t, p, "all", c.Available)
	if _, err := p.Create(Spec{ID: "more", SizeBytes: 64 * mib}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("beyond what is there: %v", err)
	}
	if entries, _ := os.ReadDir(p.path(volumesName)); len(entries) != 1 {
		t.Errorf("half-made volumes: %v", entries)
	}
	checkPromise(t, p)
	writeAll(t, p.Disk("all"), v.SizeBytes) // each byte that was promised
	free, _, _ := hostSpace(host)
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	if err := p.Delete("all"); err != nil {
		t.Fatal(err)
	}
	mustCreate(t, p, "again", p.Capacity().Available)
	checkPromise(t, p)
	_ = free
}

// What a deleted volume had stays backed for the next one, and goes back to the host when nobody has wanted it for a while.
func TestVolumesInTurnMoveNothing(t *testing.T) {
	p := openTest(t, Options{Dir: t.TempDir(), LimitBytes: 8 * gib, GiveBackAfter: 3 * time.Second})
	for range 2 {
		mustCreate(t, p, "big", 6*gib)
		waitIdle(p)
		grown := p.Capacity().Backed
		if err := p.Delete("big"); err != nil {
			t.Fatal(err)
		}
		waitIdle(p)
		if now := p.Capacity().Backed; now != grown {
			t.Errorf("backed: %d MiB with the volume, %d MiB just after it", grown/mib, now/mib)
		}
	}
	grown := p.Capacity().Backed
	for deadline := time.Now().Add(time.Minute); p.Capacity().Backed > grown-3*gib; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("backed: %d MiB with the volume, %d MiB long after it", grown/mib, p.Capacity().Backed/mib)
		}
	}
	waitIdle(p)
	checkPromise(t, p)
}

// What is freed beyond the headroom returns to the host, and is allocated again before it is promised again.
func TestFreedSpaceReturnsToTheHost(t *testing.T) {
	o := Options{Dir: t.TempDir(), LimitBytes: 8 * gib, GiveBackAfter: -1}
	p := openTest(t, o)
	mustCreate(t, p, "big", 6*gib)
	waitIdle(p)
	grown := allocated(t, p)
	if err := p.Delete("big"); err != nil {
		t.Fatal(err)
	}
	waitIdle(p)
	checkPromise(t, p)
	shrunk := allocated(t, p)
	if grown-shrunk < 3*gib {
		t.Errorf("allocated on the host: %d MiB with the volume, %d MiB without it", grown/mib, shrunk/mib)
	}
	v := mustCreate(t, p, "big", 6*gib)
	checkPromise(t, p)
	writeAll(t, p.Disk("big"), v.SizeBytes)
	waitIdle(p)
	p.Close()
	q := openTest(t, o)
	checkPromise(t, q)
	if err := q.Delete("big"); err != nil {
		t.Fatal(err)
	}
	waitIdle(q)
	checkPromise(t, q)
	// A crash between taking space from XFS and giving it to the host: the next process gives it.
	shrunk = allocated(t, q)
	if err := unix.Fallocate(int(q.image.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, q.account.size); err != nil {
		t.Fatal(err)
	}
	q.Close()
	r := openTest(t, o)
	if now := allocated(t, r); now > shrunk+quantum {
		t.Errorf("allocated on the host: %d MiB, %d MiB before the crash", now/mib, shrunk/mib)
	}
	checkPromise(t, r)
}

// A pool file that was copied without its blocks gets them back before a volume can write.
func TestSparseCopyIsBackedAgain(t *testing.T) {
	o := Options{Dir: t.TempDir(), LimitBytes: gib}
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	mustCreate(t, p, "v", 100*mib)
	p.Close()
	if err := Teardown(o.Dir); err != nil {
		t.Fatal(err)
	}
	image := ImagePath(o.Dir, "default")
	run(t, "cp", "--sparse=always", image, image+".copy")
	if err := os.Rename(image+".copy", image); err != nil {
		t.Fatal(err)
	}
	p = openTest(t, o)
	if _, err := p.Get("v"); err != nil {
		t.Error(err)
	}
	checkPromise(t, p)
}

// A pool file that is cut short or damaged is refused, and stays as it is.
func TestDamagedPoolIsRefused(t *testing.T) {
	o := Options{Dir: t.TempDir(), LimitBytes: gib}
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	mustCreate(t, p, "v", 10*mib)
	p.Close()
	if err := Teardown(o.Dir); err != nil {
		t.Fatal(err)
	}
	image := ImagePath(o.Dir, "default")
	st, _ := os.Stat(image)
	os.Truncate(image, st.Size()-quantum)
	if _, err := Open(t.Context(), o); !errors.Is(err, ErrDamaged) {
		t.Errorf("truncated: %v", err)
	} else {
		t.Log(err)
	}
	os.Truncate(image, st.Size())
	f, _ := os.OpenFile(image, os.O_RDWR, 0)
	defer f.Close()
	f.WriteAt([]byte{0xff}, 10)
	if _, err := Open(t.Context(), o); !errors.Is(err, ErrDamaged) {
		t.Errorf("damaged header: %v", err)
	} else {
		t.Log(err)
	}
	f.WriteAt([]byte{0}, 10)
	p = openTest(t, o)
	if _, err := p.Get("v"); err != nil {
		t.Error(err)
	}
	checkPromise(t, p)
}

// A raw device is made a pool when it is blank, used when it is one, refused otherwise.
func TestRawDevice(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "disk.img")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.Truncate(gib)
	table, _ := loop.NewTable()
	dev, err := table.Attach(f, loop.Options{SectorBytes: 512})
	if err != nil {
		t.Fatal(err)
	}
	id, _ := loop.FileOf(f)
	t.Cleanup(func() { dev.Close(); table.Detach(id) })
	o := Options{Dir: filepath.Join(dir, "pools"), Device: dev.Name()}
	run(t, "mkfs.ext4", "-q", dev.Name())
	if _, err := Open(t.Context(), o); !errors.Is(err, ErrForeign) {
		t.Errorf("a device with data: %v", err)
	} else {
		t.Log(err)
	}
	f.Truncate(0)
	f.Truncate(gib)
	f.WriteAt([]byte("x"), gib-100)
	if _, err := Open(t.Context(), o); !errors.Is(err, ErrForeign) {
		t.Errorf("a device with one byte at its end: %v", err)
	}
	f.WriteAt([]byte{0}, gib-100)
	if err := writeClaim(dev, true); err != nil { // killed in the middle of mkfs
		t.Fatal(err)
	}
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	mustCreate(t, p, "v", 10*mib)
	if isClaimed(dev) {
		t.Error("the claim stands on a finished pool")
	}
	p.Close()
	if err := Teardown(o.Dir); err != nil {
		t.Fatal(err)
	}
	p = openTest(t, o)
	if _, err := p.Get("v"); err != nil {
		t.Error(err)
	}
	if _, err := p.Create(Spec{ID: "w", SizeBytes: gib}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("larger than the device: %v", err)
	}
}
