package rcu

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// pretended is a switch in a file of the test's own.
func pretended(t *testing.T, value string) *Switch {
	t.Helper()
	dir := t.TempDir()
	s := &Switch{Note: filepath.Join(dir, "note"), path: filepath.Join(dir, "switch")}
	if err := os.WriteFile(s.path, []byte(value), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *Switch) want(t *testing.T, value string, noted bool) {
	t.Helper()
	// The kernel takes the number that is written; a file keeps what is behind it.
	if got, err := os.ReadFile(s.path); err != nil || !strings.HasPrefix(string(got), value) {
		t.Errorf("the switch is at %q, want %s: %v", got, value, err)
	}
	_, err := os.Lstat(s.Note)
	if is := err == nil; is != noted || err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("noted: %v, want %v: %v", is, noted, err)
	}
}

// Two that freeze at once: the switch is on until the last of them is done.
func TestTheLastOneSwitchesOff(t *testing.T) {
	s := pretended(t, "0\n")
	for range 2 {
		if err := s.On(); err != nil {
			t.Fatal(err)
		}
	}
	s.want(t, "1", true)
	if err := s.Off(); err != nil {
		t.Fatal(err)
	}
	s.want(t, "1", true)
	if err := s.Off(); err != nil {
		t.Fatal(err)
	}
	s.want(t, "0", false)
}

// What the machine's owner has switched on stays on.
func TestSomebodyElsesSwitchStaysOn(t *testing.T) {
	s := pretended(t, "1\n")
	if err := errors.Join(s.On(), s.Off(), s.Recover()); err != nil {
		t.Fatal(err)
	}
	s.want(t, "1", false)
}

// A machine, or a container, that has no such switch for us: an error that tells it, and nothing left.
func TestNoSwitch(t *testing.T) {
	s := pretended(t, "0")
	if err := os.Remove(s.path); err != nil {
		t.Fatal(err)
	}
	if err := s.On(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("On: %v", err)
	}
	if err := errors.Join(s.Off(), s.Recover()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(s.Note); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a note is left: %v", err)
	}
}

// Killed while it was on: whoever comes next switches it off.
func TestRecoverSwitchesOff(t *testing.T) {
	s := pretended(t, "0")
	if err := s.On(); err != nil {
		t.Fatal(err)
	}
	next := &Switch{Note: s.Note, path: s.path}
	if err := next.Recover(); err != nil {
		t.Fatal(err)
	}
	next.want(t, "0", false)
}

// Since the note was made the machine has booted: whoever has it on now has his reasons.
func TestRecoverLeavesAnotherBootsSwitch(t *testing.T) {
	s := pretended(t, "1")
	if err := os.Symlink("another-boot", s.Note); err != nil {
		t.Fatal(err)
	}
	if err := s.Recover(); err != nil {
		t.Fatal(err)
	}
	s.want(t, "1", false)
}
