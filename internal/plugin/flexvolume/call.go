package flexvolume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"berth.io/berth/internal/plugin"
)

// callOut is a driver's verb, its first argument.
type callOut string

const (
	callInit          callOut = "init"
	callVolumeName    callOut = "getvolumename"
	callAttach        callOut = "attach"
	callWaitForAttach callOut = "waitforattach"
	callIsAttached    callOut = "isattached"
	callDetach        callOut = "detach"
	callMountDevice   callOut = "mountdevice"
	callUnmountDevice callOut = "unmountdevice"
	callMount         callOut = "mount"
	callUnmount       callOut = "unmount"
	callExpandVolume  callOut = "expandvolume"
	callExpandFS      callOut = "expandfs"
)

// Limits are how long a call-out may take before it is killed. Zero is the default.
type Limits struct {
	// Init bounds init; 10 s.
	Init time.Duration
	// Attach bounds attach, waitforattach and mountdevice, which may wait for a cloud or make a filesystem; 10 min.
	Attach time.Duration
	// Call bounds the others; 3 min.
	Call time.Duration
}

// DefaultLimits are those of zero values.
var DefaultLimits = Limits{Init: 10 * time.Second, Attach: 10 * time.Minute, Call: 3 * time.Minute}

func (l Limits) withDefaults() Limits {
	for _, f := range []struct {
		value *time.Duration
		or    time.Duration
	}{{&l.Init, DefaultLimits.Init}, {&l.Attach, DefaultLimits.Attach}, {&l.Call, DefaultLimits.Call}} {
		if *f.value <= 0 {
			*f.value = f.or
		}
	}
	return l
}

func (l Limits) of(c callOut) time.Duration {
	switch c {
	case callInit:
		return l.Init
	case callAttach, callWaitForAttach, callMountDevice:
		return l.Attach
	}
	return l.Call
}

// argumentLimit is the kernel's MAX_ARG_STRLEN: one argument, in bytes, with the zero that ends it.
const argumentLimit = 128 << 10

// stderrKept is how much of the end of a driver's standard error is kept, in bytes, to find its last line in.
const stderrKept = 64 << 10

// pipeDelay is how long the output of a driver that has ended is waited for, when a process that it left behind holds it open.
const pipeDelay = 250 * time.Millisecond

// errNotSupported says that the driver does not do this call-out: the host's default is done instead.
var errNotSupported = errors.New("not supported by the driver")

// outcome is how a call-out failed.
type outcome int

const (
	refused   outcome = iota // the driver answered with a failure: it changed nothing
	unstarted                // it was not run at all
	timedOut                 // killed past its deadline
	cutOff                   // killed because this program stops
	died                     // a signal ended it
	rubbish                  // it ended, and what it answered says nothing
	liar                     // it answered Success and ended with an error
)

// CallError is a call-out that failed, in words for a user. It is plugin.ErrUncertain when the call may have had an effect.
// It never contains arguments, nor secrets.
type CallError struct {
	Driver  string
	CallOut string
	outcome outcome
	// Reason is the driver's message, or what was wrong with its answer or its end.
	Reason string
	// Exit is its exit status, -1 when it has none.
	Exit int
	// Took is the time until it failed; Limit was its deadline.
	Took, Limit time.Duration
	// Stderr is the last line that it wrote to its standard error.
	Stderr string
}

func (e *CallError) Error() string {
	head := fmt.Sprintf("%s of FlexVolume driver %s", e.CallOut, e.Driver)
	var s string
	switch e.outcome {
	case timedOut:
		s = fmt.Sprintf("%s gave no answer for %s and was killed", head, e.Limit)
	case cutOff:
		return head + " was cut off: this program is stopping"
	case unstarted:
		s = fmt.Sprintf("%s can't be run: %s", head, e.Reason)
	case died:
		s = fmt.Sprintf("%s: %s", head, e.Reason)
	case liar:
		s = fmt.Sprintf("%s answered Success and ended with exit status %d: an error of the driver, whose outcome is not known", head, e.Exit)
	case rubbish:
		s = fmt.Sprintf("%s: %s", head, e.Reason)
		if e.Exit != 0 {
			s += fmt.Sprintf(" (exit status %d)", e.Exit)
		}
	default:
		s = fmt.Sprintf("%s failed: %s", head, e.Reason)
	}
	// The time of each try differs a little: only one that a person would notice is told, or no two events would be one.
	if e.outcome != timedOut && e.Took >= time.Second {
		s += fmt.Sprintf(" (after %s)", e.Took.Round(time.Second))
	}
	if e.Stderr != "" {
		s += fmt.Sprintf("; its last line of stderr: %q", e.Stderr)
	}
	return s
}

