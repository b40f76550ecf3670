//go:build component

package loop

import (
	"cmp"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/host/filesystem"
)

// watched is a loop device on a file of 64 MiB, and its writes.
func watched(t *testing.T) (*os.File, *Writes) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return watchedFile(t, f)
}

func watchedFile(t *testing.T, f *os.File) (*os.File, *Writes) {
	t.Helper()
	if err := f.Truncate(deviceBytes); err != nil {
		t.Fatal(err)
	}
	table, err := NewTable()
	if err != nil {
		t.Fatal(err)
	}
	dev, err := table.Attach(f, Options{SectorBytes: 512, AutoClear: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	w, err := WatchWrites(dev)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return dev, w
}

const (
	deviceBytes = 64 << 20
	block       = 4096
)

// Eight writers at random places, past the page cache, and discards: what is told is what was written, to the unit; reads are not.
func TestWritesAreSeen(t *testing.T) {
	dev, w := watched(t)
	direct, err := os.OpenFile(dev.Name(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	const blocks, units, rounds = deviceBytes / block, deviceBytes / writtenUnit, 20
	for range rounds {
		var want, got [units]bool
		var all sync.WaitGroup
		for range 8 {
			places := make([]int64, 50)
			for i := range places {
				places[i] = rand.Int64N(blocks)
				want[places[i]*block/writtenUnit] = true
			}
			all.Go(func() { writeAndRead(t, direct, places, blocks) })
		}
		all.Wait()
		discard := [2]uint64{rand.Uint64N(60) << 20, 4 << 20} // most begin within a word of bits
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&discard))); errno != 0 {
			t.Fatal(errno)
		}
		for at := discard[0] / writtenUnit; at < (discard[0]+discard[1])/writtenUnit; at++ {
			want[at] = true
		}
		err := w.Complete(func(w Written) {
			for at := w.Offset / writtenUnit; at < (w.Offset+w.Length+writtenUnit-1)/writtenUnit; at++ {
				got[at] = true
			}
		})
		switch {
		case err != nil:
			t.Fatal(err)
		case got != want:
			t.Error("what was told is not what was written")
		}
	}
}

// A device that is never at rest: nothing that was written is missing from what is told in the end, and all of it is accounted for.
func TestWritesAreSeenFromTheMiddleOn(t *testing.T) {
	dev, before := watched(t)
	before.Close()
	direct, err := os.OpenFile(dev.Name(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	const blocks, units = deviceBytes / block, deviceBytes / writtenUnit
	for range 10 {
		var stop, watching atomic.Bool
		var want, got [units]atomic.Bool
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for !stop.Load() {
					counts := watching.Load()
					place := rand.Int64N(blocks)
					writeAndRead(t, direct, []int64{place}, blocks)
					if counts {
						want[place*block/writtenUnit].Store(true)
					}
				}
			})
		}
		time.Sleep(20 * time.Millisecond)
		w, err := WatchWrites(dev)
		if err != nil {
			t.Fatal(err)
		}
		watching.Store(true)
		note := func(w Written) {
			for at := w.Offset / writtenUnit; at < (w.Offset+w.Length+writtenUnit-1)/writtenUnit; at++ {
				got[at].Store(true)
			}
		}
		for range 20 {
			time.Sleep(time.Millisecond)
			if err := w.Since(note); err != nil {
				t.Error(err)
			}
		}
		stop.Store(true)
		all.Wait()
		if err := w.Complete(note); err != nil {
			t.Error(err)
		}
		w.Close()
		for at := range want {
			if want[at].Load() && !got[at].Load() {
				t.Errorf("unit %d was written and not told", at)
			}
		}
	}
}

// What was on its way when the watch began, and ends after that, is told too: whoever reads the device meanwhile may read what was there
// before. The filesystem with the device's file is frozen, so that the write does not come to its end before that.
func TestAWriteOnItsWayIsSeen(t *testing.T) {
	dev, w, root := watchedFrozen(t)
	w.Close()
	write := writer(t, dev)
	done := make(chan struct{})
	go func() { defer close(done); write(20) }()
	underWay(t, dev, 1)
	w, err := WatchWrites(dev)
	if thawed := filesystem.Thaw(root); err != nil || thawed != nil {
		t.Fatal(err, thawed)
	}
	defer w.Close()
	<-done
	if got := told(t, w.Complete); !slices.Equal(got, []Written{{writtenUnit, writtenUnit}}) {
		t.Errorf("told %v", got)
	}
}

