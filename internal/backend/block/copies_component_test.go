//go:build component

package block

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/host/loop"
)

// How long a new volume of 10 GiB takes until it is mounted, from nothing, from a snapshot, and from a mounted volume with 512 MiB in
// it: medians of each step in milliseconds, and in flushes of the pool's device.
//
//	go test -tags component -run '^$' -bench FromSource -benchtime 20x ./internal/backend/block
func BenchmarkFromSource(b *testing.B) {
	s := serve(b, 3<<30)
	const size = 1 << 30
	source := s.make(backend.CreateRequest{Name: "source", RequiredBytes: size, FSType: "ext4"})
	if err := os.WriteFile(filepath.Join(s.mounted(source), "data"), make([]byte, 512*mib), 0o600); err != nil {
		b.Fatal(err)
	}
	snap := s.snapshot("s", source.ID)
	for _, from := range []struct {
		name   string
		source backend.Source
	}{{"nothing", backend.Source{}}, {"snapshot", backend.Source{SnapshotID: snap.ID}}, {"volume", backend.Source{VolumeID: source.ID}}} {
		b.Run(from.name, func(b *testing.B) {
			steps, flushes := map[string][]time.Duration{}, map[string][]int64{}
			for range b.N {
				began := time.Now()
				synced := flushesOf(b, s.pools())
				step := func(name string) {
					steps[name] = append(steps[name], time.Since(began))
					now := flushesOf(b, s.pools())
					flushes[name] = append(flushes[name], now-synced)
					began, synced = time.Now(), now
				}
				v := s.make(backend.CreateRequest{Name: "copy", RequiredBytes: size, FSType: "ext4", Source: from.source})
				step("create")
				s.formats.Wait()
				step("format")
				s.mounted(v)
				step("stage")
				s.unmount(v)
				step("unstage")
				if err := s.Delete(b.Context(), v.ID); err != nil {
					b.Fatal(err)
				}
				step("delete")
			}
			for name, took := range steps {
				slices.Sort(took)
				slices.Sort(flushes[name])
				b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-"+name)
				b.ReportMetric(float64(flushes[name][len(took)/2]), "flushes-"+name)
			}
		})
	}
	s.unmount(source)
}

// flushesOf the device of the pool in dir, since it is attached: field 16 of its statistics (Documentation/block/stat.rst). Each waits
// for the disk, however busy that is.
func flushesOf(t testing.TB, dir string) int64 {
	t.Helper()
	loops, err := loop.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range loops {
		if l.Backing != filepath.Join(dir, "default.img") {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/stat", l.Number))
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.ParseInt(strings.Fields(string(stat))[15], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	t.Fatalf("the pool of %s is not attached", dir)
	return 0
}
