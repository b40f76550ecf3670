//go:build component

package intree

import (
	"os"
	"path/filepath"
	"testing"
)

// A mkfs that could not even start leaves no leave to format: the disk may be given to something else, whose data nobody
// here recognises.
func TestAFailedFormatIsNotGoneOnWithOverData(t *testing.T) {
	device, dir := loop(t, 64<<20), t.TempDir()
	dev, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	at := filepath.Join(dir, "mounts", "pv")
	if err := os.MkdirAll(at, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := formatAndMount(t.Context(), device, at, "nosuchfs", nil); err == nil {
		t.Fatal("formatted")
	}
	data := []byte("data of a program that has its own format")
	if _, err := dev.WriteAt(data, 8192); err != nil {
		t.Fatal(err)
	}
	if err := formatAndMount(t.Context(), device, at, "ext4", nil); err == nil {
		t.Error("formatted over data")
	}
	have := make([]byte, len(data))
	if _, err := dev.ReadAt(have, 8192); err != nil || string(have) != string(data) {
		t.Errorf("%q, %v", have, err)
	}
}
