//go:build component

package loop

import (
	"errors"
	"os"
	"sync"
	"testing"
)

// A file is attached once, whoever asks how often; AutoClear lets it go at the last close, unless somebody asked to keep
// it; what is open is not torn away.
func TestAttachOnce(t *testing.T) {
	table, f, id := backed(t)
	devices := make([]*os.File, 20)
	var all sync.WaitGroup
	for i := range devices {
		all.Go(func() {
			dev, err := table.Attach(f, Options{SectorBytes: 512, AutoClear: true})
			if err != nil {
				t.Error(err)
			}
			devices[i] = dev
		})
	}
	all.Wait()
	for _, dev := range devices {
		if dev.Name() != devices[0].Name() {
			t.Errorf("%s and %s", dev.Name(), devices[0].Name())
		}
		dev.Close()
	}
	if dev, ok, _ := table.Open(id); ok {
		dev.Close()
		t.Error("still attached after the last close")
	}
	dev, err := table.Attach(f, Options{SectorBytes: 512, AutoClear: true})
	if err != nil {
		t.Fatal(err)
	}
	kept, err := table.Attach(f, Options{SectorBytes: 512})
	if err != nil {
		t.Fatal(err)
	}
	dev.Close()
	kept.Close()
	again, ok, _ := table.Open(id)
	if !ok {
		t.Fatal("not kept")
	}
	if err := table.Detach(id); !errors.Is(err, ErrHeld) {
		t.Errorf("detached while open: %v", err)
	}
	again.Close()
	if dev, ok, _ := table.Open(id); ok {
		dev.Close()
		t.Error("still attached after the holder closed it")
	}
	if err := table.Detach(id); err != nil {
		t.Error(err)
	}
}
