package fsgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// tree makes a volume with a directory, a file, an executable with setuid, a FIFO and links.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "a/b"), 0o700),
		os.WriteFile(filepath.Join(dir, "a/b/file"), nil, 0o600),
		os.WriteFile(filepath.Join(dir, "tool"), nil, 0o755),
		os.Chmod(filepath.Join(dir, "tool"), 0o755|os.ModeSetuid),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
		os.Symlink("/etc/passwd", filepath.Join(dir, "out")),
		os.Symlink("nowhere", filepath.Join(dir, "dangling")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func modeOf(t *testing.T, path string) (gid int64, mode uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Gid), st.Mode & 0o7777
}

func group() int64 {
	if os.Getuid() == 0 {
		return 4242
	}
	return int64(os.Getgid()) // a group that needs no root
}

func TestApply(t *testing.T) {
	for _, c := range []struct {
		access Access
		modes  map[string]uint32
	}{
		{ReadWrite, map[string]uint32{".": 0o2775, "a": 0o2770, "a/b": 0o2770, "a/b/file": 0o660, "tool": 0o4775, "fifo": 0o660}},
		{ReadOnly, map[string]uint32{".": 0o2755, "a": 0o2750, "a/b": 0o2750, "a/b/file": 0o640, "tool": 0o4755, "fifo": 0o640}},
	} {
		t.Run(fmt.Sprintf("read-only %v", c.access), func(t *testing.T) {
			dir := tree(t)
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if Matches(dir, group(), c.access) {
				t.Error("matches before")
			}
			if err := Apply(t.Context(), dir, group(), c.access); err != nil {
				t.Fatal(err)
			}
			for name, want := range c.modes {
				if gid, mode := modeOf(t, filepath.Join(dir, name)); gid != group() || mode != want {
					t.Errorf("%s: group %d, mode %o, want %d, %o", name, gid, mode, group(), want)
				}
			}
			if gid, _ := modeOf(t, filepath.Join(dir, "out")); gid != group() {
				t.Errorf("the link itself belongs to %d", gid)
			}
			if gid, _ := modeOf(t, "/etc/passwd"); gid == group() && group() != int64(os.Getgid()) {
				t.Error("a link was followed")
			}
			if !Matches(dir, group(), c.access) {
				t.Error("does not match afterwards")
			}
		})
	}
}

func TestPolicies(t *testing.T) {
	for name, c := range map[string]struct {
		policy  v1.PodFSGroupChangePolicy
		matches bool
		want    bool
	}{
		"always":                         {v1.FSGroupChangeAlways, true, true},
		"on a mismatch that there is":    {v1.FSGroupChangeOnRootMismatch, false, true},
		"on a mismatch that there isn't": {v1.FSGroupChangeOnRootMismatch, true, false},
	} {
		dir := t.TempDir()
		if c.matches {
			if err := Apply(t.Context(), dir, group(), ReadWrite); err != nil {
				t.Fatal(err)
			}
		}
		if got := Due(dir, group(), c.policy, ReadWrite); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// A walk that is cut short leaves the root for last, so that OnRootMismatch starts again.
func TestCutShort(t *testing.T) {
	dir := tree(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Apply(ctx, dir, group(), ReadWrite); !errors.Is(err, context.Canceled) || Matches(dir, group(), ReadWrite) {
		t.Errorf("error %v", err)
	}
}

// A pod of the same volume swaps a directory for a link to somebody else's all the while: nothing there changes.
func TestSwappedLinksAreNotFollowed(t *testing.T) {
	dir, victim := t.TempDir(), t.TempDir()
	file := filepath.Join(victim, "file")
	for _, err := range []error{
		os.WriteFile(file, nil, 0o600),
		os.Mkdir(filepath.Join(dir, "real"), 0o700),
		os.WriteFile(filepath.Join(dir, "real/file"), nil, 0o600),
		os.Symlink(victim, filepath.Join(dir, "link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "real"), unix.AT_FDCWD, filepath.Join(dir, "link"), unix.RENAME_EXCHANGE)
		}
	}()
	for range 500 {
		if err := Apply(t.Context(), dir, group(), ReadWrite); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	<-done
	for _, path := range []string{victim, file} {
		if _, mode := modeOf(t, path); mode&0o060 != 0 && path == file || mode&unix.S_ISGID != 0 {
			t.Errorf("%s was changed through a link: mode %o", path, mode)
		}
	}
}

func TestTooDeep(t *testing.T) {
	dir := t.TempDir()
	at, err := unix.Open(dir, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range depthLimit + 2 {
		if err := unix.Mkdirat(at, "d", 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(at, "d", unix.O_PATH, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(at)
		at = next
	}
	unix.Close(at)
	if err := Apply(t.Context(), dir, group(), ReadWrite); err == nil || !strings.Contains(err.Error(), "nested deeper") {
		t.Errorf("error %.200v", err)
	}
}
