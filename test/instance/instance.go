// Package instance runs real instances of `berth up` for the tests and benchmarks: started as a user starts them,
// driven by the built-in kubectl and by client-go, killed, and looked at from outside afterwards.
package instance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// EnvBin names the directory with the programs; `make` sets it.
const EnvBin = "BERTH_BIN"

// Instance is one data directory and, between Start and the end, its `berth up`.
type Instance struct {
	Bin string // directory of the programs
	Dir string // data directory
	// Args are given to `berth up` beside --data-dir.
	Args []string
	// Wrap, if any, is a command that runs `berth up`, such as setpriv with its flags.
	Wrap []string
	// Env is added to the environment of `berth up`, CommandEnv to that of the other commands.
	Env, CommandEnv []string

	mu    sync.Mutex
	cmd   *exec.Cmd
	out   *output
	ended chan struct{}
}

// New names an instance that is not running yet. The data directory is made by the first Start.
func New(dir string, args ...string) (*Instance, error) {
	bin := os.Getenv(EnvBin)
	if bin == "" {
		return nil, fmt.Errorf("%s is not set: run the tests through make", EnvBin)
	}
	return &Instance{Bin: bin, Dir: dir, Args: args}, nil
}

// ErrEnded says that `berth up` ended before what was waited for.
var ErrEnded = errors.New("berth up has ended")

// Launch starts `berth up` and does not wait for anything.
func (in *Instance) Launch() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.out = &output{changed: make(chan struct{})}
	line := slices.Concat(in.Wrap, []string{filepath.Join(in.Bin, "berth"), "up", "--data-dir", in.Dir}, in.Args)
	in.cmd = exec.Command(line[0], line[1:]...)
	in.cmd.Env = append(os.Environ(), in.Env...)
	in.cmd.Stdout, in.cmd.Stderr = in.out, in.out
	in.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := in.cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	in.ended = ended
	cmd := in.cmd
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	return nil
}

// Start launches `berth up` and waits until it says that it is ready.
func (in *Instance) Start(ctx context.Context) error {
	if err := in.Launch(); err != nil {
		return err
	}
	return in.WaitOutput(ctx, "  ready;")
}

// WaitOutput waits until `berth up` has printed text.
func (in *Instance) WaitOutput(ctx context.Context, text string) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	for {
		have, changed := in.out.read()
		if strings.Contains(have, text) {
			return nil
		}
		select {
		case <-changed:
		case <-in.ended:
			if have, _ := in.out.read(); strings.Contains(have, text) {
				return nil
			}
			return fmt.Errorf("%w before it printed %q:\n%s", ErrEnded, text, in.Output())
		case <-ctx.Done():
			return fmt.Errorf("berth up did not print %q: %w\n%s", text, ctx.Err(), in.Output())
		}
	}
}

// Output is what `berth up` has printed since its last start.
func (in *Instance) Output() string {
	if in.out == nil {
		return ""
	}
	s, _ := in.out.read()
	return s
}

// Ended is closed when `berth up` has ended.
func (in *Instance) Ended() <-chan struct{} { return in.ended }

// ExitCode of the last `berth up` that has ended; -1 when a signal killed it.
func (in *Instance) ExitCode() int { return in.cmd.ProcessState.ExitCode() }

// PID of `berth up`.
func (in *Instance) PID() int { return in.cmd.Process.Pid }

// Signal sends sig to `berth up` and waits for its end.
func (in *Instance) Signal(sig syscall.Signal, within time.Duration) error {
	if err := in.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-in.ended:
		return nil
	case <-time.After(within):
		_ = in.cmd.Process.Signal(syscall.SIGQUIT)
		<-in.ended
		return fmt.Errorf("berth up had not ended %s after %s:\n%s", within, sig, in.Output())
	}
}

// Stop ends `berth up` as Ctrl-C does.
func (in *Instance) Stop() error { return in.Signal(syscall.SIGTERM, 30*time.Second) }

// Kill is kill -9.
func (in *Instance) Kill() error { return in.Signal(syscall.SIGKILL, 10*time.Second) }

// Running says whether `berth up` runs.
func (in *Instance) Running() bool {
	if in.ended == nil {
		return false
	}
	select {
	case <-in.ended:
		return false
	default:
		return true
	}
}

// Berth runs another berth command on the instance and returns its standard output; the error has the rest.
func (in *Instance) Berth(ctx context.Context, args ...string) (string, error) {
	return in.BerthInput(ctx, "", args...)
}

// BerthInput is Berth with a standard input.
func (in *Instance) BerthInput(ctx context.Context, stdin string, args ...string) (string, error) {
	c := exec.CommandContext(ctx, filepath.Join(in.Bin, "berth"), append([]string{"--data-dir", in.Dir}, args...)...)
	var out, errOut bytes.Buffer
	c.Env = append(os.Environ(), in.CommandEnv...)
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(stdin), &out, &errOut
	if err := c.Run(); err != nil {
		return out.String(), fmt.Errorf("berth %s: %w: %s%s", strings.Join(args, " "), err, out.String(), errOut.String())
	}
	return out.String(), nil
}

// Kubectl is `berth kubectl`.
func (in *Instance) Kubectl(ctx context.Context, args ...string) (string, error) {
	return in.Berth(ctx, append([]string{"kubectl"}, args...)...)
}

// Apply is `berth kubectl apply -f -`.
func (in *Instance) Apply(ctx context.Context, yaml string) error {
	_, err := in.BerthInput(ctx, yaml, "kubectl", "apply", "-f", "-")
	return err
}

// Client speaks to the instance's API.
func (in *Instance) Client() (kubernetes.Interface, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", filepath.Join(in.Dir, "kubeconfig"))
	if err != nil {
		return nil, err
	}
	cfg.QPS = -1
	return kubernetes.NewForConfig(cfg)
}

// Down is `berth down`.
func (in *Instance) Down(ctx context.Context) error {
	_, err := in.Berth(ctx, "down")
	if err == nil && in.ended != nil {
		select {
		case <-in.ended:
		case <-time.After(20 * time.Second):
			return errors.New("berth up still runs after `berth down`")
		}
	}
	return err
}

// output collects what a process prints and wakes who waits for it.
type output struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	changed chan struct{}
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
	return o.buf.Write(b)
}

func (o *output) read() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String(), o.changed
}
