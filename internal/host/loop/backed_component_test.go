//go:build component

package loop

import (
	"os"
	"path/filepath"
	"testing"
)

// backed makes a table and a file of 1 MiB to attach. What the test leaves attached is detached.
func backed(t *testing.T) (*Table, *os.File, File) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	id, err := FileOf(f)
	if err != nil {
		t.Fatal(err)
	}
	table, err := NewTable()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = table.Detach(id)
		f.Close()
	})
	return table, f, id
}
