package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const root = "../../.."

// TestGenerated fails when the definitions, deploy/kubernetes or the table of permissions are not what the generator makes.
func TestGenerated(t *testing.T) {
	want, err := files(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := want.compare(root); err != nil {
		t.Error(err)
	}
}

// TestCompare sees a file that was edited, one that is missing, and one that is not generated any more.
func TestCompare(t *testing.T) {
	dir := t.TempDir()
	c := content{"deploy/kubernetes/a.yaml": []byte("a"), "deploy/kubernetes/b.yaml": []byte("b")}
	for name, text := range map[string]string{"a.yaml": "edited", "old.yaml": "old"} {
		file := filepath.Join(dir, kustomizeDir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	err := c.compare(dir)
	if err == nil {
		t.Fatal("nothing differs")
	}
	for _, file := range []string{"a.yaml", "b.yaml", "old.yaml"} {
		if !strings.Contains(err.Error(), "deploy/kubernetes/"+file) {
			t.Errorf("%v does not name %s", err, file)
		}
	}
	if err := c.write(dir); err != nil {
		t.Fatal(err)
	}
	if err := c.compare(dir); err != nil {
		t.Error(err)
	}
}
