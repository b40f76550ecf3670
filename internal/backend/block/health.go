package block

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/host/loop"
	"berth.io/berth/internal/host/mountpoint"
)

// problem of a volume in words, empty when none is known: of its file in the pool, then of its filesystem where it is mounted.
func (b *Backend) problem(v pool.Volume) string {
	if p := b.fileProblem(v); p != "" {
		return p
	}
	return b.mountProblem(v.ID)
}

func (b *Backend) fileProblem(v pool.Volume) string {
	disk := b.o.Pool.Disk(v.ID)
	st, err := os.Stat(disk)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("its data is gone: %s was removed by somebody; restore it from a snapshot or a backup", disk)
	case errors.Is(err, unix.EIO), errors.Is(err, unix.EUCLEAN):
		return fmt.Sprintf("the pool answers %q: its filesystem has shut down; look at the kernel's log and the disk, then berth down and berth up", errors.Unwrap(err))
	case err != nil:
		return err.Error()
	case st.Size() < v.SizeBytes && !b.holds.Held(v.ID): // an expansion under way is no problem
		return fmt.Sprintf("its file %s has %d bytes and should have %d: it was cut short; restore it from a snapshot or a backup", disk, st.Size(), v.SizeBytes)
	}
	return ""
}

// mountProblem is what the kernel knows of the filesystem where it is staged.
func (b *Backend) mountProblem(id string) string {
	b.mu.Lock()
	n := b.nodes[id]
	var staged string
	var readOnly bool
	if n != nil {
		staged, readOnly = n.staged, n.readOnly
	}
	b.mu.Unlock()
	if is, err := mountpoint.Is(staged); staged == "" || err == nil && !is {
		return ""
	}
	var at unix.Stat_t
	if err := unix.Stat(staged, &at); err != nil {
		return fmt.Sprintf("the filesystem at %s answers %q: stop its pods, unmount it and look at the kernel's log", staged, err)
	}
	if ro, err := mountpoint.ReadOnly(staged); err != nil {
		return fmt.Sprintf("the filesystem at %s answers %q: stop its pods, unmount it and look at the kernel's log", staged, err)
	} else if ro && !readOnly {
		return "the filesystem met errors and accepts no more writes: stop its pods, and it is repaired at the next mount"
	}
	if n := ext4Errors(at.Dev); n > 0 {
		return fmt.Sprintf("its ext4 has found %d errors in itself: stop its pods, and it is repaired at the next mount", n)
	}
	return ""
}

// ext4Errors is how many errors the ext4 on the loop device with that number has met; 0 for other filesystems.
func ext4Errors(device uint64) int {
	name := strings.TrimPrefix(loop.Path(int(unix.Minor(device))), "/dev/")
	count, err := os.ReadFile("/sys/fs/ext4/" + name + "/errors_count")
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(count)))
	return n
}
