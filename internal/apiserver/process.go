// Package apiserver starts and watches berth-apiserver, the program that is the Kubernetes API of a standalone instance
// (cmd/berth-apiserver: etcd, kube-apiserver, generic controllers).
//
// It knows nothing of what runs behind the API. What flows in is a directory and an address, what flows out is a
// kubeconfig that works. The child dies with this process, however this process dies.
package apiserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"berth.io/berth/internal/host/mortal"
)

// Program is the name of the API server's executable; it stands beside berth's own, or on the PATH.
const Program = "berth-apiserver"

// stopWithin is how long the API server may take to end by itself before it is killed. Its data is safe either way.
const stopWithin = 15 * time.Second

// Options say how to run berth-apiserver.
type Options struct {
	Binary      string // empty: Find
	Dir         string // etcd and credentials, 0700
	Listen      string // ADDR:PORT
	Kubeconfig  string // written by the child before it is ready
	Controllers string // "berth" or "upstream": who runs the volume controllers
	// VolumePluginDir has the FlexVolume drivers that upstream's controllers call; empty: upstream's own choice.
	VolumePluginDir string
	Log             io.Writer
}

// Process is a running berth-apiserver.
type Process struct {
	cmd   *exec.Cmd
	ended chan struct{}

	mu   sync.Mutex
	err  error
	tail *lastLine
}

// Find returns the path of berth-apiserver: beside the running executable, else on the PATH.
func Find() (string, error) {
	if self, err := os.Executable(); err == nil {
		if p := filepath.Join(filepath.Dir(self), Program); isExecutable(p) {
			return p, nil
		}
	}
	p, err := exec.LookPath(Program)
	if err != nil {
		return "", fmt.Errorf("%s is neither beside berth nor on the PATH; build it with `make build`", Program)
	}
	return p, nil
}

func isExecutable(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
}

// Start runs berth-apiserver and returns when its API is ready, or with the child's last words when it ended instead.
func Start(ctx context.Context, o Options) (*Process, error) {
	if o.Binary == "" {
		var err error
		if o.Binary, err = Find(); err != nil {
			return nil, err
		}
	}
	ready, child, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	p := &Process{ended: make(chan struct{}), tail: &lastLine{to: o.Log}}
	p.cmd = exec.Command(o.Binary, "--data-dir="+o.Dir, "--listen="+o.Listen, "--kubeconfig="+o.Kubeconfig,
		"--controllers="+o.Controllers, "--ready-fd=3")
	if o.VolumePluginDir != "" {
		p.cmd.Args = append(p.cmd.Args, "--volume-plugin-dir="+o.VolumePluginDir)
	}
	p.cmd.ExtraFiles = []*os.File{child}
	p.cmd.Stdout, p.cmd.Stderr = p.tail, p.tail
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		// A group of its own: Ctrl-C in the terminal is for `berth up`, which stops the API server last.
		Setpgid: true,
	}
	ended, err := mortal.Start(p.cmd)
	child.Close()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", o.Binary, err)
	}
	go p.watch(ended)
	said := make(chan bool, 1)
	go func() {
		line, _ := bufio.NewReader(ready).ReadString('\n')
		said <- line == "ready\n"
	}()
	select {
	case ok := <-said:
		if ok {
			return p, nil
		}
		<-p.ended
		return nil, p.Err()
	case <-p.ended:
		return nil, p.Err()
	case <-ctx.Done():
		p.Stop()
		return nil, ctx.Err()
	}
}

// watch waits for the child's end.
func (p *Process) watch(ended <-chan error) {
	err := <-ended
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.err = fmt.Errorf("%s ended: %w", Program, err)
		if last := p.tail.last(); last != "" {
			p.err = errors.New(last)
		}
	} else {
		p.err = fmt.Errorf("%s ended", Program)
	}
	close(p.ended)
}

// Done is closed when the process has ended; Err says why.
func (p *Process) Done() <-chan struct{} { return p.ended }

// Err is the reason of the end, nil while the process runs.
func (p *Process) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// PID of the child.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stop asks the API server to end and waits; past stopWithin it is killed.
func (p *Process) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	t := time.NewTimer(stopWithin)
	defer t.Stop()
	select {
	case <-p.ended:
	case <-t.C:
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// lastLine passes everything on and remembers the last line that the program itself said, for the error message.
type lastLine struct {
	to io.Writer

	mu   sync.Mutex
	line string
}

func (l *lastLine) Write(b []byte) (int, error) {
	l.mu.Lock()
	for line := range strings.SplitSeq(string(b), "\n") {
		if strings.HasPrefix(line, Program+": ") {
			l.line = line
		}
	}
	l.mu.Unlock()
	if l.to == nil {
		return len(b), nil
	}
	return l.to.Write(b)
}

func (l *lastLine) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.line
}
