package flexsocket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/flexvolume/block/wire"
)

// Options of a Server.
type Options struct {
	// Socket is where executables ask. Its directory must be root's alone.
	Socket string
	// Notes is a directory of this room's own.
	Notes string
	// Backends by the name that follows the vendor's in a FlexVolume driver's name: "block".
	Backends map[string]backend.Backend
	Log      *slog.Logger
}

// Server answers executables.
type Server struct {
	log     *slog.Logger
	socket  string
	drivers map[string]*volumes
	serving chan struct{}
	slots   chan struct{} // one for each call under way
}

// Limits of a conversation.
const (
	// readWithin: an executable sends its request at once.
	readWithin = 5 * time.Second
	// writeWithin: an answer fits into the socket's buffer.
	writeWithin = 5 * time.Second
	// endWithin is how long calls may take that are under way when the agent stops. They are cut off then, and the next calls
	// complete them.
	endWithin = 5 * time.Second
	// atOnce bounds the calls under way: a kubelet makes one for each volume.
	atOnce = 128
	// acceptAgain: nothing tells when there are descriptors again.
	acceptAgain = 100 * time.Millisecond
)

// New reads what earlier processes did through the socket.
func New(o Options) (*Server, error) {
	if o.Socket == "" || o.Notes == "" {
		return nil, errors.New("flexvolume socket: Socket and Notes are needed")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{log: o.Log.With("room", "flexsocket"), socket: o.Socket, drivers: map[string]*volumes{}, serving: make(chan struct{}),
		slots: make(chan struct{}, atOnce)}
	for name, b := range o.Backends {
		n, err := openNotes(filepath.Join(o.Notes, name), s.log)
		if err != nil {
			return nil, fmt.Errorf("flexvolume socket: %w", err)
		}
		s.drivers[name] = &volumes{backend: b, notes: n}
	}
	return s, nil
}

// Serving is closed when the socket answers.
func (s *Server) Serving() <-chan struct{} { return s.serving }

// Run serves until ctx ends. A socket that a killed process left behind is replaced: the caller holds the directory against a second
// instance.
func (s *Server) Run(ctx context.Context) error {
	if err := os.Remove(s.socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		return fmt.Errorf("flexvolume socket: %w", err)
	}
	if err := os.Chmod(s.socket, 0o600); err != nil {
		return errors.Join(err, l.Close())
	}
	close(s.serving)
	return s.accept(ctx, l)
}

// accept answers the connections of l until ctx ends.
func (s *Server) accept(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()

	calls, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var underWay sync.WaitGroup
	defer func() {
		defer time.AfterFunc(endWithin, cut).Stop()
		underWay.Wait()
	}()
	for short := false; ; {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case passing(err):
			if !short {
				s.log.Warn("flexvolume connections wait: this process lacks something to take one", "error", err)
			}
			short = true
			select {
			case <-time.After(acceptAgain):
			case <-ctx.Done():
			}
			continue
		case err != nil:
			return fmt.Errorf("flexvolume socket: %w", err)
		}
		short = false
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			c.Close()
			return nil
		}
		underWay.Go(func() {
			defer func() { <-s.slots }()
			s.converse(calls, c)
		})
	}
}

// passing says whether an error of accept(2) is one of a moment: the caller's, or a lack of descriptors or memory.
func passing(err error) bool {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// converse reads one request and answers it. The call ends when whoever asked is gone: the call that follows completes it.
func (s *Server) converse(ctx context.Context, c net.Conn) {
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(readWithin))
	r, err := wire.ReadRequest(c)
	if err != nil {
		s.log.Warn("flexvolume request refused", "error", err)
		if errors.Is(err, wire.ErrInvalid) {
			s.answer(c, wire.Answer{Error: err.Error()})
		}
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.Within)*time.Millisecond)
	defer cancel()
	_ = c.SetReadDeadline(time.Time{})
	go func() { // ends with the connection
		_, _ = io.Copy(io.Discard, c)
		cancel()
	}()
	began := time.Now()
	a, err := s.do(ctx, r)
	log := s.log.With("driver", r.Driver, "call", r.Call, "volume", r.Volume, "path", r.Path, "took", time.Since(began))
	if err != nil {
		log.Warn("flexvolume call failed", "error", err)
		a = wire.Answer{Error: err.Error()}
	} else {
		log.Debug("flexvolume call done")
	}
	s.answer(c, a)
}

func (s *Server) answer(c net.Conn, a wire.Answer) {
	_ = c.SetWriteDeadline(time.Now().Add(writeWithin))
	if err := wire.WriteAnswer(c, a); err != nil {
		s.log.Debug("flexvolume answer not delivered", "error", err)
	}
}

func (s *Server) do(ctx context.Context, r wire.Request) (wire.Answer, error) {
	v, ok := s.drivers[r.Driver]
	if !ok {
		return wire.Answer{}, fmt.Errorf("the node agent serves no FlexVolume driver %q", r.Driver)
	}
	return v.do(ctx, r)
}
