package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/host/durable"
)

// replaceFile writes dir/name so that a crash leaves the old content or the new, and returns when the new is on disk.
//
// dir is in an XFS: its log is one sequence, so with the data written first (sync_file_range waits for it, and for the
// size to be in the log) the one sync of the directory makes content and name durable together.
//
// boundary: held by the caller.
func replaceFile(dir, name string, data []byte) error {
	tmp := filepath.Join(dir, name+".tmp")
	if err := writeData(tmp, data); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return err
	}
	return durable.SyncDirectory(dir)
}

// writeData writes a new file and waits for its data to be on the disk, not for its name.
func writeData(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE_AND_WAIT); err != nil {
		return fmt.Errorf("write %s to disk: %w", path, err)
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// hostSpace of the filesystem that holds dir: free to an ordinary user, and in all.
func hostSpace(dir string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

// hostHasRoom refuses to take so much that the rest of the machine meets a full disk.
func hostHasRoom(dir string, want int64) error {
	free, total, err := hostSpace(dir)
	if err != nil {
		return err
	}
	if reserve := hostReserve(total); want > free-reserve {
		return fmt.Errorf("%w: the disk of %s has %d MiB free, of which %d MiB stay free, and %d MiB are wanted", ErrNoSpace, dir, free/mib, reserve/mib, want/mib)
	}
	return nil
}

// noSpace turns the kernel's words for a full disk into ErrNoSpace.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// keepInPlace asks a copy-on-write host filesystem (btrfs) to overwrite the file's blocks in place: otherwise
// preallocation promises nothing. Others do not know the flag.
func keepInPlace(f *os.File) {
	const (
		getFlags = 0x80086601 // FS_IOC_GETFLAGS
		setFlags = 0x40086602 // FS_IOC_SETFLAGS
		noCow    = 0x00800000 // FS_NOCOW_FL
	)
	var flags int32
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), getFlags, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		return
	}
	flags |= noCow
	unix.Syscall(unix.SYS_IOCTL, f.Fd(), setFlags, uintptr(unsafe.Pointer(&flags)))
}
