package holderexec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"k8s.io/apimachinery/pkg/types"
)

// runDirName stands beside the plugins' marks in the pod's directory and goes with it.
const runDirName = "berth.io~exec"

// note leaves a file for the running command: its name is the process, its content the process's start time. A pod
// whose directory is gone gets no note: it must not come back.
func note(dir string, pid int) (forget func()) {
	if dir == "" {
		return func() {}
	}
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Mkdir(d, 0o750); err != nil && !errors.Is(err, os.ErrExist) {
			return func() {}
		}
	}
	file := filepath.Join(dir, strconv.Itoa(pid))
	if os.WriteFile(file, []byte(startTime(pid)), 0o640) != nil {
		return func() {}
	}
	return func() { _ = os.Remove(file) }
}

// KillAll ends the commands that run with the pod's volumes, with everything they started: their mount namespaces
// would keep the volumes' filesystems busy. It costs one directory read when there are none.
func KillAll(dataDir string, pod types.UID) error {
	dir := filepath.Join(dataDir, "pods", string(pod), "plugins", runDirName)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		started, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err == nil && len(started) > 0 && string(started) == startTime(pid) {
			errs = append(errs, killNamespace(pid))
		}
		_ = os.Remove(filepath.Join(dir, e.Name()))
	}
	return errors.Join(errs...)
}

// killNamespace kills every process in pid's mount namespace, unless that is our own or the machine's: then the command is
// still between fork and unshare, or has gone there itself (nsenter), and it alone is killed.
func killNamespace(pid int) error {
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	machine, _ := os.Readlink("/proc/1/ns/mnt") // a container may not look
	if namespace == own || namespace == machine {
		return kill(pid)
	}
	return killAllIn(namespace)
}

func kill(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill %d: %w", pid, err)
	}
	return nil
}

// endNamespace remembers the mount namespace that was made for pid; end kills what is left there when the command has
// ended. A process left behind would keep the volumes busy, with nothing in the machine's own namespace to show it.
func endNamespace(pid int) (end func()) {
	path := fmt.Sprintf("/proc/%d/ns/mnt", pid)
	f, err := os.Open(path) // as long as it is open, its number goes to no other namespace
	if err != nil {
		return func() {}
	}
	made, err := os.Readlink(path)
	own, ownErr := os.Readlink("/proc/self/ns/mnt")
	return func() {
		defer f.Close()
		if machine, _ := os.Readlink("/proc/1/ns/mnt"); err == nil && ownErr == nil && made != own && made != machine {
			_ = killAllIn(made)
		}
	}
}

// killAllIn kills every process in the mount namespace.
func killAllIn(namespace string) error {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range processes {
		other, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		if ns, err := os.Readlink(filepath.Join("/proc", p.Name(), "ns/mnt")); err == nil && ns == namespace {
			errs = append(errs, kill(other))
		}
	}
	return errors.Join(errs...)
}

// startTime is field 22 of /proc/<pid>/stat: with the PID it names a process for the life of the machine.
func startTime(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The second field, the program's name, may hold spaces and brackets.
	_, rest, ok := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return ""
	}
	return fields[19]
}