// Requests of several lengths for one place at once: each is told until its own end.
func TestOverlappingWritesOnTheirWayAreSeen(t *testing.T) {
	dev, w, root := watchedFrozen(t)
	direct, err := os.OpenFile(dev.Name(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	var all sync.WaitGroup
	for i, length := range []int{block, 2 * writtenUnit, block, 3 * writtenUnit, block} {
		all.Go(func() {
			page, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Munmap(page)
			if _, err := direct.WriteAt(page, 0); err != nil {
				t.Error(err)
			}
		})
		underWay(t, dev, i+1)
	}
	for call := range 3 {
		last := int64(0)
		for _, at := range told(t, w.Since) {
			last = max(last, at.Offset+at.Length)
		}
		if last < 3*writtenUnit {
			t.Errorf("call %d: told up to %d", call, last)
		}
	}
	if err := filesystem.Thaw(root); err != nil {
		t.Fatal(err)
	}
	all.Wait()
	last := int64(0)
	for _, at := range told(t, w.Complete) {
		last = max(last, at.Offset+at.Length)
	}
	if last < 3*writtenUnit {
		t.Errorf("in the end: told up to %d", last)
	}
}

// watchedFrozen is a device whose requests begin and do not end until the filesystem of root is thawed.
func watchedFrozen(t *testing.T) (_ *os.File, _ *Writes, root *os.File) {
	t.Helper()
	dir := frozenLater(t)
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	dev, w := watchedFile(t, f)
	if root, err = os.Open(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = filesystem.Thaw(root) // nothing to do, but when the test failed
		root.Close()
	})
	if err := filesystem.Freeze(root); err != nil {
		t.Fatal(err)
	}
	return dev, w, root
}

// underWay waits until so many writes are.
func underWay(t *testing.T, dev *os.File, n int) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		inflight, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(dev.Name()), "inflight"))
		if err == nil && slices.Equal(strings.Fields(string(inflight)), []string{"0", strconv.Itoa(n)}) {
			return
		}
		if time.Since(began) > 10*time.Second {
			t.Fatalf("not %d writes under way: %q, %v", n, inflight, err)
		}
	}
}

// frozenLater is a small filesystem of its own.
func frozenLater(t *testing.T) string {
	t.Helper()
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	for _, c := range [][]string{
		{"truncate", "-s", "256M", image}, {"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, dir},
	} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", c, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// writeAndRead writes one block at each place, and reads the one after it.
func writeAndRead(t *testing.T, direct *os.File, places []int64, blocks int64) {
	page, err := unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Error(err)
		return
	}
	defer unix.Munmap(page)
	for _, at := range places {
		if _, err := direct.WriteAt(page, at*block); err != nil {
			t.Error(err)
		}
		if _, err := direct.ReadAt(page, (at+1)%blocks*block); err != nil {
			t.Error(err)
		}
	}
}

// writer writes a block of the device, past the page cache.
func writer(t *testing.T, dev *os.File) func(at int64) {
	t.Helper()
	direct, err := os.OpenFile(dev.Name(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { direct.Close() })
	page, err := unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(page) })
	return func(at int64) {
		t.Helper()
		if _, err := direct.WriteAt(page, at*block); err != nil {
			t.Fatal(err)
		}
	}
}

// What is told of one writer, call by call.
func told(t *testing.T, call func(func(Written)) error) []Written {
	t.Helper()
	var all []Written
	if err := call(func(at Written) { all = append(all, at) }); err != nil {
		t.Error(err)
	}
	return all
}

