//go:build component

package block

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"berth.io/berth/internal/backend"
)

// How long a new volume of 10 GiB takes until it is mounted, from nothing, from a snapshot, and from a mounted volume with 512 MiB in
// it: medians of each step in milliseconds.
//
//	go test -tags component -run '^$' -bench FromSource -benchtime 20x ./internal/backend/block
func BenchmarkFromSource(b *testing.B) {
	s := serve(b, 24<<30)
	const size = 10 << 30
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
			steps := map[string][]time.Duration{}
			for range b.N {
				began := time.Now()
				step := func(name string) {
					steps[name] = append(steps[name], time.Since(began))
					began = time.Now()
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
				b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-"+name)
			}
		})
	}
	s.unmount(source)
}
