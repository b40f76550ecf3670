package flexvolume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
)

// Status is the answer of a call-out (upstream's DriverStatus).
type Status struct {
	Status  string `json:"status"`
	Message string `json:"message,omitempty"`
	// Warning is what the volume's user must hear of although it is a Success. Berth's host makes an event of it; upstream's ignores the key.
	Warning      string        `json:"warning,omitempty"`
	Device       string        `json:"device,omitempty"`
	VolumeName   string        `json:"volumeName,omitempty"`
	Attached     *bool         `json:"attached,omitempty"`
	NewBytes     int64         `json:"volumeNewSize,omitempty"`
	Capabilities *Capabilities `json:"capabilities,omitempty"`
}

// The words of Status.
const (
	Success      = "Success"
	Failure      = "Failure"
	NotSupported = "Not supported"
)

// messageLimit bounds what a message holds, in bytes: it becomes an event.
const messageLimit = 2000

// grace is how long a call-out may take to end after its context has. What the kernel does not let go of then goes on without us;
// the host has its answer.
const grace = 3 * time.Second

// Main runs the call-out of this process's arguments, prints the answer, and returns the exit code: 0 for Success, else 1.
// drivers is the table: the name that argv[0] ends in, and what makes that driver.
func Main(drivers map[string]func() Driver, version string) int {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGALRM, syscall.SIGUSR1, syscall.SIGUSR2)
	args := take(os.Args)
	debug.SetGCPercent(-1) // one call's garbage is small
	return answer(os.Stdout, serve(args, drivers, version, signals, bound(args)))
}

// answer writes the one object, and says what the exit code is.
func answer(w io.Writer, s Status) int {
	s.Message, s.Warning = printable(s.Message), printable(s.Warning)
	encode := json.NewEncoder(w) // which writes once, and ends the line
	encode.SetEscapeHTML(false)
	if err := encode.Encode(s); err != nil || s.Status != Success {
		return 1
	}
	return 0
}

// serve does the call-out in a goroutine of its own, so that a deadline or a signal is answered even while the kernel holds a
// thread of ours in a system call.
func serve(args []string, drivers map[string]func() Driver, version string, signals <-chan os.Signal, bound time.Duration) Status {
	call := ""
	if len(args) > 1 {
		call = args[1]
	}
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	done := make(chan Status, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- failure(fmt.Errorf("a defect in the driver: %v", p))
			}
		}()
		done <- dispatch(ctx, args, drivers, version)
	}()
	var why error
	select {
	case s := <-done:
		return s
	case s := <-signals:
		why = fmt.Errorf("%s: ended by the signal %q", call, s)
	case <-ctx.Done():
		why = fmt.Errorf("%s: not done after %s", call, bound)
	}
	cancel()
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case s := <-done:
		if s.Status == Success { // it was done before it heard of it
			return s
		}
		return failure(fmt.Errorf("%w (%s)", why, s.Message))
	case <-timer.C:
		return failure(fmt.Errorf("%w, and still held by the kernel %s later", why, grace))
	}
}

func failure(err error) Status { return Status{Status: Failure, Message: err.Error()} }

// dispatch finds the driver and the call-out.
func dispatch(ctx context.Context, args []string, drivers map[string]func() Driver, version string) Status {
	if len(args) == 0 {
		return failure(errors.New("started without a name: argv[0] chooses the driver"))
	}
	if len(args) == 2 && args[1] == "--version" {
		return Status{Status: Success, Message: version}
	}
	name := filepath.Base(args[0])
	makeDriver, known := drivers[name]
	if !known {
		return failure(fmt.Errorf("no driver is called %s: install this program as <vendor>~<driver>/<driver>, the driver being one of %s (`berth flexvolume install`)",
			shown(name), strings.Join(sortedKeys(drivers), ", ")))
	}
	if len(args) < 2 {
		return failure(fmt.Errorf("%s: no call-out was named, such as init or mount", name))
	}
	out, known := callouts[args[1]]
	if !known {
		return Status{Status: NotSupported, Message: fmt.Sprintf("%s: call-out %s is not known", name, shown(args[1]))}
	}
	rest := args[2:]
	if len(rest) < out.least || len(rest) > out.most {
		return failure(fmt.Errorf("%s %s: %d arguments; it takes %s", name, args[1], len(rest), out.form))
	}
	s, err := out.run(ctx, makeDriver(), rest)
	switch {
	case errors.Is(err, ErrNotSupported):
		return Status{Status: NotSupported, Message: fmt.Sprintf("%s: %s is not supported", name, args[1])}
	case err != nil:
		return failure(fmt.Errorf("%s %s: %w", name, args[1], err))
	}
	s.Status = Success
	return s
}

// printable keeps a message in bounds and on one line.
func printable(m string) string {
	if len(m) > messageLimit {
		m = m[:messageLimit] + "…"
	}
	return strings.Map(func(r rune) rune {
		if control(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(m, "?"))
}
