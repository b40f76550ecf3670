package holderexec

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	orderFD   = 3
	failureFD = 4
)

// Main is the entry of the helper, to be called first in the caller's main. It returns at once in an ordinary
// execution; in the helper's it arranges the mounts, executes the command, and never returns.
func Main() {
	if len(os.Args) != 1 || os.Args[0] != helperName {
		return
	}
	runtime.LockOSThread()
	unix.CloseOnExec(orderFD)
	unix.CloseOnExec(failureFD)
	code, err := help()
	text, _ := json.Marshal(failure{Code: code, Text: err.Error()})
	_, _ = os.NewFile(failureFD, "failure").Write(text)
	os.Exit(code)
}

// help does the helper's work; it returns only when something failed.
func help() (int, error) {
	text, err := io.ReadAll(os.NewFile(orderFD, "order"))
	if err != nil {
		return ExitSetup, err
	}
	var j job
	if err := json.Unmarshal(text, &j); err != nil {
		return ExitSetup, fmt.Errorf("order: %w", err)
	}
	umask := unix.Umask(0) // what is made in a volume has the mode that is asked for, as the kubelet has it
	if err := arrange(&j.Spec); err != nil {
		return ExitSetup, err
	}
	unix.Umask(umask)
	if j.Spec.WorkingDir == "" || unix.Chdir(j.Spec.WorkingDir) != nil {
		if err := unix.Chdir("/"); err != nil {
			return ExitSetup, err
		}
	}
	if err := j.Spec.become(); err != nil {
		return ExitSetup, err
	}
	// From here on the environment is the command's; LookPath reads PATH from it.
	for _, v := range j.Spec.Env {
		name, value, _ := strings.Cut(v, "=")
		if err := os.Setenv(name, value); err != nil {
			return ExitSetup, fmt.Errorf("variable %q: %w", name, err)
		}
	}
	program, err := exec.LookPath(j.Argv[0])
	switch {
	case errors.Is(err, os.ErrPermission):
		return ExitNotRunnable, fmt.Errorf("%s: %w", j.Argv[0], err)
	case err != nil && !errors.Is(err, exec.ErrDot):
		return ExitNotFound, fmt.Errorf("%s: not found on this host (the command runs with the host's programs)", j.Argv[0])
	}
	if errors.Is(err, exec.ErrDot) && !strings.Contains(j.Argv[0], "/") {
		return ExitNotFound, err
	}
	return ExitNotRunnable, fmt.Errorf("execute %s: %w", program, syscall.Exec(program, j.Argv, os.Environ()))
}

// become takes on the container's user and groups.
func (s *Spec) become() error {
	if len(s.Groups) > 0 || s.User != nil {
		groups := make([]int, 0, len(s.Groups))
		for _, g := range s.Groups {
			if !slices.Contains(groups, int(g)) {
				groups = append(groups, int(g))
			}
		}
		if err := syscall.Setgroups(groups); err != nil {
			return fmt.Errorf("groups %v: %w", groups, err)
		}
	}
	if s.Group != nil {
		if err := syscall.Setgid(int(*s.Group)); err != nil {
			return fmt.Errorf("group %d: %w", *s.Group, err)
		}
	}
	if s.User != nil {
		if err := syscall.Setuid(int(*s.User)); err != nil {
			return fmt.Errorf("user %d: %w", *s.User, err)
		}
	}
	return nil
}
