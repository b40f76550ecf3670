package fsmount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/command"
	"berth.io/berth/internal/host/filesystem"
)

// ErrHolds says that a device holds something else than the filesystem that is asked for. It is never overwritten.
var ErrHolds = errors.New("the device is not empty")

// makeDeadline bounds mkfs, which on a large slow disk takes minutes.
const makeDeadline = 8 * time.Minute

// Device is an open block device.
type Device struct {
	file         *os.File
	Path         string
	Bytes        int64
	SectorBytes  uint32
	Major, Minor int
	ReadOnly     bool // it takes no writes from anybody
}

// OpenDevice opens a block device for reading.
func OpenDevice(path string) (*Device, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		f.Close()
		return nil, fmt.Errorf("%s is no block device", path)
	}
	d := &Device{file: f, Path: path, Major: int(unix.Major(st.Rdev)), Minor: int(unix.Minor(st.Rdev))}
	sector, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
	if err == nil {
		d.SectorBytes = uint32(sector)
		d.Bytes, err = f.Seek(0, io.SeekEnd)
	}
	if err == nil {
		var readOnly int
		readOnly, err = unix.IoctlGetInt(int(f.Fd()), unix.BLKROGET)
		d.ReadOnly = readOnly != 0
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("ask %s for its size and access: %w", path, err)
	}
	return d, nil
}

// Close lets go of the device.
func (d *Device) Close() error { return d.file.Close() }

// Filesystem is how a device is to be mounted.
type Filesystem struct {
	Type     string // "": what is there, else filesystem.Default
	options  []string
	ReadOnly bool
}

// ForAll is fs as it is mounted once for all pods of the node: writable where options and device allow it, although the pod that comes
// first may only want to read. That is said to the bind for each pod.
func (fs *Filesystem) ForAll(d *Device) *Filesystem {
	all := *fs
	all.ReadOnly = d.ReadOnly || lastOf(fs.options, "ro", "rw") == "ro"
	return &all
}

// ParseFilesystem checks what a user wrote. The errors are filesystem.ErrUnknown and ErrOption.
func ParseFilesystem(fsType, options string, readOnly bool) (*Filesystem, error) {
	if fsType != "" {
		if _, err := filesystem.MinimumBytes(fsType); err != nil {
			return nil, err
		}
	}
	parsed, err := parseOptions(options, localOptions)
	if err != nil {
		return nil, err
	}
	return &Filesystem{Type: fsType, options: parsed, ReadOnly: readOnly || lastOf(parsed, "ro", "rw") == "ro"}, nil
}

// Format makes fs on d unless it is there, and answers the type that is. blank says that nobody has ever had this device: what it
// holds is what an interrupted mkfs left, or a former volume's remains, and is overwritten. Otherwise a device is formatted only
// when its first and last MiB are zero.
func (d *Device) Format(ctx context.Context, fs *Filesystem, blank bool) (string, error) {
	holds, err := filesystem.Recognise(d.file, d.Bytes)
	if err != nil {
		return "", fmt.Errorf("look at %s: %w", d.Path, err)
	}
	want := fs.Type
	if want == "" {
		want = filesystem.Default
	}
	if !blank {
		if _, served := filesystem.MinimumBytes(holds); served == nil && (fs.Type == "" || fs.Type == holds) {
			return holds, nil
		}
		if holds != "" {
			return "", fmt.Errorf("%s: %w: it holds %s, and the volume asks for %s; if nobody needs that, empty the device by hand (`blkdiscard -z %[1]s`)",
				d.Path, ErrHolds, holds, want)
		}
	}
	if fs.ReadOnly {
		return "", fmt.Errorf("%s is empty, and is asked for read-only: mount it writable once", d.Path)
	}
	least, err := filesystem.MinimumBytes(want)
	if err != nil {
		return "", err
	}
	if d.Bytes < least {
		return "", fmt.Errorf("%s has %d bytes; %s needs %d", d.Path, d.Bytes, want, least)
	}
	// Its pages are the old content's: mkfs writes past them.
	err = boundary.Do("fsmount/format", func() error {
		program, args := mkfs(want, d)
		_, err := command.Output(ctx, makeDeadline, nil, program, args...)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("make %s on %s: %w", want, d.Path, err)
	}
	return want, nil
}

// mkfs is the program that makes fsType on a device that may hold anything. It discards nothing: a fresh thin volume has
// nothing, and on a disk it takes longer than the rest.
func mkfs(fsType string, d *Device) (string, []string) {
	switch fsType {
	case filesystem.XFS:
		return "mkfs.xfs", []string{"-q", "-f", "-K", d.Path}
	case filesystem.Btrfs:
		return "mkfs.btrfs", []string{"-q", "-f", "-K", d.Path}
	}
	// -m 0: a volume is its user's alone. -e: after an error no write may make it worse.
	return "mkfs.ext4", []string{"-q", "-F", "-m", "0", "-e", "remount-ro", "-E", "nodiscard", d.Path}
}

// Mount mounts the filesystem of type fsType on d at the directory below root. Mounted already is success; something else
// there is an error.
func (d *Device) Mount(ctx context.Context, fsType string, fs *Filesystem, root, below string) error {
	t, err := Make(root, below)
	if err != nil {
		return err
	}
	defer t.Close()
	return t.place(ctx, d.same(fs.ReadOnly), func(ctx context.Context) (*os.File, error) {
		if fsType == filesystem.Ext4 && !fs.ReadOnly && filesystem.HasErrors(d.file) {
			if err := boundary.Do("fsmount/repair", func() error { return filesystem.Repair(ctx, fsType, d.Path) }); err != nil {
				return nil, err
			}
		}
		return d.detached(fsType, fs)
	})
}

// At makes sure that d is what is mounted at the target.
func (d *Device) At(t *Target) error {
	m, err := t.Mounted()
	if err == nil && m == nil {
		err = fmt.Errorf("%s is not mounted at %s", d.Path, t.path)
	}
	return settle(m, err, d.same(false))
}

// Bind makes the mount of d at the directory source appear at the directory below root, too.
func (d *Device) Bind(ctx context.Context, source *Target, readOnly bool, root, below string) error {
	t, err := Make(root, below)
	if err != nil {
		return err
	}
	defer t.Close()
	return t.place(ctx, d.same(readOnly), func(context.Context) (*os.File, error) {
		tree, err := unix.OpenTree(int(source.parent.Fd()), source.name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return nil, fmt.Errorf("bind %s: %w", source.path, err)
		}
		f := os.NewFile(uintptr(tree), source.path)
		if readOnly {
			if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
				f.Close()
				return nil, fmt.Errorf("bind %s read-only: %w", source.path, err)
			}
		}
		return f, nil
	})
}

