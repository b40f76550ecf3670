package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadContents(t *testing.T) {
	for name, c := range map[string]struct{ text, says string }{
		"a package and its files":  {"xfsprogs /usr/sbin/mkfs.xfs # why\n\n# more\ndash /usr/bin/dash\n", ""},
		"a package without files":  {"dash\n", ":1: package dash without files"},
		"a relative path":          {"dash bin/dash\n", ":1: \"bin/dash\""},
		"a path that climbs":       {"dash /usr/../etc/shadow\n", ":1:"},
		"a pattern that is broken": {"dash /usr/[\n", ":1:"},
		"nothing":                  {"# nothing\n", "names no package"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "contents.txt")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := readContents(file)
			if c.says == "" && (err != nil || len(got) != 2 || got[0].name != "xfsprogs" || len(got[0].patterns) != 1) {
				t.Errorf("%+v, %v", got, err)
			}
			if c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("error %v, want one with %q", err, c.says)
			}
		})
	}
	if _, err := readContents("contents.txt"); err != nil {
		t.Error(err)
	}
}

func TestMerged(t *testing.T) {
	for path, want := range map[string]string{"/bin/sh": "/usr/bin/sh", "/lib64/ld.so": "/usr/lib64/ld.so", "/usr/bin/dd": "/usr/bin/dd", "/etc/bin/x": "/etc/bin/x", "/binary": "/binary"} {
		if got := merged(path); got != want {
			t.Errorf("merged(%s) = %s, want %s", path, got, want)
		}
	}
}

// TestArchiveDependsOnContentsAlone: neither the times of files nor their owners reach the archive.
func TestArchiveDependsOnContentsAlone(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "program")
	if err := os.WriteFile(file, []byte("x"), 0o700); err != nil {
		t.Fatal(err)
	}
	layer := tree{"/usr/local/bin/berth": {mode: 0o755, from: file}, "/tmp": {mode: fs.ModeDir | fs.ModeSticky | 0o777}, "/bin": {mode: fs.ModeSymlink, link: "usr/bin"}, "/etc/passwd": {mode: 0o644, text: "root"}}
	var first []byte
	for range 2 {
		out := filepath.Join(dir, "out.tar")
		if err := layer.archive(out); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = got
		} else if !bytes.Equal(first, got) {
			t.Error("two archives of the same contents differ")
		}
		now := []byte("x")
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, now, 0o600); err != nil { // another inode, time and mode
			t.Fatal(err)
		}
	}
}

func TestReferences(t *testing.T) {
	for name, want := range map[string]string{"berth:dev": "docker.io/library/berth:dev", "registry.example/a/berth:v1": "registry.example/a/berth:v1"} {
		got, err := references([]string{name})
		if err != nil || len(got) != 1 || got[0].full != want {
			t.Errorf("%s: %v, %v; want %s", name, got, err, want)
		}
	}
	if _, err := references([]string{"Berth:a b"}); err == nil {
		t.Error("a name that is none is taken")
	}
}
