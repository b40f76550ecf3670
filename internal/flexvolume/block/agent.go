package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"berth.io/berth/internal/flexvolume/block/wire"
)

// EnvSocket names the agent's socket for an executable whose caller is an instance of Berth: several stand side by side on a
// machine, and each means itself. What begins with BERTH_ is kept from drivers.
const EnvSocket = "FLEXVOLUME_BERTH_SOCKET"

// SocketFile lies beside an installed executable and holds the path of the agent's socket. A kubelet gives its drivers no
// environment of their own. Kubelets leave names with a dot alone.
const SocketFile = ".berth-socket"

// DefaultSocket is that of `berth up` in its default directory.
const DefaultSocket = "/var/lib/berth/run/flexvolume.sock"

// findSocket looks in the environment, beside the executable, and then takes the default. No option of a volume names a socket:
// whoever may write a PersistentVolume could have root speak to any socket of the machine.
func findSocket() string {
	if path := os.Getenv(EnvSocket); path != "" {
		return path
	}
	for _, program := range programs() {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(program), SocketFile))
		if path := strings.TrimSpace(string(b)); err == nil && path != "" {
			return path
		}
	}
	return DefaultSocket
}

// programs are the paths of this executable: as it was called, which a link to a shared program is, and what that leads to.
func programs() []string {
	var found []string
	if filepath.IsAbs(os.Args[0]) {
		found = append(found, os.Args[0])
	}
	if path, err := os.Executable(); err == nil {
		found = append(found, path)
	}
	return found
}

// agent is the node agent behind a socket.
type agent struct{ driver, socket string }

const (
	// dialWithin: the agent takes a connection at once, or is not there.
	dialWithin = 2 * time.Second
	// callWithin is how long a call may take whose caller has set no deadline. One with a deadline has until then, up to
	// wire.LongestCall.
	callWithin = 2 * time.Minute
	// margin is what is left of a caller's deadline for saying that it was missed.
	margin = 200 * time.Millisecond
)

// ask makes one call.
func (a agent) ask(ctx context.Context, r wire.Request) (wire.Answer, error) {
	deadline := time.Now().Add(callWithin)
	if d, ok := ctx.Deadline(); ok {
		deadline = d.Add(-margin)
		if longest := time.Now().Add(wire.LongestCall); longest.Before(deadline) {
			deadline = longest
		}
	}
	r.Driver, r.Version, r.Within = a.driver, wire.Version, max(1, time.Until(deadline).Milliseconds())
	if err := r.Validate(); err != nil {
		return wire.Answer{}, err
	}
	c, err := (&net.Dialer{Timeout: dialWithin}).DialContext(ctx, "unix", a.socket)
	if err != nil {
		return wire.Answer{}, a.unreachable(err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()            // a signal
	if err := c.SetDeadline(deadline.Add(margin / 2)); err != nil { // the agent's own words come first
		return wire.Answer{}, err
	}
	if err := wire.WriteRequest(c, r); err != nil {
		return wire.Answer{}, fmt.Errorf("ask the node agent: %w", err)
	}
	answer, err := wire.ReadAnswer(c)
	switch {
	case ctx.Err() != nil:
		return wire.Answer{}, fmt.Errorf("%s was cut off: %w", r.Call, ctx.Err())
	case errors.Is(err, os.ErrDeadlineExceeded):
		return wire.Answer{}, fmt.Errorf("the node agent at %s has not answered %s within its time; its log says where it is", a.socket, r.Call)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return wire.Answer{}, fmt.Errorf("the node agent at %s ended during %s; the next call completes it", a.socket, r.Call)
	case err != nil:
		return wire.Answer{}, fmt.Errorf("the node agent at %s: %w", a.socket, err)
	case answer.Error != "":
		return wire.Answer{}, errors.New(answer.Error)
	}
	return answer, nil
}

// unreachable says what to start.
func (a agent) unreachable(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no node agent answers at %s: start `berth up`%s on this node", a.socket, a.dataDir())
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the node agent at %s answers root alone", a.socket)
	}
	return fmt.Errorf("the node agent at %s cannot be asked: %w", a.socket, err)
}

// dataDir is the option that starts the agent whose socket this is.
func (a agent) dataDir() string {
	dir, is := strings.CutSuffix(a.socket, "/run/flexvolume.sock")
	if !is || a.socket == DefaultSocket {
		return ""
	}
	return " with --data-dir " + dir
}
