package discovery

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/host/filesystem"
	"berth.io/berth/internal/host/fsmount"
)

// device is a block device. Its every byte is the pod's, so nothing of ours can be written on it that would stay; it is known
// by what the kernel tells of the hardware.
type device struct {
	path         string // through which it was found, a link mostly
	name         string // the kernel's, as in /sys/block
	major, minor uint32
	size         int64 // bytes
	id           string
}

func openDevice(path string, flags int) (*os.File, device, error) {
	f, err := os.OpenFile(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, device{}, err
	}
	d, err := deviceOf(f, path)
	if err != nil {
		return nil, device{}, errors.Join(err, f.Close())
	}
	return f, d, nil
}

func deviceOf(f *os.File, path string) (device, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return device{}, fmt.Errorf("stat %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return device{}, fmt.Errorf("%s is no block device any more", path)
	}
	d := device{path: path, major: unix.Major(st.Rdev), minor: unix.Minor(st.Rdev)}
	size, err := f.Seek(0, 2)
	if err != nil {
		return device{}, fmt.Errorf("size of %s: %w", path, err)
	}
	d.size = size
	sys, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", d.major, d.minor))
	if err != nil {
		return device{}, fmt.Errorf("%s is not known to the kernel: %w", path, err)
	}
	d.name = filepath.Base(sys)
	d.id = identity(sys, d.name, size)
	return d, nil
}

// identity is a name of the disk that stays when it is plugged in elsewhere: its world wide name or serial number, of a
// device-mapper device its uuid, of a loop device its backing file, of a partition its disk's and its number. A disk that
// has nothing of it (a virtual one without a serial number) goes by its kernel name and size.
func identity(sys, name string, size int64) string {
	read := func(file string) string {
		b, _ := os.ReadFile(filepath.Join(sys, file))
		return strings.Join(strings.FieldsFunc(string(b), func(r rune) bool { return r <= ' ' || r == '/' || r > '~' }), "_")
	}
	if n := read("partition"); n != "" {
		parent := filepath.Dir(sys)
		bytes, _ := strconv.ParseInt(strings.TrimSpace(readText(filepath.Join(parent, "size"))), 10, 64)
		return identity(parent, filepath.Base(parent), bytes*512) + "-part" + n
	}
	if id := backingFile(filepath.Join(sys, "loop/backing_file")); id != "" {
		return "loop-" + id
	}
	for _, s := range []struct{ file, kind string }{
		{"dm/uuid", "dm-"}, {"md/uuid", "md-"}, {"wwid", ""}, {"device/wwid", ""}, {"serial", "serial-"}, {"device/serial", "serial-"},
	} {
		if id := read(s.file); id != "" {
			return s.kind + id
		}
	}
	return fmt.Sprintf("name-%s-%d", name, size)
}

func readText(path string) string {
	b, _ := os.ReadFile(path)
	return string(b)
}

// backingFile identifies the file behind a loop device, with the time of its birth: inode numbers are used again.
func backingFile(attribute string) string {
	path := strings.TrimSuffix(readText(attribute), "\n")
	if path == "" {
		return ""
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return "" // deleted, or in another mount namespace
	}
	return fmt.Sprintf("%d.%d-%d-%d.%09d", st.Dev_major, st.Dev_minor, st.Ino, st.Btime.Sec, st.Btime.Nsec)
}

// data names what the device holds, "" when it is blank at both ends.
func (d device) data(f *os.File) (string, error) {
	return filesystem.Recognise(f, d.size)
}

// openers names the processes that have the device open, as "3120 (psql)". One that has it open for itself alone (a mount, a
// device on top) is found by opening it with O_EXCL.
func (d device) openers() (found []string) {
	for _, o := range fsmount.Openers(int(d.major), int(d.minor)) {
		found = append(found, o.String())
	}
	return found
}

// gone says that an error means that a path leads to nothing (a link to a device that was unplugged, too).
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENOMEDIUM)
}
