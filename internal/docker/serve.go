package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"berth.io/berth/internal/control"
)

const (
	// DefaultName is what users write after `docker volume create -d`.
	DefaultName = "berth"
	// DefaultDir is where Docker looks for the sockets of plugins.
	DefaultDir = "/run/docker/plugins"
	// maxSocket is the longest path that a unix socket can have.
	maxSocket = 107
)

// Options is what a Plugin needs.
type Options struct {
	Name    string // of the plugin: its socket is Dir/Name.sock
	Dir     string
	Volumes Volumes
	Log     *slog.Logger
	// Serving is told when the plugin answers; may be nil.
	Serving func(socket string)
}

var pluginNames = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// Validate checks the plugin's name and directory.
func (o Options) Validate() error {
	switch {
	case !pluginNames.MatchString(o.Name):
		return fmt.Errorf("plugin name %q: want letters, digits, '_', '.' and '-'", o.Name)
	case !filepath.IsAbs(o.Dir):
		return fmt.Errorf("plugin directory %q is not an absolute path", o.Dir)
	case len(o.socket()) > maxSocket:
		return fmt.Errorf("the path of socket %s is longer than %d bytes", o.socket(), maxSocket)
	}
	return nil
}

func (o Options) socket() string { return filepath.Join(o.Dir, o.Name+".sock") }

// New makes a Plugin; nothing is served before Run.
func New(o Options) *Plugin {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Log = o.Log.With("room", "docker")
	if o.Serving == nil {
		o.Serving = func(string) {}
	}
	return &Plugin{opts: o}
}

// ErrInUse says that another instance serves a plugin of the name.
var ErrInUse = errors.New("served by another process")

// Run serves the plugin until ctx ends; then the socket goes, so that engines say that there is no plugin instead of
// waiting for it.
func (p *Plugin) Run(ctx context.Context) error {
	if err := p.opts.Volumes.EnsureNamespace(ctx, Namespace); err != nil {
		return err
	}
	l, err := listen(p.opts.Dir, p.opts.socket())
	if err != nil {
		return fmt.Errorf("plugin %s: %w", p.opts.Name, err)
	}
	p.opts.Serving(p.opts.socket())
	return control.Serve(ctx, l, handler(p))
}

// listener is the socket, and the lock that says who serves it.
type listener struct {
	net.Listener
	lock nameLock
}

func (l listener) Close() error { return errors.Join(l.Listener.Close(), l.lock.Close()) }

// listen makes the socket. One that a killed process left is replaced, one that is served is not.
func listen(dir, socket string) (net.Listener, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	lock, err := takeLock(socket)
	if err != nil {
		return nil, err
	}
	l, err := listenHeld(socket)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return listener{l, lock}, nil
}

func listenHeld(socket string) (net.Listener, error) {
	fi, err := os.Lstat(socket)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case fi.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is there and is not a socket; remove it", socket)
	default:
		if c, err := net.DialTimeout("unix", socket, time.Second); err == nil { // some other plugin of the name
			c.Close()
			return nil, fmt.Errorf("%s is %w", socket, ErrInUse)
		}
		if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}
