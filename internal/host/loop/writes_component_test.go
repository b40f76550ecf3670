//go:build component

package loop

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// watched is a loop device on a file of 64 MiB, and its writes.
func watched(t *testing.T) (*os.File, *Writes) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err == nil {
		err = f.Truncate(64 << 20)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
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

const block = 4096

// Eight writers at random places, past the page cache, and discards: what is told is what was written, to the block; reads are not.
func TestWritesAreSeen(t *testing.T) {
	dev, w := watched(t)
	direct, err := os.OpenFile(dev.Name(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	const blocks, rounds = 64 << 20 / block, 20
	missed := 0
	for range rounds {
		var want, got [blocks]bool
		var all sync.WaitGroup
		for range 8 {
			places := make([]int64, 50)
			for i := range places {
				places[i] = rand.Int64N(blocks)
				want[places[i]] = true
			}
			all.Go(func() { writeAndRead(t, direct, places, blocks) })
		}
		all.Wait()
		discard := [2]uint64{16 << 20, 1 << 20}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&discard))); errno != 0 {
			t.Fatal(errno)
		}
		for at := discard[0] / block; at < (discard[0]+discard[1])/block; at++ {
			want[at] = true
		}
		err := w.Complete(func(w Written) {
			for at := w.Offset / block; at < (w.Offset+w.Length)/block; at++ {
				got[at] = true
			}
		})
		switch {
		case errors.Is(err, ErrWritesMissed):
			missed++
		case err != nil:
			t.Fatal(err)
		case got != want:
			t.Error("what was told is not what was written")
		}
	}
	if t.Logf("events were missed in %d of %d rounds", missed, rounds); missed > rounds/2 {
		t.Errorf("events were missed in %d of %d rounds", missed, rounds)
	}
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

// More than there is room for is never taken for all; what comes after is told again.
func TestMissedWritesAreSaid(t *testing.T) {
	dev, w := watched(t)
	write := writer(t, dev)
	for range ringBytes / 48 * len(w.rings) { // an event takes more
		write(0)
	}
	if err := w.Complete(func(Written) {}); !errors.Is(err, ErrWritesMissed) {
		t.Errorf("complete: %v", err)
	}
	write(5)
	var told []Written
	if err := w.Complete(func(at Written) { told = append(told, at) }); err != nil || len(told) != 1 || told[0] != (Written{5 * block, block}) {
		t.Errorf("later: %v, %v", told, err)
	}
}

// What somebody else's program keeps from us, the kernel does not count either; the device's statistics do. Here the events are off,
// as for a CPU that was off.
func TestHiddenWritesAreMissed(t *testing.T) {
	dev, w := watched(t)
	write := writer(t, dev)
	events := func(request uint) {
		t.Helper()
		for _, r := range w.rings {
			if err := unix.IoctlSetInt(int(r.event.Fd()), request, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(1)
	if err := w.Complete(func(Written) {}); err != nil {
		t.Errorf("nothing was hidden: %v", err)
	}
	events(unix.PERF_EVENT_IOC_DISABLE)
	write(2)
	events(unix.PERF_EVENT_IOC_ENABLE)
	if err := w.Complete(func(Written) {}); !errors.Is(err, ErrWritesMissed) {
		t.Errorf("one was hidden: %v", err)
	}
	write(3)
	var told []Written
	if err := w.Complete(func(at Written) { told = append(told, at) }); err != nil || len(told) != 1 || told[0].Offset != 3*block {
		t.Errorf("later: %v, %v", told, err)
	}
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
