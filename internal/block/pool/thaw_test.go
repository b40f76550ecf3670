package pool

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// What a killed process left is found whatever the data directory is called: a name is no pattern.
func TestThawFindsWhatIsInAnyDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data[1]*")
	at := MountPoint(dir, "default")
	volume := filepath.Join(at, volumesName, "v")
	link := filepath.Join(volume, FrozenLink)
	if err := errors.Join(os.MkdirAll(volume, 0o700), os.Symlink(filepath.Join(dir, "unmounted"), link),
		os.Symlink("another-boot", filepath.Join(at, expeditedLink)), os.WriteFile(filepath.Join(dir, "default.lock"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, names, err := poolsUnder(dir); err != nil || !slices.Equal(names, []string{"default"}) {
		t.Errorf("pools: %v, %v", names, err)
	}
	if err := Thaw(dir); err != nil {
		t.Error(err)
	}
	for _, note := range []string{link, filepath.Join(at, expeditedLink)} {
		if _, err := os.Lstat(note); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", note, err)
		}
	}
	if err := Thaw(filepath.Join(dir, "none")); err != nil {
		t.Errorf("no pools: %v", err)
	}
}
