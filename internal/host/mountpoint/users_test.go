package mountpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUsers: a process with an open file below the path is named, and not for a neighbour of a longer name.
func TestUsers(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "held"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	own := func(s string) bool { return strings.HasPrefix(s, fmt.Sprintf("%d (", os.Getpid())) }
	if users := Users(dir); !slices.ContainsFunc(users, own) {
		t.Errorf("users of %s: %v, want process %d", dir, users, os.Getpid())
	}
	if users := Users(strings.TrimSuffix(dir, dir[len(dir)-1:])); len(users) != 0 {
		t.Errorf("users of a path that is only a prefix: %v", users)
	}
	if err := busy(dir, unix.EBUSY); !strings.Contains(err.Error(), "in use by process") {
		t.Error(err)
	}
}
