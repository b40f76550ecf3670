package holderexec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

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

// endWithin bounds the wait for processes that were killed: one that hangs in the kernel cannot end.
const endWithin = 2 * time.Second

// endOthersHere kills every other process in this process's mount namespace.
func endOthersHere() error {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	return killAllIn(own)
}

// killAllIn kills every process in the mount namespace, but for this one, and returns when they have ended. What they start
// meanwhile is killed, too.
func killAllIn(namespace string) error {
	deadline := time.Now().Add(endWithin)
	for {
		processes, err := processesIn(namespace)
		if err != nil || len(processes) == 0 {
			return err
		}
		for _, p := range processes {
			if e := unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0); e != nil && !errors.Is(e, unix.ESRCH) {
				err = errors.Join(err, fmt.Errorf("kill %d: %w", p.pid, e))
			}
		}
		for _, p := range processes {
			err = errors.Join(err, p.ended(deadline))
		}
		if err != nil {
			return err
		}
	}
}

// process is a process that cannot be taken for another one with its number.
type process struct{ pid, fd int }

// processesIn finds the processes in the mount namespace, without this one and those that have ended. Each is to be closed by ended.
func processesIn(namespace string) ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		link := filepath.Join("/proc", e.Name(), "ns/mnt")
		if err != nil || pid == os.Getpid() {
			continue
		}
		if ns, err := os.Readlink(link); err != nil || ns != namespace {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended
		}
		if ns, err := os.Readlink(link); err != nil || ns != namespace {
			unix.Close(fd)
			continue
		}
		found = append(found, process{pid, fd})
	}
	return found, nil
}

// ended waits for the end of a process.
func (p process) ended(deadline time.Time) error {
	defer unix.Close(p.fd)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("process %d was killed and has not ended within %s", p.pid, endWithin)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", p.pid, err)
		}
		if n > 0 {
			return nil
		}
	}
}