// Kernels have been seen that do not tell every end. What began is told until it is certain that it has ended.
func TestWritesWhoseEndIsNotSeen(t *testing.T) {
	dev, w := watched(t)
	write := writer(t, dev)
	w.seen.events[0].Close() // of ends
	write(5)
	write(5)
	unit := Written{0, writtenUnit}
	own := Written{5 * block, block}
	if got := told(t, w.Since); !slices.Contains(got, unit) {
		t.Errorf("at first: %v", got)
	}
	for range 3 {
		if got := told(t, w.Since); !slices.Contains(got, own) {
			t.Errorf("while it may be on its way: %v", got)
		}
	}
	if got := told(t, w.Complete); !slices.Contains(got, own) {
		t.Errorf("at rest: %v", got)
	}
	if got := told(t, w.Complete); len(got) > 0 {
		t.Errorf("after that: %v", got)
	}
	write(40)
	if got := told(t, w.Complete); !slices.Contains(got, Written{2 * writtenUnit, writtenUnit}) {
		t.Errorf("later: %v", got)
	}
}

// A write whose beginning nobody told is not in what is told; the device's statistics know of it.
func TestHiddenWritesAreMissed(t *testing.T) {
	dev, w := watched(t)
	write := writer(t, dev)
	write(1)
	if err := w.Complete(func(Written) {}); err != nil {
		t.Errorf("nothing was hidden: %v", err)
	}
	w.seen.events[1].Close() // of beginnings
	w.seen.events[0].Close()
	write(2)
	if err := w.Since(func(Written) {}); !errors.Is(err, ErrWritesMissed) {
		t.Errorf("one was hidden, since: %v", err)
	}
	if err := w.Complete(func(Written) {}); !errors.Is(err, ErrWritesMissed) {
		t.Errorf("one was hidden, complete: %v", err)
	}
}

// A discard of more than 4 MiB is told in units of 64 MiB.
func TestLargeRequestsAreSeen(t *testing.T) {
	dev, w := watched(t)
	if err := os.Truncate(backing(t, dev), 8<<30); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		t.Fatal(err)
	}
	w.Close()
	w, err := WatchWrites(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, tc := range []struct{ offset, length uint64 }{
		{0, 8 << 30}, {block, 4<<20 + block}, {63 << 20, 2 << 30}, {4<<30 - 64<<20, 128 << 20}, {1 << 20, 4 << 20},
	} {
		discard := [2]uint64{tc.offset, tc.length}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&discard))); errno != 0 {
			t.Fatal(errno)
		}
		got := told(t, w.Complete)
		slices.SortFunc(got, func(a, b Written) int { return cmp.Compare(a.Offset, b.Offset) })
		end, last := int64(tc.offset), int64(tc.offset+tc.length)
		for _, at := range got {
			if at.Offset <= end {
				end = max(end, at.Offset+at.Length)
			}
			if at.Offset < int64(tc.offset)&^(1<<26-1) || at.Offset+at.Length > (last+1<<26-1)&^(1<<26-1) {
				t.Errorf("discard of %v: far from it: %v", tc, at)
			}
		}
		if end < last {
			t.Errorf("discard of %v: told %v", tc, got)
		}
	}
}

// A write beyond what the device was when it began to be watched has no place in the bits.
func TestWritesToAGrownDeviceAreMissed(t *testing.T) {
	for name, at := range map[string]int64{"right behind": deviceBytes / block, "at the new end": 2*deviceBytes/block - 1} {
		t.Run(name, func(t *testing.T) { testGrown(t, at) })
	}
}

func testGrown(t *testing.T, at int64) {
	dev, w := watched(t)
	if err := os.Truncate(backing(t, dev), 2*deviceBytes); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		t.Fatal(err)
	}
	write := writer(t, dev)
	write(at)
	if err := w.Complete(func(Written) {}); !errors.Is(err, ErrWritesMissed) {
		t.Errorf("complete: %v", err)
	}
}

func backing(t *testing.T, dev *os.File) string {
	t.Helper()
	path, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(dev.Name()), "loop/backing_file"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(path))
}

// Without statistics there is no witness.
func TestNoStatisticsNoWatch(t *testing.T) {
	dev, w := watched(t)
	iostats := filepath.Join("/sys/block", filepath.Base(dev.Name()), "queue", "iostats")
	if err := os.WriteFile(iostats, []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.WriteFile(iostats, []byte("1"), 0) })
	if err := w.Complete(func(Written) {}); err == nil {
		t.Error("complete without statistics")
	}
	if w, err := WatchWrites(dev); err == nil {
		w.Close()
		t.Error("watched without statistics")
	}
}
