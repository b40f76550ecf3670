// Package filesystem recognises, makes and grows the filesystems that volumes hold: ext4, XFS and btrfs.
//
// Making one runs the filesystem's own mkfs. Recognising and growing need no program: superblocks are read directly and
// growing an online filesystem is one ioctl, the same one that resize2fs, xfs_growfs and btrfs use.
package filesystem

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth.io/berth/internal/host/command"
)

// The filesystems served.
const (
	Ext4  = "ext4"
	XFS   = "xfs"
	Btrfs = "btrfs"
)

// Default is what a volume gets that asks for none.
const Default = Ext4

// ErrUnknown is a filesystem type that is not served.
var ErrUnknown = errors.New("filesystem type not served")

const mib = int64(1) << 20

// MinimumBytes is the smallest device that fsType can be made on: mkfs.xfs refuses less than 300 MB, mkfs.btrfs less
// than 109 MiB; ext4 with a journal wants some MiB.
func MinimumBytes(fsType string) (int64, error) {
	switch fsType {
	case Ext4:
		return 8 * mib, nil
	case XFS:
		return 300 * mib, nil
	case Btrfs:
		return 128 * mib, nil
	}
	return 0, fmt.Errorf("%w: %q (ext4, xfs or btrfs)", ErrUnknown, fsType)
}

const makeDeadline = 2 * time.Minute

// Make makes fsType on path, a file that reads as zeros throughout, and syncs it. It overwrites whatever is there: the
// caller has made sure that nothing is. sectorBytes is the logical block size of the device that the file will be.
//
// The file is known to be zero, so no time is spent on writing zeros again, neither now nor lazily after the mount.
func Make(ctx context.Context, fsType, path string, sectorBytes uint32) error {
	program, args, err := recipe(ctx, fsType, path, sectorBytes)
	if err != nil {
		return err
	}
	if _, err := command.Run(ctx, makeDeadline, program, args...); err != nil {
		return fmt.Errorf("make %s on %s: %w", fsType, path, err)
	}
	return nil
}

func recipe(ctx context.Context, fsType, path string, sectorBytes uint32) (program string, args []string, err error) {
	switch fsType {
	case Ext4:
		extended := "nodiscard,lazy_itable_init=1,lazy_journal_init=1"
		if ext4KnowsPrezeroed(ctx) {
			extended = "nodiscard,assume_storage_prezeroed=1"
		}
		// -m 0: a volume is its user's alone, there is no root to keep 5 % for. -e: after an error no write may make it worse.
		return "mkfs.ext4", []string{"-q", "-F", "-m", "0", "-e", "remount-ro", "-E", extended, path}, nil
	case XFS:
		return "mkfs.xfs", []string{"-q", "-f", "-K", "-s", "size=" + strconv.FormatUint(uint64(sectorBytes), 10), path}, nil
	case Btrfs:
		return "mkfs.btrfs", []string{"-q", "-f", "-K", path}, nil
	}
	_, err = MinimumBytes(fsType)
	return "", nil, err
}

// ext4KnowsPrezeroed: e2fsprogs 1.47 and later have assume_storage_prezeroed. Without it the kernel zeroes the inode tables
// after the mount, which on a loop device is punching holes: slower, not wrong.
func ext4KnowsPrezeroed(ctx context.Context) bool {
	prezeroedOnce.Do(func() {
		out, err := command.Run(ctx, 5*time.Second, "mkfs.ext4", "-V")
		prezeroed = err == nil && versionAtLeast(out, 1, 47)
	})
	return prezeroed
}

var (
	prezeroedOnce sync.Once
	prezeroed     bool
)

// versionAtLeast reads "mke2fs 1.47.0 (5-Feb-2023)".
func versionAtLeast(banner string, major, minor int) bool {
	words := strings.Fields(banner)
	if len(words) < 2 {
		return false
	}
	parts := strings.SplitN(words[1], ".", 3)
	if len(parts) < 2 {
		return false
	}
	a, err1 := strconv.Atoi(parts[0])
	b, err2 := strconv.Atoi(strings.TrimRightFunc(parts[1], func(r rune) bool { return r < '0' || r > '9' }))
	return err1 == nil && err2 == nil && (a > major || a == major && b >= minor)
}

// Installed says whether fsType can be made here.
func Installed(fsType string) bool {
	_, err := command.Find("mkfs." + fsType)
	return err == nil
}

// Missing names the programs of the served filesystems that are not installed.
func Missing() []string {
	var out []string
	for _, p := range []string{"mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "e2fsck"} {
		if _, err := command.Find(p); err != nil {
			out = append(out, p)
		}
	}
	return out
}

// Repair runs the checker that is safe to run unasked (e2fsck -p) on a device whose ext4 says that it has errors or
// could not be mounted. XFS and btrfs repair themselves at mount or not at all.
func Repair(ctx context.Context, fsType, device string) error {
	if fsType != Ext4 {
		return nil
	}
	_, err := command.Run(ctx, 10*time.Minute, "e2fsck", "-p", device)
	var e *command.Error
	if errors.As(err, &e) && e.Exit&^3 == 0 {
		return nil // 1: repaired, 2: repaired, reboot asked for (an unmounted filesystem needs none)
	}
	if err != nil {
		return fmt.Errorf("repair %s: %w", device, err)
	}
	return nil
}

// ChangeUUID gives the filesystem on a device that is not mounted another UUID, so that it is not taken for the one that it is a
// copy of. For btrfs alone: the others can be mounted beside each other as they are.
func ChangeUUID(ctx context.Context, fsType, device string) error {
	if fsType != Btrfs {
		return nil
	}
	if _, err := command.Run(ctx, makeDeadline, "btrfstune", "-m", device); err != nil {
		return fmt.Errorf("change the UUID of the btrfs on %s: %w", device, err)
	}
	return nil
}
