package fsmount

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestTargets(t *testing.T) {
	root := t.TempDir()
	real := filepath.Join(root, "real")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(real, "pods/u/v"), 0o755),
		os.Symlink(real, filepath.Join(root, "linked")),
		os.Symlink(real, filepath.Join(real, "pods/out")),
		os.WriteFile(filepath.Join(real, "pods/file"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		root, below string
		want        error // nil: it opens
		path        string
	}{
		"there":                        {real, "pods/u/v", nil, "pods/u/v"},
		"only its parent is there":     {real, "pods/u/w", nil, "pods/u/w"},
		"the root is a link":           {filepath.Join(root, "linked"), "pods/u/v", nil, "pods/u/v"},
		"its parent is missing":        {real, "pods/x/v", fs.ErrNotExist, ""},
		"a link on the way":            {real, "pods/out/pods", ErrLink, ""},
		"a file on the way":            {real, "pods/file/x", unix.ENOTDIR, ""},
		"the root is missing":          {filepath.Join(root, "none"), "pods/u", fs.ErrNotExist, ""},
		"up":                           {real, "../real/pods", errAny, ""},
		"absolute":                     {real, "/etc", errAny, ""},
		"an element that says nothing": {real, "pods/./u", errAny, ""},
		"nothing":                      {real, "", errAny, ""},
		"the root itself":              {real, ".", errAny, ""},
	} {
		t.Run(name, func(t *testing.T) {
			target, err := Open(c.root, c.below)
			if c.want != nil {
				if err == nil || c.want != errAny && !errors.Is(err, c.want) {
					t.Errorf("%v, want %v", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer target.Close()
			if target.Path() != filepath.Join(real, c.path) {
				t.Errorf("%s", target.Path())
			}
			if m, err := target.Mounted(); m != nil || err != nil {
				t.Errorf("%v, %v", m, err)
			}
		})
	}
}

var errAny = errors.New("any")

// Make makes what is missing below the root and nothing else; Unmount of what was never there makes nothing.
func TestMakeDirectories(t *testing.T) {
	root := t.TempDir()
	if _, err := Unmount(t.Context(), root, "pods/u/v"); err != nil {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(root); len(entries) != 0 {
		t.Errorf("unmount made %v", entries)
	}
	for range 2 {
		target, err := Make(root, "pods/u/v")
		if err != nil {
			t.Fatal(err)
		}
		target.Close()
	}
	st, err := os.Stat(filepath.Join(root, "pods/u"))
	if err != nil || st.Mode().Perm() != directoryMode {
		t.Errorf("%v %v", st, err)
	}
	if _, err := Make(filepath.Join(root, "none"), "pods"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// Who mounts at a directory while another does waits for it, and no longer than it may.
func TestLockIsBounded(t *testing.T) {
	target, err := Make(t.TempDir(), "d")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	held, err := target.lock(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := target.lock(ctx, true); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "another process") {
		t.Error(err)
	}
	next := make(chan error, 1)
	go func() {
		f, err := target.lock(t.Context(), true)
		if err == nil {
			f.Close()
		}
		next <- err
	}()
	held.Close()
	if err := <-next; err != nil {
		t.Error(err)
	}
}
