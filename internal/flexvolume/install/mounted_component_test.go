//go:build component

package install

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A driver whose volume is mounted stays: nothing else could unmount it.
func TestUninstallInUse(t *testing.T) {
	v1, _ := two(t)
	dir, kubelet := t.TempDir(), t.TempDir()
	if _, err := Install(t.Context(), v1, Options{Dir: dir, Vendor: "inuse", Drivers: []string{"nfs"}}); err != nil {
		t.Fatal(err)
	}
	for _, below := range []string{"pods/u/volumes/inuse~nfs/v", "plugins/kubernetes.io/flexvolume/inuse/nfs/mounts/v"} {
		volume := filepath.Join(kubelet, below)
		if err := errors.Join(os.MkdirAll(volume, 0o755), unix.Mount("x", volume, "tmpfs", 0, "")); err != nil {
			t.Fatal(err)
		}
		_, err := Uninstall(t.Context(), Options{Dir: dir, Vendor: "inuse"})
		if !errors.Is(err, ErrInUse) {
			t.Errorf("%s: %v", below, err)
		}
		if err := unix.Unmount(volume, 0); err != nil {
			t.Fatal(err)
		}
	}
	if gone, err := Uninstall(t.Context(), Options{Dir: dir, Vendor: "inuse"}); err != nil || len(gone) != 1 {
		t.Errorf("%v %v", gone, err)
	}
}
