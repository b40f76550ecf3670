package try

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	snapclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/mortal"
)

// nodeName is the name of a bench's node.
const nodeName = "berth-try"

// startWithin bounds the start of an instance, which takes some 3 s.
const startWithin = 2 * time.Minute

// instance is the private `berth up` of a run.
type instance struct {
	dir    string // data directory
	listen string
	apart  string    // DRIVER=SOCKET of a controller service that is not on the node's socket; or ""
	out    io.Writer // what it prints

	cmd   *exec.Cmd
	ended chan struct{}

	client kubernetes.Interface
	snap   snapclient.Interface
}

func newInstance(work string, out io.Writer) (*instance, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	in := &instance{dir: filepath.Join(work, "d"), listen: l.Addr().String(), out: out}
	return in, in.inMemory()
}

// database is where etcd and the credentials are.
func (in *instance) database() string { return filepath.Join(in.dir, "apiserver") }

// inMemory puts the database on a tmpfs: it outlives a killed instance, and nobody needs it after a power failure. Without the
// right to mount, it is on the disk.
func (in *instance) inMemory() error {
	if err := os.MkdirAll(in.database(), 0o700); err != nil {
		return err
	}
	_ = boundary.Do("try/mount-memory", func() error {
		return unix.Mount("berth-try", in.database(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700")
	})
	return nil
}

// start runs `berth up` and returns when its API and its rooms are there.
func (in *instance) start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	in.cmd = exec.Command(self, "up", "--bare", "--data-dir", in.dir, "--node-name", nodeName, "--listen", in.listen, "--snapshot-metadata", "off")
	if in.apart != "" {
		in.cmd.Args = append(in.cmd.Args, "--csi-address", in.apart)
	}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "BERTH_KILL_") && !strings.HasPrefix(e, "BERTH_TRY") {
			in.cmd.Env = append(in.cmd.Env, e)
		}
	}
	in.cmd.Stdout, in.cmd.Stderr = w, w
	in.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	ended, err := mortal.Start(in.cmd)
	w.Close()
	if err != nil {
		r.Close()
		return fmt.Errorf("start the instance: %w", err)
	}
	in.ended = make(chan struct{})
	go func() {
		<-ended
		close(in.ended)
	}()
	ready, said := make(chan struct{}), &strings.Builder{}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		defer r.Close()
		s := bufio.NewScanner(r)
		told := false
		for s.Scan() {
			fmt.Fprintln(in.out, s.Text())
			if !told {
				said.WriteString(s.Text() + "\n")
			}
			if !told && strings.Contains(s.Text(), "  ready;") {
				told = true
				close(ready)
			}
		}
	}()
	select {
	case <-ready:
		return in.connect()
	case <-in.ended:
		<-copied
		return fmt.Errorf("the instance did not start:\n%s", said)
	case <-ctx.Done():
		return fmt.Errorf("the instance was not ready: %w", ctx.Err())
	}
}

func (in *instance) connect() error {
	cfg, err := clientcmd.BuildConfigFromFlags("", filepath.Join(in.dir, "kubeconfig"))
	if err != nil {
		return err
	}
	cfg.QPS = -1
	if in.client, err = kubernetes.NewForConfig(cfg); err != nil {
		return err
	}
	in.snap, err = snapclient.NewForConfig(cfg)
	return err
}

// kill is kill -9: volumes stay mounted, nothing is written.
func (in *instance) kill() {
	if in.cmd == nil || in.cmd.Process == nil {
		return
	}
	_ = syscall.Kill(in.cmd.Process.Pid, syscall.SIGKILL)
	<-in.ended
}

// down is `berth down`, which unmounts through the driver; then the instance has ended.
func (in *instance) down(ctx context.Context) error {
	if in.cmd == nil || in.cmd.Process == nil {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	err = boundary.Do("try/down", func() error {
		out, err := exec.CommandContext(ctx, self, "down", "--data-dir", in.dir).CombinedOutput()
		if err != nil {
			return errors.New(strings.TrimSpace(string(out)))
		}
		return nil
	})
	in.kill()
	return err
}
