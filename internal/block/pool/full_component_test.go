//go:build component

package pool

import (
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A pool is promised away to the last MiB, half to a volume and half to its snapshot: the volume is overwritten as a whole, in pieces
// and in any order, snapshot after snapshot, and never meets a full pool.
func TestOverwrittenUnderSnapshotsInAFullPool(t *testing.T) {
	p := openTest(t, Options{Dir: t.TempDir(), LimitBytes: gib})
	size := (p.Capacity().Available - 2*VolumeQuantum) / 2 / VolumeQuantum * VolumeQuantum
	mustCreate(t, p, "v", size)
	disk, err := os.OpenFile(p.Disk("v"), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	const piece = 32 << 10
	data, err := unix.Mmap(-1, 0, piece, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(data)
	for round := range 3 {
		for i := range data {
			data[i] = byte(round)
		}
		for _, i := range rand.Perm(int(size / piece)) {
			if _, err := disk.WriteAt(data, int64(i)*piece); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		if round > 0 {
			if err := p.DeleteSnapshot("s"); err != nil {
				t.Fatal(err)
			}
		}
		mustTake(t, p, "s", "v")
		if _, err := p.Begin("", "", TakeRequest{"more", "more", "v"}); !errors.Is(err, ErrNoSpace) {
			t.Errorf("a snapshot without room: %v", err)
		}
	}
	if free := p.Capacity().Available; free > 4*mib {
		t.Errorf("%d MiB were free all the time", free/mib)
	}
	checkPromise(t, p)
}
