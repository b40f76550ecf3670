package holderexec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// A command is found by its mount namespace, and that by a mark: a tmpfs over the pod's RunDir, with the pod's UID in its
// source. PIDs and the numbers of namespaces are used again; the mark lives exactly as long as some process of the command.
//
// Before a pod's volumes are unmounted KillAll closes RunDir and then looks for marks; a command sets its mark and then looks
// whether RunDir is closed. So one of the two sees the other.

const (
	// runDirName stands beside the plugins' marks in the pod's directory and goes with it.
	runDirName = "berth.io~exec"
	closedName = "closed"
	markPrefix = "berth-exec:"
)

// errLeaving says that the pod's volumes are being taken away.
var errLeaving = errors.New("the pod's volumes are being unmounted")

func runDir(dataDir string, pod types.UID) string {
	return filepath.Join(dataDir, "pods", string(pod), "plugins", runDirName)
}

// note leaves word in RunDir that a command runs, or did when its note is still there. A pod whose directory is gone is not
// made again.
func note(dir string) (forget func(), err error) {
	if dir == "" {
		return func() {}, nil
	}
	f, err := os.CreateTemp(dir, "command-*")
	if errors.Is(err, os.ErrNotExist) {
		if err = makeRunDir(dir); err == nil {
			f, err = os.CreateTemp(dir, "command-*")
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, errLeaving
	}
	if err != nil {
		return nil, err
	}
	return func() { _ = os.Remove(f.Name()) }, f.Close()
}

func makeRunDir(dir string) error {
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Mkdir(d, 0o750); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// mark marks this process's mount namespace as that of a command with the pod's volumes.
// boundary: held by the caller (as cover).
func mark(dir string) error {
	if dir == "" {
		return nil
	}
	open, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return errLeaving
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(open)
	if err := unix.Mount(markOf(dir), dir, "tmpfs", unix.MS_RDONLY, "size=4k,nr_inodes=2,mode=500"); err != nil {
		return fmt.Errorf("mark the mount namespace at %s: %w", dir, err)
	}
	err = unix.Faccessat(open, closedName, unix.F_OK, 0)
	if err == nil {
		return errLeaving
	}
	if !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "access", Path: filepath.Join(dir, closedName), Err: err}
	}
	return nil
}

// markOf is the source of the mark of the pod with that RunDir.
func markOf(dir string) string {
	return markPrefix + filepath.Base(filepath.Dir(filepath.Dir(dir)))
}

// KillAll ends the commands that run with the pod's volumes, with everything they started, also what is left of one whose
// `berth exec` was killed: their mount namespaces would keep the volumes' filesystems busy. None begins until Reopen.
func KillAll(dataDir string, pod types.UID) error {
	dir := runDir(dataDir, pod)
	closed := filepath.Join(dir, closedName)
	err := os.WriteFile(closed, nil, 0o640)
	if errors.Is(err, os.ErrNotExist) {
		if err = makeRunDir(dir); err == nil {
			err = os.WriteFile(closed, nil, 0o640)
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil // the pod has no directory
	}
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 1 {
		return err
	}
	return killMarked(markOf(dir))
}

// Reopen lets commands run with the pod's volumes again.
func Reopen(dataDir string, pod types.UID) error {
	err := os.Remove(filepath.Join(runDir(dataDir, pod), closedName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// killMarked kills every process in the mount namespaces with the mark.
func killMarked(source string) error {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	seen := map[string]bool{own: true}
	var errs []error
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		namespace, err := os.Readlink(filepath.Join("/proc", p.Name(), "ns/mnt"))
		if err != nil || seen[namespace] {
			continue
		}
		marked, sees := hasMark(pid, source)
		// A process that has changed its root may not see the mark: the others of its namespace are asked, too.
		seen[namespace] = sees
		if marked {
			errs = append(errs, killAllIn(namespace))
		}
	}
	return errors.Join(errs...)
}

// hasMark looks for the mark among the mounts that the process sees; sees is false when it does not see all.
func hasMark(pid int, source string) (marked, sees bool) {
	table, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return false, false
	}
	defer table.Close()
	mounts, err := mountinfo.GetMountsFromReader(table, nil)
	if err != nil {
		return false, false
	}
	for _, m := range mounts {
		if m.FSType == "tmpfs" && m.Source == source {
			return true, true
		}
	}
	root, err := os.Readlink(fmt.Sprintf("/proc/%d/root", pid))
	return false, err == nil && root == "/"
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
