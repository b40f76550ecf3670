package fsmount

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Opener is a process that has a device open.
type Opener struct {
	PID  int
	Name string
	// Own: it runs this very program, another call of a driver mostly.
	Own bool
}

func (o Opener) String() string { return fmt.Sprintf("%d (%s)", o.PID, o.Name) }

// Openers lists the other processes that have the block device open. What the kernel itself holds (a mount, a device on top) has no
// process: UsersOf finds that.
func Openers(major, minor int) []Opener {
	var found []Opener
	self := os.Getpid()
	program, _ := os.Stat("/proc/self/exe")
	for _, pid := range processes() {
		if pid == self {
			continue
		}
		dir := fmt.Sprintf("/proc/%d", pid)
		fds, err := os.ReadDir(dir + "/fd")
		if err != nil {
			continue // it has ended
		}
		if !slices.ContainsFunc(fds, func(fd os.DirEntry) bool { return isDevice(filepath.Join(dir, "fd", fd.Name()), major, minor) }) {
			continue
		}
		name, _ := os.ReadFile(dir + "/comm")
		its, err := os.Stat(dir + "/exe")
		found = append(found, Opener{PID: pid, Name: strings.TrimSpace(string(name)), Own: err == nil && program != nil && os.SameFile(its, program)})
	}
	return found
}

func processes() (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// isDevice says whether what path leads to is the device. It does not wait for a server that is away.
func isDevice(path string, major, minor int) bool {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return false
	}
	return uint32(st.Mode)&unix.S_IFMT == unix.S_IFBLK && int(st.Rdev_major) == major && int(st.Rdev_minor) == minor
}

// Looker says that a process only reads what is on each new device, for a moment: udev's.
func (o Opener) Looker() bool {
	return o.Name == "(udev-worker)" || o.Name == "systemd-udevd" || o.Name == "udevd"
}

// UsersOf names who uses a device that is not mounted in this mount namespace, in words for a user: processes, devices on top, swap, mounts
// in other namespaces. own says that another call of this program has it open.
func UsersOf(major, minor int) (users []string, own bool) {
	for _, o := range Openers(major, minor) {
		switch {
		case o.Own:
			own = true
		case !o.Looker():
			users = append(users, "process "+o.String())
		}
	}
	sys := fmt.Sprintf("/sys/dev/block/%d:%d/holders", major, minor)
	if holders, err := os.ReadDir(sys); err == nil {
		for _, h := range holders {
			name := h.Name()
			if mapped, err := os.ReadFile(filepath.Join(sys, name, "dm/name")); err == nil {
				name += " (" + strings.TrimSpace(string(mapped)) + ")"
			}
			users = append(users, "the device "+name+" on top of it")
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if file, err := os.ReadFile(l); err == nil && isDevice(strings.TrimSuffix(string(file), "\n"), major, minor) {
			users = append(users, "/dev/"+filepath.Base(filepath.Dir(filepath.Dir(l))))
		}
	}
	if swaps, err := os.ReadFile("/proc/swaps"); err == nil {
		for line := range strings.Lines(string(swaps)) {
			if f := strings.Fields(line); len(f) > 0 && isDevice(f[0], major, minor) {
				users = append(users, "swap")
			}
		}
	}
	return append(users, foreignMounts(major, minor)...), own
}

// foreignMounts finds mounts of the device in the mount namespaces of other processes, one for each namespace.
func foreignMounts(major, minor int) (found []string) {
	seen := map[string]bool{}
	number := fmt.Sprintf("%d:%d", major, minor)
	for _, pid := range processes() {
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if err != nil || seen[ns] {
			continue
		}
		seen[ns] = true
		info, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(info)) {
			if f := strings.Fields(line); len(f) > 4 && f[2] == number {
				found = append(found, fmt.Sprintf("a mount at %s in the mount namespace of process %d", f[4], pid))
				break
			}
		}
	}
	return found
}
