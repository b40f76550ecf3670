//go:build component

package block

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/host/xfs"
)

// compared is a copy that is compared with its source while nobody writes: block for block of the disk they must be the same.
type compared struct {
	*pool.Take
	t        *testing.T
	from, to string
}

func (c compared) Copy(still bool) error {
	if !still {
		c.t.Error("the writers are not held back")
	}
	if err := c.Take.Copy(still); err != nil {
		return err
	}
	from, to := blocksOf(c.t, c.from), blocksOf(c.t, c.to)
	if len(from) != len(to) {
		c.t.Errorf("%d blocks, and %d in the copy", len(from), len(to))
	}
	differ := 0
	for at, where := range from {
		if to[at] != where {
			differ++
		}
	}
	if differ > 0 {
		c.t.Errorf("%d of %d blocks differ", differ, len(from))
	}
	return nil
}

// blocksOf is where on the disk each block of a file is.
func blocksOf(t *testing.T, path string) map[int64]int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	extents, err := xfs.Extents(f, 0, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[int64]int64{}
	for _, e := range extents {
		for at := int64(0); at < e.Length; at += 4096 {
			if !e.Unwritten {
				blocks[e.Logical+at] = e.Physical + at
			}
		}
	}
	return blocks
}

// The last step of a copy looks only at what was written meanwhile: under random writes, growing files and discards nothing may be
// missing from it.
func TestNothingIsMissingFromACopyUnderWrites(t *testing.T) {
	s := serve(t, 6<<30)
	v := s.make(backend.CreateRequest{Name: "v", RequiredBytes: 256 * mib, FSType: "ext4"})
	if err := s.Stage(t.Context(), backend.StageRequest{ID: v.ID, Path: s.at(v.ID), FSType: "ext4", MountOptions: []string{"discard"}}); err != nil {
		t.Fatal(err)
	}
	w := startWriters(t, filepath.Join(s.at(v.ID), "data"), 128*mib)
	churned := make(chan error, 1)
	stop := make(chan bool)
	go func() { // files come and go
		for i := 0; ; i++ {
			select {
			case <-stop:
				churned <- nil
				return
			default:
			}
			path := filepath.Join(s.at(v.ID), fmt.Sprint(i%5))
			if err := os.RemoveAll(path); err != nil {
				churned <- err
				return
			}
			if err := os.WriteFile(path, make([]byte, 3*mib+int64(i%1000)), 0o600); err != nil {
				churned <- err
				return
			}
		}
	}()
	pv, err := s.get(v.ID)
	if err != nil {
		t.Fatal(err)
	}
	h, err := s.holds.Acquire(t.Context(), v.ID, "test")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		time.Sleep(100 * time.Millisecond) // of writes
		id := fmt.Sprint("s", i)
		take, err := s.o.Pool.Begin("", "", pool.TakeRequest{ID: id, Name: id, VolumeID: v.ID})
		if err != nil {
			t.Fatal(err)
		}
		making := filepath.Join(s.dir, "pools", "default", "snapshots", ".making-"+id, "disk")
		if err := s.quiesced(t.Context(), []held{{pv, h}}, compared{take, t, s.o.Pool.Disk(v.ID), making}); err != nil {
			t.Fatal(err)
		}
		if _, err := take.Finish(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-churned; err != nil {
		t.Error(err)
	}
	if err := w.Stop(); err != nil {
		t.Error(err)
	}
	h.Release()
	s.unmount(v)
	clean(t, "ext4", s.o.Pool.SnapshotDisk(mustSnapshot(t, s, "s7")))
}
