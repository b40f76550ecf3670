package volume

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A start brings a mount back while somebody unmounts it: nobody is left who counts.
func TestAMountThatIsTakenAwayWhileItComesBack(t *testing.T) {
	n := newNode(t)
	n.service.records = recordsIn(t.TempDir())
	n.create(t, "data")
	if err := n.service.resume(t.Context(), &record{Path: "/srv/data", Namespace: ns, Name: "data"}); err != nil {
		t.Fatal(err)
	}
	if got := n.callers(t, "data"); got != nil {
		t.Errorf("left: %v", got)
	}
}

// The owner of a directory on the way has put a link in its place since: root mounts nothing, and makes nothing, where it leads.
func TestAMountIsNotBroughtBackThroughALink(t *testing.T) {
	n := newNode(t)
	n.service.records = recordsIn(t.TempDir())
	home, elsewhere := t.TempDir(), t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Join(home, "srv")); err != nil {
		t.Fatal(err)
	}
	m := &record{Path: filepath.Join(home, "srv", "data"), Namespace: ns, Name: "data"}
	err := n.service.bind(m, "/proc")
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(elsewhere, "data"), unix.MNT_DETACH) })
	if err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(filepath.Join(elsewhere, "data")); err == nil {
		t.Error("the mount point was made behind the link")
	}
}

// A record whose path leads elsewhere by now can still be taken away, by the volume's name.
func TestUnmountOfAPathThatIsALinkByNow(t *testing.T) {
	n := newNode(t)
	n.service.records = recordsIn(t.TempDir())
	n.create(t, "data")
	home := t.TempDir()
	m := &record{Path: filepath.Join(home, "srv", "data"), Namespace: ns, Name: "data"}
	if err := n.service.records.write(m); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(t.TempDir(), filepath.Join(home, "srv")); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{1, 0} {
		if unmounted, err := n.service.UnmountVolume(t.Context(), ns, "data", false); unmounted != want || err != nil {
			t.Errorf("unmounted %d, %v; want %d", unmounted, err, want)
		}
	}
}
