// Package control is the local conversation between a running `berth up` and the other commands: HTTP over a unix
// socket in the data directory. Who may open the socket (root) may ask for everything; nothing of it is reachable from the network.
//
// It carries no decisions: a handler is a function that the composition gives, a client call is one request.
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ErrNotRunning says that no `berth up` answers on the socket.
var ErrNotRunning = errors.New("no `berth up` is running on this data directory")

// ErrOtherVersion says that a `berth up` runs and does not know the question, or answers it in another form.
var ErrOtherVersion = errors.New("the running `berth up` is of another version and does not understand this; restart it with this one (volumes stay mounted), or use the berth that it was started with")

// Server answers on a unix socket.
type Server struct {
	mux  *http.ServeMux
	path string
}

// NewServer will listen on path.
func NewServer(path string) *Server { return &Server{mux: http.NewServeMux(), path: path} }

// Handle serves pattern with a plain HTTP handler.
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// JSON serves pattern with what f returns; an error becomes a 500 with its text.
func (s *Server) JSON(pattern string, f func(*http.Request) (any, error)) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	})
}

// Run serves until ctx ends. A socket that a killed process left behind is replaced: the data directory's lock has
// already shown that nobody else uses it.
func (s *Server) Run(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		return err
	}
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", s.path)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(s.path, 0o600); err != nil {
		l.Close()
		return err
	}
	return Serve(ctx, l, s.mux)
}

// Serve runs an HTTP server on l until ctx ends.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = srv.Shutdown(end)
		_ = srv.Close()
	}()
	err := srv.Serve(l)
	if !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-done
	return nil
}

// Client asks a running instance.
type Client struct {
	http *http.Client
}

// NewClient speaks to the socket at path.
func NewClient(path string) *Client {
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}}
}

// Get asks for path and decodes the JSON answer into v (nil: the answer is dropped).
func (c *Client) Get(ctx context.Context, path string, v any) error {
	return c.do(ctx, http.MethodGet, path, v)
}

// Post is Get for what changes something.
func (c *Client) Post(ctx context.Context, path string, v any) error {
	return c.do(ctx, http.MethodPost, path, v)
}

func (c *Client) do(ctx context.Context, method, path string, v any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://berth"+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return ErrNotRunning
		}
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusNotFound {
		return ErrOtherVersion
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", strings.TrimSpace(string(bytes.TrimSpace(body))))
	}
	if v == nil {
		return nil
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%w (%v)", ErrOtherVersion, err)
	}
	return nil
}
