package removal

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestRemoval(t *testing.T) {
	base := t.TempDir()
	outside := filepath.Join(base, "outside")
	tree := filepath.Join(base, "tree")
	for _, d := range []string{outside, filepath.Join(tree, "a/b"), filepath.Join(tree, "c")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(outside, "keep"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := EmptyDirs(filepath.Join(tree, "a")); err != nil {
		t.Errorf("empty directories: %v", err)
	}
	if err := os.Symlink(outside, filepath.Join(tree, "link")); err != nil {
		t.Fatal(err)
	}
	if err := EmptyDirs(tree); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("a link is a file: %v", err)
	}
	if err := All(tree); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(tree); err == nil {
		t.Error("the tree is still there")
	}
	if _, err := os.Stat(filepath.Join(outside, "keep")); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
	for _, missing := range []string{tree, filepath.Join(tree, "no/parent")} {
		if err := All(missing); err != nil {
			t.Errorf("%s: %v", missing, err)
		}
	}
}
