//go:build component

package fsmount

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/host/filesystem"
)

// tmpfsShare plays a share: a tmpfs with a directory, a link out of it and a file.
func tmpfsShare(dir string) error {
	if err := unix.Mount("server:/share", dir, "tmpfs", 0, ""); err != nil {
		return err
	}
	return errors.Join(
		os.MkdirAll(filepath.Join(dir, "a/b"), 0o755), os.Symlink("/etc", filepath.Join(dir, "out")),
		os.WriteFile(filepath.Join(dir, "a/b/file"), []byte("below"), 0o644))
}

func mountTmpfs(ctx context.Context, root, below, subPath string, readOnly bool) error {
	same := func(m *Mount) error {
		if m.FSType != "tmpfs" {
			return occupied(m, "server:/share")
		}
		return sameAccess(m, readOnly)
	}
	return mountShare(ctx, root, below, same, func(ctx context.Context, t *Target) (*os.File, error) {
		return detachedShare(ctx, t.path, subPath, attributes(readOnly), []int64{unix.TMPFS_MAGIC}, tmpfsShare)
	})
}

// A share appears whole: the right directory of it, its flags, one mount, and none anywhere else.
func TestShareAppearsWhole(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "pods/u/v")
	for range 2 {
		if err := mountTmpfs(t.Context(), root, "pods/u/v", "a/b", true); err != nil {
			t.Fatal(err)
		}
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	text, _ := os.ReadFile("/proc/self/mountinfo")
	if n := strings.Count(string(text), root); n != 1 {
		t.Errorf("%d mounts below %s", n, root)
	}
	all, err := mounts(func(m *Mount) bool { return m.Path == dir })
	if err != nil || len(all) != 1 || all[0].Root != "/a/b" || !all[0].ReadOnly || all[0].Source != "server:/share" {
		t.Errorf("%+v %v", all, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "file")); string(b) != "below" {
		t.Errorf("%q %v", b, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Flags&(unix.ST_NOSUID|unix.ST_NODEV|unix.ST_RDONLY) != unix.ST_NOSUID|unix.ST_NODEV|unix.ST_RDONLY {
		t.Errorf("flags %#x, %v", st.Flags, err)
	}
	for range 2 {
		if _, err := Unmount(t.Context(), root, "pods/u/v"); err != nil {
			t.Error(err)
		}
	}
	if all, _ := mounts(func(m *Mount) bool { return m.Path == dir }); len(all) != 0 {
		t.Errorf("left %+v", all)
	}
}

func TestShareIsRefused(t *testing.T) {
	root := t.TempDir()
	if err := mountTmpfs(t.Context(), root, "d", "out/ssh", false); !errors.Is(err, ErrLink) {
		t.Error(err)
	}
	if err := mountTmpfs(t.Context(), root, "d", "out", false); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Error(err)
	}
	if err := mountTmpfs(t.Context(), root, "d", "a/none", false); err == nil || !strings.Contains(err.Error(), "make it first") {
		t.Error(err)
	}
	// The mount program says that it went well, and nothing is there.
	target, err := Make(root, "d")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	tree, err := detachedShare(t.Context(), target.path, "", 0, []int64{unix.NFS_SUPER_MAGIC}, func(string) error { return nil })
	if err == nil {
		tree.Close()
		t.Error("nothing was taken for a share")
	}
	if m, _ := target.Mounted(); m != nil {
		t.Errorf("left %+v", m)
	}
	// What somebody else mounted stays.
	if err := mountTmpfs(t.Context(), root, "d", "", false); err != nil {
		t.Fatal(err)
	}
	if err := mountTmpfs(t.Context(), root, "d", "", true); !errors.Is(err, ErrOccupied) {
		t.Error(err)
	}
	n, err := ParseNFS("server", "/share", "", "", false)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Mount(t.Context(), root, "d"); !errors.Is(err, ErrOccupied) {
		t.Error(err)
	}
	cmd := exec.Command("sleep", "600")
	cmd.Dir = filepath.Join(root, "d")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := Unmount(t.Context(), root, "d"); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "(sleep)") {
		t.Error(err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if _, err := Unmount(t.Context(), root, "d"); err != nil {
		t.Error(err)
	}
}

// A link is not followed, neither to mount nor to unmount.
func TestLinkIsNotFollowed(t *testing.T) {
	root, victim := t.TempDir(), t.TempDir()
	if err := os.Symlink(victim, filepath.Join(root, "d")); err != nil {
		t.Fatal(err)
	}
	if err := mountTmpfs(t.Context(), root, "d", "", false); !errors.Is(err, ErrLink) {
		t.Error(err)
	}
	if err := mountTmpfs(t.Context(), victim, "mounted", "", false); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(root, "d")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(victim, "mounted"), filepath.Join(root, "d")); err != nil {
		t.Fatal(err)
	}
	if _, err := Unmount(t.Context(), root, "d"); !errors.Is(err, ErrLink) {
		t.Error(err)
	}
	if all, _ := mounts(func(m *Mount) bool { return m.Path == filepath.Join(victim, "mounted") }); len(all) != 1 {
		t.Errorf("unmounted through a link: %+v", all)
	}
	if _, err := Unmount(t.Context(), victim, "mounted"); err != nil {
		t.Error(err)
	}
}

// Many at once at one directory make one mount.
func TestMountsAtOnce(t *testing.T) {
	root := t.TempDir()
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() { errs <- mountTmpfs(t.Context(), root, "pods/u/v", "", false) }()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if all, _ := mounts(func(m *Mount) bool { return strings.HasPrefix(m.Path, root) }); len(all) != 1 {
		t.Errorf("%+v", all)
	}
	if _, err := Unmount(t.Context(), root, "pods/u/v"); err != nil {
		t.Error(err)
	}
}

// A block device is formatted when it is blank, mounted twice over, bound read-only, grown, and never formatted again.
func TestDeviceLife(t *testing.T) {
	for _, fsType := range []string{filesystem.Ext4, filesystem.XFS, filesystem.Btrfs} {
		t.Run(fsType, func(t *testing.T) {
			root := t.TempDir()
			path, grow := loopDevice(t, 320<<20)
			d, err := OpenDevice(path)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { d.Close() }()
			fs, err := ParseFilesystem(fsType, "noatime", false)
			if err != nil {
				t.Fatal(err)
			}
			readOnly := *fs
			readOnly.ReadOnly = true
			if _, err := d.Format(t.Context(), &readOnly, false); err == nil || !strings.Contains(err.Error(), "read-only") {
				t.Error(err)
			}
			for range 2 {
				if got, err := d.Format(t.Context(), fs, false); err != nil || got != fsType {
					t.Fatalf("%s %v", got, err)
				}
				// A pod that only reads comes first: those that follow write all the same.
				if err := d.Mount(t.Context(), fsType, readOnly.ForAll(d), root, "global"); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(root, "global/file"), []byte("kept"), 0o644); err != nil {
				t.Fatal(err)
			}
			global, err := Open(root, "global")
			if err != nil {
				t.Fatal(err)
			}
			defer global.Close()
			if err := d.At(global); err != nil {
				t.Error(err)
			}
			for range 2 {
				if err := d.Bind(t.Context(), global, true, root, "pod"); err != nil {
					t.Fatal(err)
				}
				// The filesystem is writable already: this mount of it is not.
				if err := d.Mount(t.Context(), fsType, &readOnly, root, "direct"); err != nil {
					t.Fatal(err)
				}
			}
			for _, dir := range []string{"pod", "direct"} {
				if b, err := os.ReadFile(filepath.Join(root, dir, "file")); string(b) != "kept" {
					t.Errorf("%q %v", b, err)
				}
				if err := os.WriteFile(filepath.Join(root, dir, "file"), nil, 0o644); !errors.Is(err, unix.EROFS) {
					t.Errorf("%s is writable: %v", dir, err)
				}
			}
			if err := d.Bind(t.Context(), global, true, root, "global"); !errors.Is(err, ErrOccupied) {
				t.Error(err)
			}
			d.Close()
			grow(448 << 20)
			if d, err = OpenDevice(path); err != nil || d.Bytes != 448<<20 {
				t.Fatal(d, err)
			}
			for range 2 {
				err := d.Grow(global)
				if errors.Is(err, filesystem.ErrNeedsUnmount) {
					t.Logf("%v", err) // without CAP_SYS_RESOURCE; the machine of test/vm has it
				} else if err != nil {
					t.Error(err)
				}
			}
			for _, dir := range []string{"pod", "direct", "global"} {
				if _, err := Unmount(t.Context(), root, dir); err != nil {
					t.Error(err)
				}
			}
			other := map[string]string{filesystem.Ext4: filesystem.XFS, filesystem.XFS: filesystem.Ext4, filesystem.Btrfs: filesystem.Ext4}[fsType]
			if _, err := d.Format(t.Context(), &Filesystem{Type: other}, false); !errors.Is(err, ErrHolds) {
				t.Error(err)
			}
			if got, err := d.Format(t.Context(), &Filesystem{}, false); err != nil || got != fsType {
				t.Errorf("%s %v", got, err)
			}
			if got, err := d.Format(t.Context(), &Filesystem{Type: other}, true); err != nil || got != other {
				t.Errorf("of a device that nobody has had: %s %v", got, err)
			}
		})
	}
}

// An option that the filesystem does not know is told with what the kernel says.
func TestDeviceRefusesAnOption(t *testing.T) {
	path, _ := loopDevice(t, 64<<20)
	d, err := OpenDevice(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	fs, err := ParseFilesystem("ext4", "nouuid", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Format(t.Context(), fs, false); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := d.Mount(t.Context(), "ext4", fs, root, "d"); err == nil || !strings.Contains(err.Error(), "nouuid") {
		t.Error(err)
	}
}

// loopDevice is a device on a sparse file, and how it grows.
func loopDevice(t *testing.T, bytes int64) (path string, grow func(int64)) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	for _, err := range []error{os.WriteFile(file, nil, 0o600), os.Truncate(file, bytes)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("losetup", "-f", "--show", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	path = strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", path).Run() })
	return path, func(n int64) {
		if err := os.Truncate(file, n); err != nil {
			t.Fatal(err)
		}
		if err := exec.Command("losetup", "-c", path).Run(); err != nil {
			t.Fatal(err)
		}
	}
}

// Where the root is shared, other namespaces of the machine (a kubelet in a container, the containers) see the mount, too, and see it go.
func TestMountPropagates(t *testing.T) {
	root, peer := t.TempDir(), t.TempDir()
	for _, err := range []error{
		unix.Mount("root", root, "tmpfs", 0, ""),
		unix.Mount("", root, "", unix.MS_SHARED, ""),
		unix.Mount(root, peer, "", unix.MS_BIND, ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	defer func() { _, _ = unix.Unmount(peer, unix.MNT_DETACH), unix.Unmount(root, unix.MNT_DETACH) }()
	if err := mountTmpfs(t.Context(), root, "pods/u/v", "a/b", false); err != nil {
		t.Fatal(err)
	}
	seen := filepath.Join(peer, "pods/u/v/file")
	if b, err := os.ReadFile(seen); string(b) != "below" {
		t.Errorf("%q %v", b, err)
	}
	if _, err := Unmount(t.Context(), root, "pods/u/v"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(seen); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// An ext4 that carries the mark of an error is checked before it is mounted.
func TestDeviceIsRepaired(t *testing.T) {
	path, _ := loopDevice(t, 64<<20)
	d, err := OpenDevice(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	fs := &Filesystem{}
	if _, err := d.Format(t.Context(), fs, false); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("debugfs", "-w", "-R", "ssv state 2", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !filesystem.HasErrors(d.file) {
		t.Fatal("the mark is not there: the test proves nothing")
	}
	root := t.TempDir()
	if err := d.Mount(t.Context(), filesystem.Ext4, fs, root, "d"); err != nil {
		t.Fatal(err)
	}
	if filesystem.HasErrors(d.file) {
		t.Error("the mark is there still")
	}
	if _, err := Unmount(t.Context(), root, "d"); err != nil {
		t.Error(err)
	}
}
