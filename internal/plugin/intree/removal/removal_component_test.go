//go:build component

package removal

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A bind mount of the same filesystem, which a comparison of device numbers does not see: nothing behind it is touched.
func TestNothingIsRemovedThroughAMount(t *testing.T) {
	for name, remove := range map[string]func(string) error{"All": All, "EmptyDirs": EmptyDirs} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			data, dir := filepath.Join(base, "data"), filepath.Join(base, "pod/volumes/x")
			for _, d := range []string{filepath.Join(data, "empty"), dir, filepath.Join(base, "pod/other")} {
				if err := os.MkdirAll(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := unix.Mount(data, dir, "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			if err := remove(filepath.Join(base, "pod")); !errors.Is(err, ErrMounted) {
				t.Errorf("error %v, want ErrMounted", err)
			}
			if err := remove(dir); !errors.Is(err, ErrMounted) {
				t.Errorf("the mount point itself: error %v, want ErrMounted", err)
			}
			if _, err := os.Stat(filepath.Join(data, "empty")); err != nil {
				t.Error(err)
			}
			if err := unix.Unmount(dir, 0); err != nil {
				t.Fatal(err)
			}
			if err := remove(filepath.Join(base, "pod")); err != nil {
				t.Error(err)
			}
		})
	}
}
