//go:build component

package block

import (
	"os"
	"path/filepath"
	"testing"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/host/loop"
	"berth.io/berth/internal/host/mountpoint"
)

const mib = int64(1) << 20

// served is a backend on a pool of its own.
type served struct {
	*Backend
	t   testing.TB
	dir string
}

func serve(t testing.TB, limit int64) *served {
	t.Helper()
	s := &served{t: t, dir: t.TempDir()}
	s.start(limit)
	t.Cleanup(func() {
		s.stop()
		if err := pool.Teardown(s.pools()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *served) pools() string { return filepath.Join(s.dir, "pools") }

func (s *served) start(limit int64) {
	s.t.Helper()
	loops, err := loop.NewTable()
	if err != nil {
		s.t.Fatal(err)
	}
	p, err := pool.Open(s.t.Context(), pool.Options{Dir: s.pools(), LimitBytes: limit, Loops: loops})
	if err != nil {
		s.t.Fatal(err)
	}
	if s.Backend, err = New(Options{Pool: p, Loops: loops, Node: "n"}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *served) stop() {
	s.Close()
	s.o.Pool.Close()
}

func (s *served) make(r backend.CreateRequest) backend.Volume {
	s.t.Helper()
	v, err := s.Create(s.t.Context(), r)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

func (s *served) at(id string) string { return filepath.Join(s.dir, "staging", id) }

// mounted stages a volume and returns where.
func (s *served) mounted(v backend.Volume) string {
	s.t.Helper()
	if err := s.Stage(s.t.Context(), backend.StageRequest{ID: v.ID, Path: s.at(v.ID), FSType: v.FSType}); err != nil {
		s.t.Fatal(err)
	}
	return s.at(v.ID)
}

func (s *served) unmount(v backend.Volume) {
	s.t.Helper()
	if err := s.Unstage(s.t.Context(), v.ID, s.at(v.ID)); err != nil {
		s.t.Error(err)
	}
	if is, err := mountpoint.Is(s.at(v.ID)); is || err != nil {
		s.t.Errorf("still mounted at %s: %v", s.at(v.ID), err)
	}
}

func (s *served) snapshot(name, volume string) backend.Snapshot {
	s.t.Helper()
	snap, err := s.CreateSnapshot(s.t.Context(), backend.SnapshotRequest{Name: name, VolumeID: volume})
	if err != nil {
		s.t.Fatal(err)
	}
	return snap
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func wantContent(t testing.TB, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s holds %q, want %q: %v", path, got, want, err)
	}
}
