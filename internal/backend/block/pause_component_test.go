//go:build component

package block

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/host/xfs"
)

// How long the writes of a busy volume stand still for a snapshot: 8 writers of 4 KiB at random places of 768 MiB, past the page
// cache. Each iteration is one snapshot after a second of writes; what is reported are the longest writes in milliseconds, with and
// without a snapshot, and the extents of the volume at the end.
//
//	go test -tags component -run '^$' -bench Pause -benchtime 20x ./internal/backend/block
func BenchmarkPause(b *testing.B) {
	s := serve(b, 12<<30)
	v := s.make(backend.CreateRequest{Name: "v", RequiredBytes: 1 << 30, FSType: "ext4"})
	w := startWriters(b, filepath.Join(s.mounted(v), "data"), 768*mib)
	var with, without []time.Duration
	b.ResetTimer()
	for i := range b.N {
		w.longest.Store(0)
		time.Sleep(time.Second)
		without = append(without, time.Duration(w.longest.Swap(0)))
		s.snapshot(fmt.Sprint("s", i), v.ID)
		time.Sleep(50 * time.Millisecond) // a write that stood still is counted when it ends
		with = append(with, time.Duration(w.longest.Load()))
	}
	b.StopTimer()
	writes := w.count.Load()
	w.stop()
	disk, err := os.Open(s.o.Pool.Disk(v.ID))
	if err != nil {
		b.Fatal(err)
	}
	defer disk.Close()
	extents, err := xfs.ExtentCount(disk)
	if err != nil {
		b.Fatal(err)
	}

	milliseconds := func(all []time.Duration, percent int) float64 {
		all = slices.Sorted(slices.Values(all))
		return float64(all[(len(all)-1)*percent/100].Microseconds()) / 1000
	}
	b.ReportMetric(milliseconds(with, 50), "ms-p50")
	b.ReportMetric(milliseconds(with, 100), "ms-max")
	b.ReportMetric(milliseconds(without, 50), "ms-p50-without")
	b.ReportMetric(milliseconds(without, 100), "ms-max-without")
	b.ReportMetric(float64(extents), "extents")
	b.ReportMetric(float64(writes)/b.Elapsed().Seconds(), "writes/s")
	s.unmount(v)
}

// writers write 4 KiB at random places of a file that is full already.
type writers struct {
	count, longest atomic.Int64 // longest in nanoseconds
	stopping       atomic.Bool
	all            sync.WaitGroup
}

func startWriters(t testing.TB, path string, size int64) *writers {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	piece := make([]byte, mib)
	for at := int64(0); at < size; at += mib {
		if _, err := f.WriteAt(piece, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	w := &writers{}
	t.Cleanup(w.stop)
	for range 8 {
		w.all.Go(func() {
			if err := w.write(path, size); err != nil {
				t.Error(err)
			}
		})
	}
	return w
}

func (w *writers) write(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	block, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		return err
	}
	defer unix.Munmap(block)
	for !w.stopping.Load() {
		began := time.Now()
		if _, err := f.WriteAt(block, rand.Int64N(size/4096)*4096); err != nil {
			return err
		}
		took := int64(time.Since(began))
		w.count.Add(1)
		for longest := w.longest.Load(); took > longest && !w.longest.CompareAndSwap(longest, took); longest = w.longest.Load() {
		}
	}
	return nil
}

// stop ends them, and may be called again.
func (w *writers) stop() {
	w.stopping.Store(true)
	w.all.Wait()
}
