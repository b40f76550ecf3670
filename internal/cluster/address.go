package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/kubernetes-csi/csi-lib-utils/rpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Address is where a CSI driver is served: a --csi-address.
type Address struct {
	Name   string // empty: the driver is asked for it
	Socket string // absolute path
}

// ParseAddresses reads --csi-address: SOCKET or NAME=SOCKET, each an absolute path, unix:// before it as the sidecars allow.
func ParseAddresses(asked []string) ([]Address, error) {
	var out []Address
	sockets, names := map[string]bool{}, map[string]bool{}
	for _, text := range asked {
		a := Address{Socket: text}
		if name, socket, ok := strings.Cut(text, "="); ok && !strings.Contains(name, "/") {
			if err := validDriverName(name); err != nil {
				return nil, fmt.Errorf("--csi-address %s: %w", text, err)
			}
			a = Address{Name: name, Socket: socket}
		}
		a.Socket = filepath.Clean(strings.TrimPrefix(a.Socket, "unix://"))
		if !filepath.IsAbs(a.Socket) {
			return nil, fmt.Errorf("--csi-address %s: want SOCKET or NAME=SOCKET with the absolute path of a unix socket", text)
		}
		if len(a.Socket) > longestSocket {
			return nil, fmt.Errorf("--csi-address %s: the path has %d bytes; the kernel allows %d", text, len(a.Socket), longestSocket)
		}
		if sockets[a.Socket] || a.Name != "" && names[a.Name] {
			return nil, fmt.Errorf("--csi-address %s is given twice", text)
		}
		sockets[a.Socket], names[a.Name] = true, true
		out = append(out, a)
	}
	return out, nil
}

// longestSocket in bytes: sun_path, unix(7).
const longestSocket = 107

// validDriverName is the CSI specification's rule (GetPluginInfoResponse.name).
func validDriverName(name string) error {
	ok := name != "" && len(name) <= 63
	for i, c := range name {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		ok = ok && (alnum || i > 0 && i < len(name)-1 && (c == '-' || c == '.'))
	}
	if !ok {
		return fmt.Errorf("%q is no CSI driver's name: letters, digits, '-' and '.', at most 63", name)
	}
	return nil
}

// askWithin bounds one question for a driver's name.
const askWithin = 5 * time.Second

// awaitName asks the driver for its name until it answers, or ctx ends. Only time can tell when it does: its container starts
// beside this one.
func awaitName(ctx context.Context, socket string, log *slog.Logger) (string, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	for delay := 100 * time.Millisecond; ; delay = min(2*delay, 10*time.Second) {
		ask, cancel := context.WithTimeout(ctx, askWithin)
		name, err := rpc.GetDriverName(ask, conn)
		cancel()
		if err == nil {
			if err = validDriverName(name); err == nil {
				return name, nil
			}
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		log.Warn("a CSI driver does not say its name yet", "socket", socket, "err", err, "retry", delay)
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(delay):
		}
	}
}
