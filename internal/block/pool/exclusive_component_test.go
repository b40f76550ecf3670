//go:build component

package pool

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"berth.io/berth/internal/host/loop"
	"berth.io/berth/internal/host/mountpoint"
)

// blankDevice is a loop device to make a pool on.
func blankDevice(t *testing.T) (dev *os.File, table *loop.Table) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(gib); err != nil {
		t.Fatal(err)
	}
	if table, err = loop.NewTable(); err != nil {
		t.Fatal(err)
	}
	if dev, err = table.Attach(f, loop.Options{SectorBytes: 512}); err != nil {
		t.Fatal(err)
	}
	id, _ := loop.FileOf(f)
	t.Cleanup(func() { dev.Close(); _ = table.Detach(id) })
	return dev, table
}

// Two data directories that are told to use one device: the second is refused, leaves no mount, and takes nothing away.
func TestOneDeviceIsOnePool(t *testing.T) {
	dev, _ := blankDevice(t)
	p := openTest(t, Options{Dir: filepath.Join(t.TempDir(), "pools"), Device: dev.Name()})
	mustCreate(t, p, "v", 10*mib)
	half := p.path(volumesName, makingPrefix+"w") // a volume that is being made at this moment
	if err := os.Mkdir(half, 0o700); err != nil {
		t.Fatal(err)
	}
	other := Options{Dir: filepath.Join(t.TempDir(), "pools"), Device: dev.Name()}
	if _, err := Open(t.Context(), other); !errors.Is(err, ErrInUse) {
		t.Errorf("the second open: %v", err)
	}
	if is, err := mountpoint.Is(MountPoint(other.Dir, "default")); is || err != nil {
		t.Errorf("a mount was left: %v, %v", is, err)
	}
	if _, err := os.Stat(half); err != nil {
		t.Error(err)
	}
}

// What a volume's user wrote where the claim of an unfinished mkfs stands does not make a damaged pool a blank device.
func TestADamagedPoolIsNotClaimed(t *testing.T) {
	dev, _ := blankDevice(t)
	o := Options{Dir: filepath.Join(t.TempDir(), "pools"), Device: dev.Name()}
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	if err := Teardown(o.Dir); err != nil {
		t.Fatal(err)
	}
	if err := writeClaim(dev, true); err != nil {
		t.Fatal(err)
	}
	if _, err := dev.WriteAt([]byte{0xff}, 10); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), o); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
}

// A volume whose description cannot be read is neither deleted nor said to be, and keeps its loop device.
func TestADamagedDescriptionKeepsTheVolume(t *testing.T) {
	o := Options{Dir: t.TempDir(), LimitBytes: gib}
	p, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	mustCreate(t, p, "v", 10*mib)
	disk, err := os.OpenFile(p.Disk("v"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	id, err := loop.FileOf(disk)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := p.o.Loops.Attach(disk, loop.Options{SectorBytes: 512})
	disk.Close()
	if err != nil {
		t.Fatal(err)
	}
	dev.Close()
	if err := os.WriteFile(filepath.Join(p.Directory("v"), describeName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Close()
	p = openTest(t, o)
	if _, err := p.Get("v"); !errors.Is(err, ErrDamaged) {
		t.Errorf("get: %v", err)
	}
	if err := p.Delete("v"); !errors.Is(err, ErrDamaged) {
		t.Errorf("delete: %v", err)
	}
	if _, err := os.Stat(p.Disk("v")); err != nil {
		t.Error(err)
	}
	dev, attached, err := p.o.Loops.Open(id)
	if err != nil || !attached {
		t.Fatalf("its loop device is gone: %v", err)
	}
	dev.Close()
}

// A growth that fails never cuts the pool file below what XFS uses, whatever the account believes.
func TestAFailedGrowthCutsNothing(t *testing.T) {
	p := openTest(t, Options{Dir: filepath.Join(hostDisk(t, 2*gib), "pools"), LimitBytes: gib})
	waitIdle(p)
	before, err := p.image.Stat()
	if err != nil {
		t.Fatal(err)
	}
	p.backing.Lock()
	err = p.growImage(before.Size()-2*quantum, 8*gib)
	p.backing.Unlock()
	if !errors.Is(err, ErrNoSpace) {
		t.Fatal(err)
	}
	if after, _ := p.image.Stat(); after.Size() != before.Size() {
		t.Errorf("the pool file had %d MiB and has %d", before.Size()/mib, after.Size()/mib)
	}
}
