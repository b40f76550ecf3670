// Package resident gives memory back to the kernel that only the start of a long-lived process needed.
//
// A start leaves garbage of lists that were decoded, and runs through most of a large program's file once (the tables that packages build in
// their init functions); both stay resident for as long as nobody wants the memory, and count as the process's own.
package resident

import (
	"bytes"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Trim collects garbage, gives the freed memory back, and lets go of the program's own code and constants. What of these is needed again comes
// back from the page cache, page by page, in well under a microsecond each.
func Trim() error {
	debug.FreeOSMemory()
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return err
	}
	for _, r := range clean(smaps, program) {
		// Raw: the range is not Go's memory, and a pointer to it would not be one that Go knows.
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, r.start, r.end-r.start, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("madvise %x-%x of %s: %w", r.start, r.end, program, errno)
		}
	}
	return nil
}

// span of addresses.
type span struct{ start, end uintptr }

// clean are the mappings of a file that can't be written to and have no page that differs from the file: those alone come back as they
// were. (A mapping that the dynamic linker relocated and then protected cannot be written to either.) smaps is as in proc_pid_smaps(5).
func clean(smaps []byte, file string) []span {
	var found []span
	var current *span
	for line := range bytes.Lines(smaps) {
		f := strings.Fields(string(line))
		if len(f) == 0 {
			continue
		}
		if !strings.HasSuffix(f[0], ":") {
			current = nil
			if len(f) == 6 && f[5] == file && strings.HasPrefix(f[1], "r-") && strings.HasSuffix(f[1], "p") {
				current = parseSpan(f[0])
			}
			continue
		}
		// It comes after the mapping's own line; a kernel that does not tell lets everything stay.
		if current != nil && f[0] == "Anonymous:" {
			if len(f) == 3 && f[1] == "0" {
				found = append(found, *current)
			}
			current = nil
		}
	}
	return found
}

func parseSpan(s string) *span {
	from, to, _ := strings.Cut(s, "-")
	start, err := strconv.ParseUint(from, 16, 64)
	if err != nil {
		return nil
	}
	end, err := strconv.ParseUint(to, 16, 64)
	if err != nil || end <= start {
		return nil
	}
	return &span{uintptr(start), uintptr(end)}
}
