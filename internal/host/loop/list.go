package loop

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/host/mountpoint"
)

// Info is one attached loop device.
type Info struct {
	Number int
	File   File
	// Backing is the file's path as the kernel knows it now, without the mark of a deleted file.
	Backing string
	// Deleted: the backing file has no name any more.
	Deleted  bool
	DirectIO bool
}

// List reports every attached loop device of the machine.
func List() ([]Info, error) {
	dirs, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var out []Info
	for _, path := range dirs {
		name := strings.TrimPrefix(strings.Split(path, "/")[3], "loop")
		n, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		info, err := inspect(n, path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
			continue // detached meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("inspect %s: %w", Path(n), err)
		}
		out = append(out, info)
	}
	return out, nil
}

func inspect(n int, backingPath string) (Info, error) {
	backing, err := os.ReadFile(backingPath)
	if err != nil {
		return Info{}, err
	}
	dev, err := os.OpenFile(Path(n), os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Info{}, err
	}
	defer dev.Close()
	st, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
	if err != nil {
		return Info{}, err
	}
	path, deleted := strings.CutSuffix(strings.TrimSuffix(string(backing), "\n"), " (deleted)")
	return Info{
		Number: n, File: File{st.Device, st.Inode}, Backing: path, Deleted: deleted,
		DirectIO: st.Flags&unix.LO_FLAGS_DIRECT_IO != 0,
	}, nil
}

// ShownBy says whether m shows this device: the filesystem on it, or the device node itself. btrfs has device numbers
// of its own, so the source's name counts as well.
func (i Info) ShownBy(m mountpoint.Entry) bool {
	const loopMajor = 7
	return m.Major == loopMajor && m.Minor == i.Number || m.Source == Path(i.Number) && m.FSType != "devtmpfs" || i.NodeShownBy(m)
}

// NodeShownBy says whether m is a bind of the device's node.
func (i Info) NodeShownBy(m mountpoint.Entry) bool {
	return m.FSType == "devtmpfs" && m.Root == "/loop"+strconv.Itoa(i.Number)
}