// Is makes errors.Is(err, plugin.ErrUncertain) true where the driver may have done what it did not say.
func (e *CallError) Is(target error) bool {
	return target == plugin.ErrUncertain && e.outcome != refused && e.outcome != unstarted
}

// execute runs one call-out of the program at path and reads its answer. What the driver says of itself as an error is a
// *CallError; errNotSupported is what it says it is. boundary: held by the caller.
func execute(ctx context.Context, driver, path string, call callOut, limit time.Duration, secrets redactor, args []string) (answer, error) {
	began := time.Now()
	fail := func(o outcome, exit int, reason, stderr string) error {
		return &CallError{Driver: driver, CallOut: string(call), outcome: o, Exit: exit, Limit: limit, Took: time.Since(began),
			Reason: oneLine(secrets.clean(reason), messageLimit), Stderr: stderr}
	}
	for _, a := range args {
		if len(a) >= argumentLimit {
			return answer{}, fail(unstarted, -1, fmt.Sprintf("its options and secrets are %d bytes together, and an argument of a program may have %d", len(a), argumentLimit-1), "")
		}
		if strings.ContainsRune(a, 0) {
			return answer{}, fail(unstarted, -1, "an argument has a zero byte in it", "")
		}
	}
	timed, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(timed, path, append([]string{string(call)}, args...)...)
	cmd.Env = driverEnvironment()
	cmd.Dir = "/"
	// The group is the driver with all that it starts and does not daemonize. It must not outlive this process: the next one
	// would call the driver for the same volume beside it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = pipeDelay
	stdout, stderr := &head{limit: answerLimit + 1}, &tail{limit: stderrKept}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Start(); err != nil {
		return answer{}, &startError{err: err, CallError: fail(unstarted, -1, startProblem(path, err), "").(*CallError)}
	}
	err := cmd.Wait()
	last := oneLine(secrets.clean(stderr.lastLine()), messageLimit)
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil && err != nil:
		return answer{}, fail(cutOff, -1, "", last)
	case timed.Err() != nil && err != nil:
		return answer{}, fail(timedOut, -1, "", last)
	case err == nil || errors.Is(err, exec.ErrWaitDelay): // a daemon of its own may hold the output open
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
	case errors.As(err, &exit):
		return answer{}, fail(died, -1, fmt.Sprintf("it was ended by %s", exit.Sys().(syscall.WaitStatus).Signal()), last)
	default:
		return answer{}, fail(rubbish, -1, err.Error(), last)
	}
	status := cmd.ProcessState.ExitCode()
	a, parseErr := parseAnswer(stdout.bytes())
	switch {
	case parseErr != nil:
		return answer{}, fail(rubbish, status, parseErr.Error(), last)
	case a.Status == statusNotSupported:
		return answer{}, errNotSupported
	case a.Status == statusSuccess && status != 0:
		return answer{}, fail(liar, status, "", last)
	case a.Status != statusSuccess:
		reason := a.Message
		if reason == "" {
			reason = fmt.Sprintf("status %q without a message", a.Status)
		}
		return answer{}, fail(refused, status, reason, last)
	}
	return a, nil
}

// startError keeps why a process could not be started, for the probe.
type startError struct {
	*CallError
	err error
}

func (e *startError) Unwrap() error { return e.err }

// driverEnvironment is this program's, as a driver of a kubelet has the kubelet's, without what is meant for this program alone.
func driverEnvironment() []string {
	var env []string
	path := false
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if strings.HasPrefix(name, "BERTH_") || strings.HasPrefix(name, "NOTIFY_") || strings.HasPrefix(name, "LISTEN_") {
			continue
		}
		path = path || name == "PATH"
		env = append(env, e)
	}
	if !path {
		env = append(env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	return env
}

// head keeps the beginning of a stream and swallows the rest. It is read while a process that was left behind may still write.
type head struct {
	limit int
	mu    sync.Mutex
	kept  bytes.Buffer
}

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if room := h.limit - h.kept.Len(); room > 0 {
		h.kept.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (h *head) bytes() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return bytes.Clone(h.kept.Bytes())
}

// tail keeps the end of a stream.
type tail struct {
	limit int
	mu    sync.Mutex
	kept  []byte
	cut   bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, p[max(0, len(p)-t.limit):]...)
	if over := len(t.kept) - t.limit; over > 0 || len(p) > t.limit {
		t.cut = true
		t.kept = append(t.kept[:0], t.kept[max(0, over):]...)
	}
	return len(p), nil
}

// lastLine is the last line that is not blank. A line whose beginning is lost may begin within a secret, which could not be
// recognised, and is not shown.
func (t *tail) lastLine() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(t.kept), []byte("\n"))
	if len(lines) == 1 && t.cut {
		return fmt.Sprintf("(a line of more than %d bytes)", t.limit)
	}
	return string(bytes.TrimSpace(lines[len(lines)-1]))
}
