//go:build component

package pool

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/host/xfs"
)

// Whatever is done to a volume between two snapshots (written anywhere in pieces of any size, discarded, zeroed, allocated, grown),
// the first with the second's bytes in the ranges that are told is the second, and outside of them nothing was written.
func TestDeltaAppliedIsTheTarget(t *testing.T) {
	p := openTest(t, Options{Dir: t.TempDir(), LimitBytes: 2 * gib})
	for seed := range uint64(6) {
		v, base, target := fmt.Sprint("v", seed), fmt.Sprint("base", seed), fmt.Sprint("target", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		size := 48 * mib
		mustCreate(t, p, v, size)
		disk, err := os.OpenFile(p.Disk(v), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		change(t, random, disk, size, 200)
		mustTake(t, p, base, v)
		if seed%2 == 1 {
			size = 80 * mib
			if _, err := p.Resize(v, size); err != nil {
				t.Fatal(err)
			}
		}
		touched := change(t, random, disk, size, int(50*seed))
		mustTake(t, p, target, v)
		change(t, random, disk, size, 100) // what comes later does not count
		disk.Close()

		old, now := contentOf(t, p, base), contentOf(t, p, target)
		old = append(old, make([]byte, len(now)-len(old))...)
		told := int64(0)
		err = p.Delta(t.Context(), base, target, 0, func(offset, length int64) error {
			copy(old[offset:offset+length], now[offset:offset+length])
			told += length
			for at := offset; at < offset+length; at += 4096 {
				if !touched[at/4096] {
					t.Errorf("seed %d: told %d, which nobody touched", seed, at)
				}
			}
			return nil
		})
		if err != nil || !bytes.Equal(old, now) {
			t.Errorf("seed %d: the delta applied is not the target (%v)", seed, err)
		}
		sparse := make([]byte, len(now))
		err = p.Allocated(t.Context(), target, 0, func(offset, length int64) error {
			copy(sparse[offset:offset+length], now[offset:offset+length])
			return nil
		})
		if err != nil || !bytes.Equal(sparse, now) {
			t.Errorf("seed %d: what is allocated is not all (%v)", seed, err)
		}
		if t.Failed() {
			return
		}
		t.Logf("seed %d: %d KiB told", seed, told>>10)
	}
}

// change does n random things to the file, and says which blocks of 4 KiB they touched.
func change(t *testing.T, random *rand.Rand, disk *os.File, size int64, n int) map[int64]bool {
	t.Helper()
	touched := map[int64]bool{}
	for range n {
		at, length := random.Int64N(size), random.Int64N(200<<10)+1
		length = min(length, size-at)
		var err error
		switch random.IntN(8) {
		case 0:
			err = unix.Fallocate(int(disk.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, length)
		case 1:
			err = unix.Fallocate(int(disk.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, at, length)
		case 2:
			err = unix.Fallocate(int(disk.Fd()), unix.FALLOC_FL_KEEP_SIZE, at, length)
		default:
			piece := make([]byte, length)
			rand.NewChaCha8([32]byte{byte(random.Uint32()), byte(random.Uint32())}).Read(piece)
			_, err = disk.WriteAt(piece, at)
		}
		if err != nil {
			t.Fatal(err)
		}
		for b := at / 4096; b <= (at+length-1)/4096; b++ {
			touched[b] = true
		}
	}
	return touched
}

func contentOf(t *testing.T, p *Pool, id string) []byte {
	t.Helper()
	_, disk, err := p.openSnapshot(id)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	data, err := io.ReadAll(disk)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A thousand changed places of 10 GiB are told exactly.
func TestDeltaOfAThousandPlaces(t *testing.T) {
	p := openTest(t, Options{Dir: t.TempDir(), LimitBytes: 13 * gib})
	size := 10 * gib
	mustCreate(t, p, "v", size)
	disk, err := os.OpenFile(p.Disk("v"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	for at := int64(0); at < size; at += 256 * mib { // some of it holds data
		if _, err := disk.WriteAt(bytes.Repeat([]byte{1}, int(4*mib)), at); err != nil {
			t.Fatal(err)
		}
	}
	mustTake(t, p, "base", "v")
	random := rand.New(rand.NewPCG(7, 7))
	places := map[int64]bool{}
	for len(places) < 1000 {
		at := random.Int64N(size/8192) * 8192
		places[at] = true
		if _, err := disk.WriteAt(bytes.Repeat([]byte{2}, 4096), at); err != nil {
			t.Fatal(err)
		}
	}
	mustTake(t, p, "target", "v")
	began, first, got := time.Now(), time.Duration(0), []int64{}
	err = p.Delta(t.Context(), "base", "target", 0, func(offset, length int64) error {
		if first == 0 {
			first = time.Since(began)
		}
		if !places[offset] || length != 4096 {
			t.Errorf("told [%d, +%d)", offset, length)
		}
		got = append(got, offset)
		return nil
	})
	if err != nil || len(got) != 1000 || !slices.IsSorted(got) {
		t.Errorf("%d ranges, %v", len(got), err)
	}
	t.Logf("first after %v, all after %v", first, time.Since(began))
}

// What is written, discarded and zeroed after the blocks were first shared, and before the copy, is in the snapshot as it is in the
// volume, and costs what it costs there.
func TestCopyAfterSharing(t *testing.T) {
	p := openTest(t, Options{Dir: t.TempDir(), LimitBytes: 2 * gib})
	size := 48 * mib
	mustCreate(t, p, "v", size)
	disk, err := os.OpenFile(p.Disk("v"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	for at := int64(0); at < size; at += 12 << 10 {
		if _, err := disk.WriteAt(bytes.Repeat([]byte{7}, 4096), at); err != nil {
			t.Fatal(err)
		}
	}
	disk.Sync()
	if n, err := xfs.ExtentCount(disk); err != nil || n < 2*manyExtents {
		t.Fatalf("%d extents, %v: too few to be shared beforehand", n, err)
	}
	take, err := p.Begin("", "", TakeRequest{"s", "s", "v"})
	if err != nil {
		t.Fatal(err)
	}
	if shared, err := take.copies[0].allocated(); err != nil || shared < 10*mib {
		t.Errorf("shared beforehand: %d MiB, %v", shared/mib, err)
	}
	change(t, rand.New(rand.NewPCG(1, 2)), disk, size, 150)
	if err := take.Copy(true); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(p.Disk("v"))
	if err != nil {
		t.Fatal(err)
	}
	change(t, rand.New(rand.NewPCG(3, 4)), disk, size, 150)
	if _, err := take.Finish(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(contentOf(t, p, "s"), want) {
		t.Error("the snapshot is not what the volume was")
	}
}

// A reader has a snapshot's blocks for as long as it reads: until then what was reserved for them is nobody else's, though the
// snapshot is deleted.
func TestDeletedWhileItIsRead(t *testing.T) {
	p := openTest(t, Options{Dir: t.TempDir(), LimitBytes: 2 * gib})
	mustCreate(t, p, "v", 100*mib)
	writeAt(t, p.Disk("v"), 0, 10*mib, 'a')
	s := mustTake(t, p, "s", "v")
	told := 0
	err := p.Allocated(t.Context(), "s", 0, func(int64, int64) error {
		told++
		if err := p.DeleteSnapshot("s"); err != nil {
			t.Error(err)
		}
		if have, want := p.Capacity().Reserved, 100*mib+s.ReservedBytes; have != want {
			t.Errorf("while it is read: reserved %d MiB, want %d", have/mib, want/mib)
		}
		return nil
	})
	if err != nil || told != 1 {
		t.Errorf("told %d ranges, %v", told, err)
	}
	if have := p.Capacity().Reserved; have != 100*mib {
		t.Errorf("afterwards: reserved %d MiB", have/mib)
	}
}
