package intree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
)

// A device that was empty is marked before mkfs and until it is mounted: what mkfs leaves when the process dies is neither
// empty nor a filesystem, and would be taken for somebody's data. The mark says which device of which boot it was
// (diskseq counts every disk that the kernel has seen), so that it never speaks for another disk of the same path, and which
// PersistentVolume it was, by UID: one that is made anew under the same name may find the disk used by somebody else since. For
// the same reason the mark goes when the disk is given to a pod as it is, for whatever volume.

// formatMark belongs to the volume that is mounted at dir: <plugin>/mounts/<volume>.
func formatMark(dir string) string {
	return filepath.Join(filepath.Dir(filepath.Dir(dir)), "formatting", filepath.Base(dir))
}

func (l *local) formatMarks() string { return filepath.Dir(formatMark(l.globalDir("any"))) }

// givenAway takes the marks of a device away: from now on somebody else may write to it.
func (l *local) givenAway(device string) error {
	identity := deviceIdentity(device)
	marks, err := os.ReadDir(l.formatMarks())
	if errors.Is(err, os.ErrNotExist) || identity == "" {
		return nil
	}
	if err != nil {
		return err
	}
	for _, m := range marks {
		have, err := os.ReadFile(filepath.Join(l.formatMarks(), m.Name()))
		if err != nil || !strings.HasPrefix(string(have), identity+" ") {
			continue
		}
		if err := formatEnded(l.globalDir(m.Name())); err != nil {
			return err
		}
	}
	return nil
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

// formatBegan says whether this device was found empty, and mkfs begun on it for this PersistentVolume, by a process that died.
func formatBegan(dir, device string, pv types.UID) bool {
	have, err := os.ReadFile(formatMark(dir))
	mark := markOf(device, pv)
	return err == nil && mark != "" && string(have) == mark
}

// markOf is what a mark says; empty when it could be taken for that of another.
func markOf(device string, pv types.UID) string {
	identity := deviceIdentity(device)
	if identity == "" || pv == "" {
		return ""
	}
	return identity + " " + string(pv)
}

func beginFormat(dir, device string, pv types.UID) error {
	mark := markOf(device, pv)
	if mark == "" {
		return formatEnded(dir)
	}
	return boundary.Do("intree/begin-format", func() error {
		if err := os.MkdirAll(filepath.Dir(formatMark(dir)), 0o750); err != nil {
			return err
		}
		return os.WriteFile(formatMark(dir), []byte(mark), 0o600)
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
