package standalone

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestOpenRefusesWhatItCannotUse(t *testing.T) {
	t.Run("a path too long for the sockets below it", func(t *testing.T) {
		_, _, err := Open(filepath.Join(t.TempDir(), strings.Repeat("x", 80)))
		if err == nil || !strings.Contains(err.Error(), "shorter") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("control characters", func(t *testing.T) {
		if _, _, err := Open("/tmp/a\nb"); err == nil {
			t.Error("accepted")
		}
	})
	t.Run("a file", func(t *testing.T) {
		f := filepath.Join(shortDir(t), "f")
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Open(f); err == nil {
			t.Error("accepted")
		}
	})
	t.Run("another version", func(t *testing.T) {
		d := shortDir(t)
		if err := os.WriteFile(filepath.Join(d, "version"), []byte("7"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Open(d); err == nil || !strings.Contains(err.Error(), "another version") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a kubelet's", func(t *testing.T) {
		d := shortDir(t)
		volume := filepath.Join(d, "pods", "4c2b", "volumes", "kubernetes.io~empty-dir", "data")
		if err := os.MkdirAll(volume, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Open(d); err == nil || !strings.Contains(err.Error(), "not made by berth") {
			t.Errorf("up: %v", err)
		}
		if err := DataDir(d).mustBeOurs(); err == nil {
			t.Error("down would unmount what a kubelet has mounted")
		}
		if entries, _ := os.ReadDir(d); len(entries) != 1 {
			t.Errorf("something was made in it: %v", entries)
		}
	})
	t.Run("in use", func(t *testing.T) {
		d := shortDir(t)
		_, release, err := Open(d)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := Open(d); !errors.Is(err, ErrInUse) {
			t.Errorf("got %v, want ErrInUse", err)
		}
		release()
		_, release, err = Open(d)
		if err != nil {
			t.Errorf("after the release: %v", err)
		} else {
			release()
		}
	})
}

func TestNodeNameIsChosenOnce(t *testing.T) {
	d := DataDir(shortDir(t))
	if name, err := d.node("first"); err != nil || name != "first" {
		t.Fatalf("got %q, %v", name, err)
	}
	if name, err := d.node(""); err != nil || name != "first" {
		t.Errorf("the second start got %q, %v", name, err)
	}
	if _, err := d.node("second"); err == nil || !strings.Contains(err.Error(), `"first"`) {
		t.Errorf("another name: %v", err)
	}
	if _, err := DataDir(shortDir(t)).node("Not_DNS"); err == nil {
		t.Error("a name that the API refuses was accepted")
	}
}

func TestAClockThatCannotBeRightIsRefused(t *testing.T) {
	for year, ok := range map[int]bool{1970: false, 2019: false, 2020: true, 2026: true, 2119: true, 2120: false} {
		if err := checkClock(time.Date(year, 6, 1, 0, 0, 0, 0, time.UTC)); (err == nil) != ok {
			t.Errorf("year %d: %v", year, err)
		}
	}
}

// shortDir is a temporary directory whose path leaves room for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "b-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

// Neither up nor down works on the directory of another version.
func TestAnotherVersionsDirectory(t *testing.T) {
	d := DataDir(t.TempDir())
	if err := os.WriteFile(d.join("version"), []byte("99\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, check := range map[string]func() error{"up": d.checkVersion, "down": d.mustBeOurs} {
		if err := check(); err == nil || !strings.Contains(err.Error(), "another version") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
