package holderexec

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	orderFD   = 3
	failureFD = 4
)

// Main is the entry of the helper, to be called first in the caller's main. It returns at once in an ordinary
// execution; in the helper's it arranges the mounts, runs the command, and never returns.
//
// The helper stays until the command has ended, as its parent: when Run's process dies, by whatever signal, it kills everything in
// the namespace. A death signal (PR_SET_PDEATHSIG) alone would not do: it does not reach what the command has started, and a
// command that becomes another user loses it.
func Main() {
	if len(os.Args) != 1 || os.Args[0] != helperName {
		return
	}
	runtime.LockOSThread() // the command's death signal belongs to the thread that forks
	unix.CloseOnExec(orderFD)
	unix.CloseOnExec(failureFD)
	answer := os.NewFile(failureFD, "failure")
	cmd, code, err := start()
	if err != nil {
		text, _ := json.Marshal(failure{Code: code, Text: err.Error()})
		_, _ = answer.Write(text)
		os.Exit(code)
	}
	answer.Close()
	os.Exit(wait(cmd))
}

// start does the helper's work up to the command's start.
func start() (*exec.Cmd, int, error) {
	order := os.NewFile(orderFD, "order")
	decoder := json.NewDecoder(order)
	var j job
	if err := decoder.Decode(&j); err != nil {
		return nil, ExitSetup, fmt.Errorf("order: %w", err)
	}
	go func() { // nothing more comes: the end of the pipe is the end of the process that gave the order
		_, _ = io.Copy(io.Discard, order)
		_ = endOthersHere()
		os.Exit(ExitSetup)
	}()
	umask := unix.Umask(0) // what is made in a volume has the mode that is asked for, as the kubelet has it
	if err := arrange(&j.Spec); err != nil {
		return nil, ExitSetup, err
	}
	unix.Umask(umask)
	if j.Spec.WorkingDir == "" || unix.Chdir(j.Spec.WorkingDir) != nil {
		if err := unix.Chdir("/"); err != nil {
			return nil, ExitSetup, err
		}
	}
	program, code, err := j.Spec.find(j.Argv[0])
	if err != nil {
		return nil, code, err
	}
	cmd := &exec.Cmd{Path: program, Args: j.Argv, Env: j.Spec.Env, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Credential: j.Spec.credential(), Pdeathsig: syscall.SIGKILL}}
	// Caught before the command is there, and not ignored: what is ignored here would be ignored there.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGTERM)
	if err := cmd.Start(); err != nil {
		return nil, ExitNotRunnable, fmt.Errorf("execute %s: %w", program, err)
	}
	go func() {
		for s := range signals {
			if s == syscall.SIGTERM { // Run sends it to the helper alone; the terminal's reach the command by themselves
				_ = cmd.Process.Signal(s)
			}
		}
	}()
	return cmd, 0, nil
}

// wait ends what the command has left running, and returns its exit code, 128+n when signal n ended it.
func wait(cmd *exec.Cmd) int {
	_ = cmd.Wait()
	// Also when the command was killed by the end of Run's process: this must not exit before all the others have ended.
	_ = endOthersHere()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return cmd.ProcessState.ExitCode()
}

// found is what find finds.
type found struct {
	program string
	code    int
	err     error
}

// find looks for the command as the container's user, by the PATH of the container.
func (s *Spec) find(name string) (program string, code int, err error) {
	// The only variable of the pod's that reaches the helper: LookPath reads it, and the helper starts nothing else.
	for _, v := range s.Env {
		if path, ok := strings.CutPrefix(v, "PATH="); ok {
			if err := os.Setenv("PATH", path); err != nil {
				return "", ExitSetup, err
			}
		}
	}
	done := make(chan found)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with what it has become
		done <- s.findAs(name)
	}()
	f := <-done
	return f.program, f.code, f.err
}

func (s *Spec) findAs(name string) found {
	if err := s.becomeOnThisThread(); err != nil {
		return found{code: ExitSetup, err: err}
	}
	program, err := exec.LookPath(name)
	switch {
	case errors.Is(err, os.ErrPermission):
		return found{code: ExitNotRunnable, err: fmt.Errorf("%s: %w", name, err)}
	case err != nil && !errors.Is(err, exec.ErrDot):
		return found{code: ExitNotFound, err: fmt.Errorf("%s: not found on this host (the command runs with the host's programs)", name)}
	}
	if errors.Is(err, exec.ErrDot) && !strings.Contains(name, "/") {
		return found{code: ExitNotFound, err: err}
	}
	return found{program: program}
}

// credential is the container's user and groups; nil when the command stays root with root's groups.
func (s *Spec) credential() *syscall.Credential {
	if len(s.Groups) == 0 && s.User == nil && s.Group == nil {
		return nil
	}
	c := &syscall.Credential{NoSetGroups: len(s.Groups) == 0 && s.User == nil}
	if s.User != nil {
		c.Uid = uint32(*s.User)
	}
	if s.Group != nil {
		c.Gid = uint32(*s.Group)
	}
	for _, g := range s.Groups {
		if !slices.Contains(c.Groups, uint32(g)) {
			c.Groups = append(c.Groups, uint32(g))
		}
	}
	return c
}

// becomeOnThisThread takes on the container's user and groups. The system calls, unlike Go's functions, change the calling
// thread alone.
func (s *Spec) becomeOnThisThread() error {
	c := s.credential()
	if c == nil {
		return nil
	}
	if !c.NoSetGroups {
		first := unsafe.Pointer(nil)
		if len(c.Groups) > 0 {
			first = unsafe.Pointer(&c.Groups[0])
		}
		if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(c.Groups)), uintptr(first), 0); e != 0 {
			return fmt.Errorf("groups %v: %w", c.Groups, e)
		}
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(c.Gid), uintptr(c.Gid), uintptr(c.Gid)); e != 0 {
		return fmt.Errorf("group %d: %w", c.Gid, e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(c.Uid), uintptr(c.Uid), uintptr(c.Uid)); e != 0 {
		return fmt.Errorf("user %d: %w", c.Uid, e)
	}
	return nil
}
