package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"berth.io/berth/internal/host/mortal"
)

// stopWithin is how long a process gets to end after SIGTERM.
const stopWithin = 30 * time.Second

// process is a child that dies with the bench; what it prints is in a file of the bench's directory.
type process struct {
	name  string
	cmd   *exec.Cmd
	log   string
	ended chan struct{}
	err   error // valid once ended is closed
}

// spawn starts a program. Its log is DIR/NAME.log, appended to over restarts. With ownMounts, what it mounts goes with it.
func spawn(dir, name string, ownMounts bool, program string, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), ended: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.cmd = exec.Command(program, args...)
	p.cmd.Dir = dir
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the bench, which stops them in order
	if ownMounts {
		p.cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS // and / is made private in it
	}
	ended, err := mortal.Start(p.cmd)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = <-ended
		close(p.ended)
	}()
	return p, nil
}

// running is an error with the last lines of the log when the process has ended.
func (p *process) running() error {
	select {
	case <-p.ended:
		return fmt.Errorf("%s has ended (%v):\n%s", p.name, p.err, p.tail(20))
	default:
		return nil
	}
}

func (p *process) tail(lines int) string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// stop ends the process as a pod's end does, and kills it when it does not listen.
func (p *process) stop() {
	if p == nil || p.running() != nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(stopWithin):
		fmt.Fprintf(os.Stderr, "%s did not end within %s; killed\n", p.name, stopWithin)
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// memory is what the kernel accounts to a process, in bytes.
type memory struct {
	rss  int64 // resident, the program's own pages of its file among them
	anon int64 // the part that no file stands behind
}

func (m memory) plus(o memory) memory { return memory{rss: m.rss + o.rss, anon: m.anon + o.anon} }

func (m memory) String() string {
	return fmt.Sprintf("%.0f MiB (%.0f anonymous)", float64(m.rss)/(1<<20), float64(m.anon)/(1<<20))
}

func (p *process) memory() (memory, error) {
	if err := p.running(); err != nil {
		return memory{}, err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return memory{}, err
	}
	return parseStatus(b)
}

// parseStatus reads VmRSS and RssAnon of proc_pid_status(5), which are in units of 1024 bytes.
func parseStatus(status []byte) (memory, error) {
	var m memory
	for field, into := range map[string]*int64{"VmRSS:": &m.rss, "RssAnon:": &m.anon} {
		_, rest, ok := bytes.Cut(status, []byte("\n"+field))
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		f := strings.Fields(string(line))
		if !ok || len(f) != 2 || f[1] != "kB" {
			return m, fmt.Errorf("no %q in the process's status", field)
		}
		n, err := strconv.ParseInt(f[0], 10, 64)
		if err != nil {
			return m, err
		}
		*into = n << 10
	}
	return m, nil
}

// memoryOf adds up.
func memoryOf(ps ...*process) (memory, error) {
	var sum memory
	for _, p := range ps {
		m, err := p.memory()
		if err != nil {
			return sum, err
		}
		sum = sum.plus(m)
	}
	return sum, nil
}

// waitSocket returns when a process has made its socket, 30 s at most.
func (p *process) waitSocket(ctx context.Context, path string) error {
	return p.until(ctx, 30*time.Second, "its socket "+path, func() bool {
		fi, err := os.Stat(path)
		return err == nil && fi.Mode()&os.ModeSocket != 0
	})
}

// until looks every 20 ms whether a process is as it should be.
func (p *process) until(ctx context.Context, within time.Duration, what string, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for !ok() {
		if err := p.running(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: no %s within %s:\n%s", p.name, what, within, p.tail(20))
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// load is the machine's load average of the last minute.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "?"
	}
	one, _, _ := strings.Cut(string(b), " ")
	return one
}
