package discovery

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/uuid"

	"berth.io/berth/internal/boundary"
)

// A filesystem or directory carries its mark in an extended attribute of its root. A file would be simpler and worse: initdb
// and its like refuse a directory that is not empty, and a pod that tidies up would remove it. Attributes under trusted. are
// invisible without CAP_SYS_ADMIN, and every local filesystem that can be written has them (ext4, XFS, btrfs, tmpfs); one
// that has none (vfat) gets the file.
const (
	markAttribute = "trusted.berth.disk"
	markFile      = ".berth-disk"
)

// mark is what a disk says of itself.
type mark struct {
	ID string `json:"id"`
	// Cluster is the uid of the namespace kube-system: no other cluster's discovery offers the disk.
	Cluster string `json:"cluster"`
	// Node wrote it; for people.
	Node string `json:"node"`
	// The root's owner and mode when it was first offered: a pod's fsGroup changes them, and the next pod is to find them as
	// they were.
	UID  uint32 `json:"uid"`
	GID  uint32 `json:"gid"`
	Mode uint32 `json:"mode"`
}

func newMark(root *os.File, cluster, node string) (mark, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return mark{}, fmt.Errorf("stat %s: %w", root.Name(), err)
	}
	return mark{ID: string(uuid.NewUUID()), Cluster: cluster, Node: node, UID: st.Uid, GID: st.Gid, Mode: st.Mode & 0o7777}, nil
}

// maxMarkBytes is far more than a mark has.
const maxMarkBytes = 4096

// readMark reads the mark of the directory that is open; there is none: ok is false.
func readMark(root *os.File) (m mark, ok bool, err error) {
	b := make([]byte, maxMarkBytes)
	n, err := unix.Fgetxattr(int(root.Fd()), markAttribute, b)
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
		if b, err = readMarkFile(root); errors.Is(err, fs.ErrNotExist) {
			return mark{}, false, nil
		}
	case err == nil:
		b = b[:n]
	}
	if err != nil {
		return mark{}, false, fmt.Errorf("read the mark of %s: %w", root.Name(), err)
	}
	if err := json.Unmarshal(b, &m); err != nil || m.ID == "" || len(m.ID) > 64 || strings.ContainsAny(m.ID, "/ \n") {
		return mark{}, false, fmt.Errorf("the mark of %s is damaged (%q); if nothing in it is needed, remove it: setfattr -x %s %s", root.Name(), b[:min(len(b), 80)], markAttribute, root.Name())
	}
	return m, true, nil
}

func readMarkFile(root *os.File) ([]byte, error) {
	fd, err := unix.Openat(int(root.Fd()), markFile, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: markFile, Err: err}
	}
	f := os.NewFile(uintptr(fd), markFile)
	defer f.Close()
	b := make([]byte, maxMarkBytes)
	n, err := f.Read(b)
	return b[:n], err
}

// write marks the directory that is open, durably.
func (m mark) write(root *os.File) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	err = boundary.Do("discovery/mark-disk", func() error {
		err := unix.Fsetxattr(int(root.Fd()), markAttribute, b, 0)
		if errors.Is(err, unix.ENOTSUP) {
			err = writeMarkFile(root, b)
		}
		if err != nil {
			return err
		}
		return unix.Fsync(int(root.Fd()))
	})
	if err != nil {
		return fmt.Errorf("mark %s: %w", root.Name(), err)
	}
	return nil
}

// writeMarkFile writes beside and renames: half a mark would lock the disk out.
//
// boundary: held by the caller.
func writeMarkFile(root *os.File, b []byte) error {
	const beside = markFile + ".new"
	fd, err := unix.Openat(int(root.Fd()), beside, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), beside)
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return unix.Renameat(int(root.Fd()), beside, int(root.Fd()), markFile)
}

// ours are names in a root that are not a pod's data.
func ours(name string) bool { return name == markFile || name == markFile+".new" }

// lostAndFound is made by mkfs.ext4.
const lostAndFound = "lost+found"

// contents names something in the directory that is open, or "" when nothing of a user's is there.
func contents(root *os.File) (string, error) {
	names, err := entriesOf(root)
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if name == lostAndFound {
			dir, err := openDirAt(root, name)
			if err != nil {
				return name, nil // a file of that name is data
			}
			found, err := entriesOf(dir)
			if err = errors.Join(err, dir.Close()); err != nil {
				return "", err
			}
			if len(found) > 0 {
				return name + "/" + found[0], nil
			}
			continue
		}
		if !ours(name) {
			return name, nil
		}
	}
	return "", nil
}

// entriesOf reads the names in an open directory, sorted, however often it was read before.
func entriesOf(dir *os.File) ([]string, error) {
	again, err := openDirAt(dir, ".")
	if err != nil {
		return nil, err
	}
	defer again.Close()
	names, err := again.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// openDirAt opens a directory in an open one: never through a link, never in another mount.
func openDirAt(parent *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat2(int(parent.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: parent.Name() + "/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), parent.Name()+"/"+name), nil
}
