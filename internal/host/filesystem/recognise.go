package filesystem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Unknown is what Recognise answers for bytes that are not zero and that it has no name for.
const Unknown = "unknown data"

// edge is how much is read at each end of a device: every signature that matters is in there.
const edge = 1 << 20

// Recognise says what a device of size bytes holds: "" when its first and last MiB are zero, else the name of what was
// found (ext4, ext3, ext2, xfs, btrfs, LVM2, LUKS, swap, a partition table, …) or Unknown.
func Recognise(r io.ReaderAt, size int64) (string, error) {
	head := make([]byte, min(size, edge))
	if n, err := r.ReadAt(head, 0); n < len(head) && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the first MiB: %w", err)
	}
	if name := signature(head); name != "" {
		return name, nil
	}
	tail := make([]byte, min(size, edge))
	if n, err := r.ReadAt(tail, size-int64(len(tail))); n < len(tail) && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the last MiB: %w", err)
	}
	if !zero(head) || !zero(tail) {
		return Unknown, nil
	}
	return "", nil
}

// signature knows magic numbers at fixed places, the same that blkid looks for. Filesystems go before partition tables, since a
// boot sector looks like one.
func signature(b []byte) string {
	if has(b, 1024+56, "\x53\xef") {
		return extVersion(b[1024:])
	}
	for _, s := range []struct {
		at    int
		magic string
		name  string
	}{
		{0, "XFSB", XFS},
		{0x10040, "_BHRfS_M", Btrfs},
		{0, "LUKS\xba\xbe", "LUKS"},
		{512 + 24, "LVM2 001", "LVM2"},
		{24, "LVM2 001", "LVM2"},
		{4096 - 10, "SWAPSPACE2", "swap"},
		{512, "EFI PART", "a GPT partition table"},
		{4096, "EFI PART", "a GPT partition table"},
		{4096, "\xfc\x4e\x2b\xa9", "a RAID member"},
		{0, "\xfc\x4e\x2b\xa9", "a RAID member"},
		{1024, "\x10\x20\xf5\xf2", "f2fs"},
		{32768 + 1, "CD001", "iso9660"},
		{3, "NTFS    ", "ntfs"},
		{54, "FAT", "vfat"},
		{82, "FAT32", "vfat"},
		{3, "-FVE-FS-", "BitLocker"},
		{0, "bluestore block device", "Ceph BlueStore"},
		{510, "\x55\xaa", "a partition table"},
	} {
		if has(b, s.at, s.magic) {
			return s.name
		}
	}
	return ""
}

// Of an ext superblock: bits of s_feature_compat and s_feature_incompat that tell the versions apart.
const (
	extCompatJournal   = 0x4
	extIncompatExtents = 0x40
	extIncompat64bit   = 0x80
	extIncompatFlexBG  = 0x200
)

func extVersion(sb []byte) string {
	if len(sb) < 0x68 {
		return "ext2"
	}
	compat, incompat := binary.LittleEndian.Uint32(sb[0x5c:]), binary.LittleEndian.Uint32(sb[0x60:])
	switch {
	case incompat&(extIncompatExtents|extIncompat64bit|extIncompatFlexBG) != 0:
		return Ext4
	case compat&extCompatJournal != 0:
		return "ext3"
	}
	return "ext2"
}

// HasErrors says that an ext superblock carries the mark of errors found while it was mounted (s_state).
func HasErrors(r io.ReaderAt) bool {
	var state [2]byte
	const errorFS = 0x2
	n, _ := r.ReadAt(state[:], 1024+58)
	return n == 2 && binary.LittleEndian.Uint16(state[:])&errorFS != 0
}

func has(b []byte, at int, magic string) bool {
	return at+len(magic) <= len(b) && string(b[at:at+len(magic)]) == magic
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
