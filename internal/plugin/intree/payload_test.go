package intree

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func noOwner(string) error { return nil }

// look lists what a reader of the volume sees: path=content, through the links.
func look(t *testing.T, dir string) map[string]string {
	t.Helper()
	seen := map[string]string{}
	var walk func(rel string)
	walk = func(rel string) {
		entries, err := os.ReadDir(filepath.Join(dir, rel))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "..") {
				continue
			}
			path := filepath.Join(rel, e.Name())
			info, err := os.Stat(filepath.Join(dir, path))
			if err != nil {
				t.Fatal(err)
			}
			if info.IsDir() {
				walk(path)
				continue
			}
			data, err := os.ReadFile(filepath.Join(dir, path))
			if err != nil {
				t.Fatal(err)
			}
			seen[path] = string(data)
		}
	}
	walk("")
	return seen
}

func texts(m map[string]string) payload {
	p := payload{}
	for name, text := range m {
		p[name] = file{data: []byte(text), mode: 0o644}
	}
	return p
}

func equal(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

// Each version in turn is what a reader sees, with one stamped directory left; a version that says the same changes nothing.
func TestWriteVersions(t *testing.T) {
	dir := t.TempDir()
	last := ""
	for i, want := range []map[string]string{
		{"a": "1"},
		{"a": "2", "sub/b": "x", "sub/deep/c": "y"},
		{"sub/b": "x"},
		{"sub/b": "x"},
		{},
		{"a": "3"},
	} {
		if err := texts(want).write(dir, noOwner); err != nil {
			t.Fatal(err)
		}
		if got := look(t, dir); !equal(got, want) {
			t.Fatalf("version %d shows %v, want %v", i, got, want)
		}
		stamps, _ := filepath.Glob(filepath.Join(dir, "..2*"))
		if len(stamps) != 1 {
			t.Fatalf("version %d leaves %v", i, stamps)
		}
		target, err := os.Readlink(filepath.Join(dir, dataLink))
		if err != nil || filepath.Join(dir, target) != stamps[0] {
			t.Fatalf("..data points to %q, %v", target, err)
		}
		if i == 3 && target != last {
			t.Error("an unchanged payload was written again")
		}
		last = target
	}
}

// Whatever a crash leaves, the next write shows the payload and takes the rest away.
func TestWriteAfterACrash(t *testing.T) {
	for name, leave := range map[string]func(dir string) error{
		"stamped directory without a link": func(dir string) error { return os.MkdirAll(filepath.Join(dir, "..2020_01_01_00_00_00.1/sub"), 0o755) },
		"new link that was not renamed":    func(dir string) error { return os.Symlink("..2020_gone", filepath.Join(dir, newDataLink)) },
		"visible name of an older version": func(dir string) error { return os.Symlink("..data/old", filepath.Join(dir, "old")) },
		"visible name missing":             func(dir string) error { return os.Remove(filepath.Join(dir, "a")) },
		"data link to nowhere": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, dataLink)), os.Symlink("..2020_gone", filepath.Join(dir, dataLink)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := texts(map[string]string{"a": "1"}).write(dir, noOwner); err != nil {
				t.Fatal(err)
			}
			if err := leave(dir); err != nil {
				t.Fatal(err)
			}
			for _, want := range []map[string]string{{"a": "1"}, {"a": "2", "b": "1"}} {
				if err := texts(want).write(dir, noOwner); err != nil {
					t.Fatal(err)
				}
				if got := look(t, dir); !equal(got, want) {
					t.Errorf("shows %v, want %v", got, want)
				}
			}
			if entries, _ := os.ReadDir(dir); len(entries) != 4 { // stamp, ..data, a, b
				t.Errorf("left: %v", entries)
			}
		})
	}
}

// Names that are not ours stay: a nested mount point, the pod's own file in a writable volume.
func TestWriteLeavesStrangers(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "nested"), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := texts(map[string]string{"a": "1"}).write(dir, noOwner); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "nested")); err != nil {
		t.Error(err)
	}
}

func TestWriteModes(t *testing.T) {
	dir := t.TempDir()
	if err := (payload{"a": {data: []byte("x"), mode: 0o400}, "d/b": {mode: 0o666}}).write(dir, noOwner); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"a": 0o400, "d/b": 0o666} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
}

func TestPathsThatLeaveTheVolumeAreRefused(t *testing.T) {
	dir := t.TempDir()
	for _, bad := range []string{"", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "..data", "..data/x", "..2020", ".", "a\x00b", strings.Repeat("n", 256), "a/" + strings.Repeat("n", 256), strings.Repeat("ab/", 1500)} {
		if err := texts(map[string]string{bad: "x"}).write(dir, noOwner); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	for _, good := range []string{"a", "a..b", "a/..b", ".hidden", "a/./b", "a//b", "..."[:1] + "x"} {
		if err := validatePath(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("a refused payload left %v", entries)
	}
}

// Whatever the path, it is refused or the file lands below the directory.
func FuzzPayloadPath(f *testing.F) {
	for _, s := range []string{"a", "../x", "a/../b", "..data", "/x", "a//b/./c", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		p := texts(map[string]string{name: "x"})
		if p.validate() != nil {
			return
		}
		for clean := range p {
			if !filepath.IsLocal(clean) || strings.HasPrefix(clean, "..") {
				t.Errorf("%q became %q", name, clean)
			}
		}
	})
}