func (d *Device) same(readOnly bool) func(*Mount) error {
	return func(m *Mount) error {
		if !m.of(d.Major, d.Minor) {
			return occupied(m, d.Path)
		}
		return sameAccess(m, readOnly)
	}
}

// detached mounts d nowhere yet. A filesystem that is mounted writable elsewhere cannot be opened read-only as well (EBUSY):
// then this mount alone is read-only.
func (d *Device) detached(fsType string, fs *Filesystem) (*os.File, error) {
	options := slices.DeleteFunc(slices.Clone(fs.options), accessOption)
	f, err := openMount(fsType, d.Path, options, fs.ReadOnly, fs.ReadOnly)
	if errors.Is(err, unix.EBUSY) && fs.ReadOnly {
		f, err = openMount(fsType, d.Path, options, false, true)
	}
	return f, err
}

// perMount are the options that are a mount's and not its filesystem's, in the words of mount_setattr(2).
var perMount = map[string]uint64{
	"noexec": unix.MOUNT_ATTR_NOEXEC, "nosuid": unix.MOUNT_ATTR_NOSUID, "nodev": unix.MOUNT_ATTR_NODEV,
	"noatime": unix.MOUNT_ATTR_NOATIME, "strictatime": unix.MOUNT_ATTR_STRICTATIME, "nodiratime": unix.MOUNT_ATTR_NODIRATIME,
	// These are the default.
	"exec": 0, "relatime": 0, "atime": 0, "diratime": 0, "norelatime": 0, "nostrictatime": 0,
}

// openMount makes a mount by the calls of Linux 5.2, which say what is wrong with it.
func openMount(fsType, source string, options []string, readOnlyFilesystem, readOnlyMount bool) (*os.File, error) {
	fd, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount %s: this kernel has no %s: %w", source, fsType, err)
	}
	defer unix.Close(fd)
	attr := 0
	if readOnlyMount {
		attr |= unix.MOUNT_ATTR_RDONLY
	}
	err = unix.FsconfigSetString(fd, "source", source)
	if readOnlyFilesystem && err == nil {
		err = unix.FsconfigSetFlag(fd, "ro")
	}
	for _, o := range options {
		if a, is := perMount[o]; is {
			attr |= int(a)
			continue
		}
		if err != nil {
			break
		}
		if key, value, valued := strings.Cut(o, "="); valued {
			err = unix.FsconfigSetString(fd, key, value)
		} else {
			err = unix.FsconfigSetFlag(fd, o)
		}
		if err != nil {
			err = fmt.Errorf("option %s: %w", o, err)
		}
	}
	if err == nil {
		err = boundary.Do("fsmount/open-filesystem", func() error { return unix.FsconfigCreate(fd) })
	}
	if err != nil {
		return nil, fmt.Errorf("mount %s (%s): %w%s", source, fsType, err, said(fd))
	}
	mount, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return nil, fmt.Errorf("mount %s (%s): %w%s", source, fsType, err, said(fd))
	}
	return os.NewFile(uintptr(mount), source), nil
}

// said is what the kernel has to say about a mount that it refused.
func said(fd int) string {
	var all strings.Builder
	b := make([]byte, 1024)
	for range 8 {
		n, err := unix.Read(fd, b)
		if err != nil || n <= 0 {
			break
		}
		all.WriteString("; " + strings.TrimSpace(strings.TrimLeft(string(b[:n]), "ewi ")))
	}
	return all.String()
}

// Grow makes the filesystem of d that is mounted at the target fill d.
func (d *Device) Grow(t *Target) error {
	m, err := t.Mounted()
	if err != nil {
		return err
	}
	if m == nil {
		return fmt.Errorf("%s is not mounted at %s: it is grown where it is mounted", d.Path, t.path)
	}
	if err := d.same(false)(m); err != nil {
		return err
	}
	if m.ReadOnly {
		return fmt.Errorf("%s is mounted read-only at %s: it is grown where it is writable", d.Path, t.path)
	}
	return boundary.Do("fsmount/grow-filesystem", func() error { return filesystem.Grow(m.FSType, t.path, d.file, d.Bytes) })
}
