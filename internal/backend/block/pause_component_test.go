//go:build component

package block

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/host/xfs"
	"berth.io/berth/test/busy"
)

// How long the writes of a busy volume stand still for a snapshot: 8 writers of 4 KiB at random places of 768 MiB, past the page
// cache. Each iteration is one snapshot after a second of writes; what is reported are the longest writes in milliseconds, with a
// snapshot and for as long without one, and the extents of the volume at the end.
//
//	go test -tags component -run '^$' -bench Pause -benchtime 20x ./internal/backend/block
func BenchmarkPause(b *testing.B) {
	s := serve(b, 40<<30)
	v := s.make(backend.CreateRequest{Name: "v", RequiredBytes: 1 << 30, FSType: "ext4"})
	w := startWriters(b, filepath.Join(s.mounted(v), "data"), 768*mib)
	var with, without, lasted []time.Duration
	b.ResetTimer()
	for i := range b.N {
		time.Sleep(time.Second)
		w.Longest.Store(0)
		began := time.Now()
		s.snapshot(fmt.Sprint("s", i), v.ID)
		time.Sleep(50 * time.Millisecond) // a write that stood still is counted when it ends
		with, lasted = append(with, time.Duration(w.Longest.Load())), append(lasted, time.Since(began))
	}
	b.StopTimer()
	writes := w.Count.Load()
	for _, d := range lasted {
		w.Longest.Store(0)
		time.Sleep(d)
		without = append(without, time.Duration(w.Longest.Load()))
	}
	if err := w.Stop(); err != nil {
		b.Fatal(err)
	}
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
	b.ReportMetric(milliseconds(with, 90), "ms-p90")
	b.ReportMetric(milliseconds(with, 100), "ms-max")
	b.ReportMetric(milliseconds(without, 50), "ms-p50-without")
	b.ReportMetric(milliseconds(without, 90), "ms-p90-without")
	b.ReportMetric(milliseconds(without, 100), "ms-max-without")
	b.ReportMetric(milliseconds(lasted, 50), "ms-snapshot")
	b.ReportMetric(float64(extents), "extents")
	b.ReportMetric(float64(writes)/b.Elapsed().Seconds(), "writes/s")
	s.unmount(v)
}

// startWriters keeps a file busy until the test ends, or before.
func startWriters(t testing.TB, path string, size int64) *busy.Writers {
	t.Helper()
	w, err := busy.Start(path, size, busy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Stop(); err != nil {
			t.Error(err)
		}
	})
	return w
}
