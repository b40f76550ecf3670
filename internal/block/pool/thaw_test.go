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
		os.WriteFile(filepath.Join(dir, "default.lock"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, names, err := poolsUnder(dir); err != nil || !slices.Equal(names, []string{"default"}) {
		t.Errorf("pools: %v, %v", names, err)
	}
	if err := Thaw(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(link); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the note of the freeze is still there: %v", err)
	}
	if err := Thaw(filepath.Join(dir, "none")); err != nil {
		t.Errorf("no pools: %v", err)
	}
}
