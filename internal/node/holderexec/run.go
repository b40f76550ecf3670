package holderexec

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

// Exit codes when the command did not run, as those of docker and of a shell.
const (
	ExitSetup       = 125 // its surroundings could not be made
	ExitNotRunnable = 126
	ExitNotFound    = 127
)

// helperName is argv[0] of the second execution of the caller's program.
const helperName = "berth-holder-exec"

// Stdio is what the command reads and writes. Files are handed over as they are, so a terminal stays a terminal.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// Run runs argv as s describes and returns its exit code; 128+n when signal n ended it. An error means that the
// command did not start; the code is then one of the Exit constants. What the command leaves running ends with it, and all of
// it with this process, however that ends. When ctx ends, the command gets SIGTERM, and SIGKILL ten seconds later. SIGINT and
// SIGQUIT are the command's, which shares the terminal.
func Run(ctx context.Context, s Spec, argv []string, stdio Stdio) (int, error) {
	if len(argv) == 0 {
		return ExitSetup, errors.New("no command")
	}
	order, err := json.Marshal(job{Spec: s, Argv: argv})
	if err != nil {
		return ExitSetup, err
	}
	forget, err := note(s.RunDir)
	if err != nil {
		return ExitSetup, err
	}
	defer forget()
	orderR, orderW, err := os.Pipe()
	if err != nil {
		return ExitSetup, err
	}
	defer orderR.Close()
	defer orderW.Close() // it is open as long as this process lives: its end tells the helper (Main)
	failR, failW, err := os.Pipe()
	if err != nil {
		return ExitSetup, err
	}
	defer failR.Close()

	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{helperName}
	cmd.Env = []string{} // the helper is root: the pod must not choose what is loaded into it (LD_PRELOAD)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdio.In, stdio.Out, stdio.Err
	cmd.ExtraFiles = []*os.File{orderR, failW} // 3 and 4
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	// Unshareflags also makes every mount of the new namespace private, so nothing that is mounted there comes back.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	defer leaveTerminalSignals()()

	if err := cmd.Start(); err != nil {
		return ExitSetup, errors.Join(fmt.Errorf("new mount namespace: %w (root is needed)", err), failW.Close())
	}
	defer endNamespace(cmd.Process.Pid)()
	failW.Close()
	go func() { // a large order must not wait for a helper that is not reading yet
		_, _ = orderW.Write(order)
	}()
	// The helper's end of the pipe closes when the command runs; until then it carries what went wrong.
	text, _ := io.ReadAll(failR)
	err = cmd.Wait()
	if len(text) > 0 {
		var f failure
		if json.Unmarshal(text, &f) != nil {
			f = failure{Code: ExitSetup, Text: string(text)}
		}
		return f.Code, errors.New(f.Text)
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		status := exit.Sys().(syscall.WaitStatus)
		if status.Signaled() {
			return 128 + int(status.Signal()), nil
		}
		return status.ExitStatus(), nil
	case cmd.ProcessState != nil: // ctx ended; the command has
		if code := cmd.ProcessState.ExitCode(); code >= 0 {
			return code, nil
		}
		return 128 + int(syscall.SIGTERM), nil
	}
	return ExitSetup, err
}

// job is what the helper is told; failure is what it answers when the command cannot run.
type (
	job struct {
		Spec Spec
		Argv []string
	}
	failure struct {
		Code int
		Text string
	}
)

// leaveTerminalSignals keeps the caller alive while the terminal's signals go to the command in the same process group.
func leaveTerminalSignals() (restore func()) {
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGQUIT)
	return func() { signal.Stop(ch) }
}
