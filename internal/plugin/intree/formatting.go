package intree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
)

// A device that was empty is marked before mkfs and until it is mounted: what mkfs leaves when the process dies is neither
// empty nor a filesystem, and would be taken for somebody's data. The mark says which device of which boot it was
// (diskseq counts every disk that the kernel has seen), so that it never speaks for another disk of the same path.

// formatMark belongs to the volume that is mounted at dir: <plugin>/mounts/<volume>.
func formatMark(dir string) string {
	return filepath.Join(filepath.Dir(filepath.Dir(dir)), "formatting", filepath.Base(dir))
}

// deviceIdentity is empty when the kernel cannot tell: then an interrupted mkfs is not gone on with.
func deviceIdentity(device string) string {
	var st unix.Stat_t
	if unix.Stat(device, &st) != nil {
		return ""
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	seq, err := os.ReadFile(filepath.Join("/sys/dev/block", number, "diskseq"))
	if err != nil {
		return "" // a partition has none
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.Join([]string{number, strings.TrimSpace(string(seq)), strings.TrimSpace(string(boot))}, " ")
}

// formatBegan says whether this device was found empty, and mkfs begun on it, by a process that died.
func formatBegan(dir, device string) bool {
	have, err := os.ReadFile(formatMark(dir))
	return err == nil && len(have) > 0 && string(have) == deviceIdentity(device)
}

func beginFormat(dir, device string) error {
	identity := deviceIdentity(device)
	if identity == "" {
		return formatEnded(dir)
	}
	return boundary.Do("intree/begin-format", func() error {
		if err := os.MkdirAll(filepath.Dir(formatMark(dir)), 0o750); err != nil {
			return err
		}
		return os.WriteFile(formatMark(dir), []byte(identity), 0o600)
	})
}

// formatEnded takes the mark away: from now on what is on the device is the volume's data.
func formatEnded(dir string) error {
	if _, err := os.Lstat(formatMark(dir)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	err := boundary.Do("intree/end-format", func() error { return os.Remove(formatMark(dir)) })
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
