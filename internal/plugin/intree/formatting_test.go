package intree

import (
	"os"
	"path/filepath"
	"testing"
)

func TestFormatMark(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mounts", "pv")
	if formatBegan(dir, "/dev/null", "uid") {
		t.Error("begun without a mark")
	}
	if err := os.Mkdir(filepath.Dir(formatMark(dir)), 0o750); err != nil {
		t.Fatal(err)
	}
	for name, mark := range map[string]string{"of another disk": "7:0 1 boot", "empty": ""} {
		if err := os.WriteFile(formatMark(dir), []byte(mark), 0o600); err != nil {
			t.Fatal(err)
		}
		if formatBegan(dir, "/dev/null", "uid") {
			t.Errorf("a mark %s was taken for this one's", name)
		}
	}
	// What has no identity is not marked, and an old mark goes.
	if err := beginFormat(dir, "/dev/null", "uid"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(formatMark(dir)); !os.IsNotExist(err) {
		t.Errorf("the mark stays: %v", err)
	}
	if err := formatEnded(dir); err != nil {
		t.Errorf("without a mark: %v", err)
	}
}
