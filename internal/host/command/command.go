// Package command runs external programs: absolute path, no shell, a deadline, bounded output, the program's whole
// process group killed when the deadline has passed.
package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ErrMissing says that a program is not installed.
var ErrMissing = errors.New("program not installed")

// Error is a program that ran and failed.
type Error struct {
	Program string
	Exit    int // -1 when a signal ended it
	Output  string
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s: exit status %d: %s", e.Program, e.Exit, strings.Join(strings.Fields(e.Output), " "))
}

const outputLimit = 8 << 10

var directories = []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"}

// Find returns the absolute path of a program, from the system's directories and not from $PATH.
func Find(program string) (string, error) {
	for _, dir := range directories {
		path := filepath.Join(dir, program)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: %s", ErrMissing, program)
}

// Run runs program, for at most timeout, and returns what it wrote to stdout and stderr, at most 8 KiB of it. It does not
// inherit the environment. A non-zero exit is *Error.
func Run(ctx context.Context, timeout time.Duration, program string, args ...string) (string, error) {
	var out bounded
	err := run(ctx, timeout, nil, &out, &out, program, args)
	return out.String(), err
}

// Output is Run for a program whose stdout is data: it alone is returned, at most 8 KiB of it; stderr stands in the *Error. The
// program inherits files as its descriptors 3 and up.
func Output(ctx context.Context, timeout time.Duration, files []*os.File, program string, args ...string) (string, error) {
	var out, said bounded
	err := run(ctx, timeout, files, &out, &said, program, args)
	var e *Error
	if errors.As(err, &e) {
		e.Output = said.String()
	}
	return out.String(), err
}

func run(ctx context.Context, timeout time.Duration, files []*os.File, stdout, stderr *bounded, program string, args []string) error {
	path, err := Find(program)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.ExtraFiles = files
	// It must not outlive this process: the next one would format beside it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // a grandchild may keep the pipe open
	cmd.Stdout, cmd.Stderr = stdout, stderr
	began := time.Now()
	err = cmd.Run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: killed after %s: %w", program, time.Since(began).Round(time.Millisecond), ctx.Err())
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &Error{Program: program, Exit: exit.ExitCode(), Output: stdout.String()}
	}
	return fmt.Errorf("run %s: %w", path, err)
}

// bounded keeps the first outputLimit bytes and swallows the rest.
type bounded struct{ kept bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if room := outputLimit - b.kept.Len(); room > 0 {
		b.kept.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (b *bounded) String() string { return b.kept.String() }
