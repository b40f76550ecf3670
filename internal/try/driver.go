package try

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"berth.io/berth/internal/host/mortal"
)

// readyWithin is how long a driver may take to answer after its start.
const readyWithin = 30 * time.Second

// driver is the driver's process, or the socket of one that somebody else runs.
type driver struct {
	target target
	socket string
	node   string
	dir    string // {{dir}}
	log    string // file with its output

	// crashed is called when the process ends and nobody asked it to; set before the first start.
	crashed func(error)

	mu      sync.Mutex
	cmd     *exec.Cmd
	ended   chan struct{} // of cmd
	exit    error
	serving bool // it has answered, and its end is a crash
}

// ours: the bench runs the driver, and may kill it.
func (d *driver) ours() bool { return d.target.socket == "" }

// start runs the command; a driver of somebody else must be there.
func (d *driver) start() error {
	if !d.ours() {
		return d.mustListen()
	}
	argv := d.target.fill(d.socket, d.node, d.dir)
	program, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("the driver's command cannot be run: %w", err)
	}
	if err := os.Remove(d.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command(program, argv[1:]...)
	cmd.Env = append(os.Environ(), "CSI_ENDPOINT=unix://"+d.socket, "NODE_ID="+d.node, "NODE_NAME="+d.node, "KUBE_NODE_NAME="+d.node)
	cmd.Dir, cmd.Stdout, cmd.Stderr = d.dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	end, err := mortal.Start(cmd)
	log.Close()
	if err != nil {
		return fmt.Errorf("the driver's command cannot be run: %w", err)
	}
	ended := make(chan struct{})
	d.mu.Lock()
	d.cmd, d.ended, d.exit = cmd, ended, nil
	d.mu.Unlock()
	go d.watch(end, ended)
	return nil
}

// watch waits for the driver's end, and tells of one that nobody asked for.
func (d *driver) watch(end <-chan error, ended chan<- struct{}) {
	err := <-end
	d.mu.Lock()
	d.exit = err
	crash := d.serving
	d.serving = false
	d.mu.Unlock()
	close(ended)
	if crash && d.crashed != nil {
		d.crashed(err)
	}
}

func (d *driver) mustListen() error {
	if _, err := os.Stat(d.socket); err != nil {
		return fmt.Errorf("there is no driver at %s: %w; start it first, or give the command that starts it", d.socket, errors.Unwrap(err))
	}
	c, err := net.DialTimeout("unix", d.socket, 5*time.Second)
	if err != nil {
		return fmt.Errorf("nobody listens at %s: %w; start the driver first, or give the command that starts it", d.socket, errors.Unwrap(err))
	}
	return c.Close()
}

// ready waits until the driver tells its name and that it is ready, and returns the name.
func (d *driver) ready(ctx context.Context, within time.Duration) (*csi.GetPluginInfoResponse, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("no answer within %s", within))
	defer cancel()
	d.mu.Lock()
	ended := d.ended
	d.mu.Unlock()
	if err := greet(ctx, d.socket, ended); err != nil {
		return nil, d.notReady("connect", within, err)
	}
	if ended != nil {
		go func() {
			select {
			case <-ended:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	conn, err := dialDriver(d.socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	id := csi.NewIdentityClient(conn)
	info, err := id.GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return nil, d.notReady("GetPluginInfo", within, err)
	}
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		r, err := id.Probe(ctx, &csi.ProbeRequest{}, grpc.WaitForReady(true))
		if err != nil && ctx.Err() != nil {
			return nil, d.notReady("Probe", within, err)
		}
		if err == nil && (r.GetReady() == nil || r.GetReady().GetValue()) {
			d.mu.Lock()
			d.serving = d.ours()
			d.mu.Unlock()
			return info, nil
		}
		if err == nil {
			err = errors.New("it answers ready=false")
		}
		select { // the specification has no other way than to ask again
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, d.notReady("Probe", within, err)
		}
	}
}

// errNotGRPC: something else is served on the socket.
var errNotGRPC = errors.New("what listens there does not speak gRPC")

// greet waits for the socket, and looks whether a gRPC server is behind it: one begins with its settings, and gRPC itself
// would try for ever with anything else.
func greet(ctx context.Context, socket string, ended <-chan struct{}) error {
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err == nil {
			defer c.Close()
			return greeted(c)
		}
		select { // a socket tells nobody that it has come
		case <-time.After(5 * time.Millisecond):
		case <-ended:
			return err
		case <-ctx.Done():
			return err
		}
	}
}

// greeted speaks the first words of HTTP/2 (RFC 9113 §3.4) and reads the header of the answer's first frame.
func greeted(c net.Conn) error {
	const settings = 4
	_ = c.SetDeadline(time.Now().Add(readyWithin))
	if _, err := c.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil && !errors.Is(err, syscall.EPIPE) {
		return err
	}
	head := make([]byte, 9)
	n, err := io.ReadFull(c, head)
	if err == nil && head[3] == settings {
		return nil
	}
	if n == 0 {
		return fmt.Errorf("%w: it says nothing", errNotGRPC)
	}
	return fmt.Errorf("%w: it says %q", errNotGRPC, head[:n])
}

// notReady says why, with the driver's last words.
func (d *driver) notReady(rpc string, within time.Duration, err error) error {
	d.mu.Lock()
	exit, ended := d.exit, d.ended
	d.mu.Unlock()
	if ended != nil {
		select {
		case <-ended:
			how := "it ended by itself"
			if exit != nil {
				how = exit.Error()
			}
			return fmt.Errorf("the driver ended before it answered (%s)%s", how, d.lastWords())
		default:
		}
	}
	if errors.Is(err, errNotGRPC) {
		return fmt.Errorf("the driver at %s: %w%s", d.socket, err, d.lastWords())
	}
	return fmt.Errorf("the driver at %s was not ready within %s: %s: %s%s", d.socket, within, rpc, status.Convert(err).Message(), d.lastWords())
}

// lastWords are the end of the driver's output.
func (d *driver) lastWords() string {
	b, err := os.ReadFile(d.log)
	if err != nil || len(strings.TrimSpace(string(b))) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return "; its last words:\n  " + strings.Join(lines[max(0, len(lines)-5):], "\n  ")
}

// kill ends the driver as a crash does.
func (d *driver) kill() {
	d.mu.Lock()
	cmd, ended := d.cmd, d.ended
	d.serving = false
	d.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	<-ended
}

// stop asks the driver to end, then ends it.
func (d *driver) stop() {
	d.mu.Lock()
	cmd, ended := d.cmd, d.ended
	d.serving = false
	d.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(2 * time.Second):
	}
	d.kill()
}

// dialDriver connects as soon as the socket is there.
func dialDriver(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+socket,
		grpc.WithAuthority("localhost"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 200 * time.Millisecond},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}))
}

// newDriver prepares a driver below work.
func newDriver(text, work, name string) (*driver, error) {
	t, err := parseTarget(text)
	if err != nil {
		return nil, err
	}
	d := &driver{target: t, socket: t.socket, node: nodeName, dir: filepath.Join(work, name), log: filepath.Join(work, name+".log")}
	if d.ours() {
		d.socket = filepath.Join(work, name+".sock")
		if err := os.MkdirAll(d.dir, 0o711); err != nil {
			return nil, err
		}
	}
	return d, nil
}
