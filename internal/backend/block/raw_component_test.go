//go:build component

package block

import (
	"errors"
	"path/filepath"
	"testing"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/host/loop"
)

// A raw volume with nothing in its file yet may have everything in its device's cache: while the device is attached, no
// filesystem is made, also when the same path is asked for.
func TestAnAttachedDeviceIsNotFormatted(t *testing.T) {
	dir := t.TempDir()
	loops, err := loop.NewTable()
	if err != nil {
		t.Fatal(err)
	}
	pools := filepath.Join(dir, "pools")
	p, err := pool.Open(t.Context(), pool.Options{Dir: pools, LimitBytes: 1 << 30, Loops: loops})
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(Options{Pool: p, Loops: loops, Node: "n"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.Close()
		p.Close()
		if err := pool.Teardown(pools); err != nil {
			t.Error(err)
		}
	})
	v, err := b.Create(t.Context(), backend.CreateRequest{Name: "raw", RequiredBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	r := backend.StageRequest{ID: v.ID, Path: filepath.Join(dir, "staging"), Block: true}
	if err := b.Stage(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	r.Block, r.FSType = false, "ext4"
	if err := b.Stage(t.Context(), r); !errors.Is(err, backend.ErrInUse) {
		t.Errorf("staged as ext4: %v", err)
	}
	if got, _ := p.Get(v.ID); got.Content != pool.Raw {
		t.Errorf("content %q", got.Content)
	}
	if err := b.Unstage(t.Context(), v.ID, r.Path); err != nil {
		t.Fatal(err)
	}
	if err := b.Stage(t.Context(), r); err != nil {
		t.Errorf("blank and detached: %v", err)
	}
	if err := b.Unstage(t.Context(), v.ID, r.Path); err != nil {
		t.Error(err)
	}
}
