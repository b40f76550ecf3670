package flexsocket

import (
	"context"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// listener hands out what the test has put in, and fails when it is closed.
type listener struct {
	next   chan any // net.Conn or error
	closed chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case one := <-l.next:
		if err, is := one.(error); is {
			return nil, &net.OpError{Op: "accept", Err: err}
		}
		return one.(net.Conn), nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error   { close(l.closed); return nil }
func (l *listener) Addr() net.Addr { return &net.UnixAddr{} }

// accepting serves a listener until the test ends it.
func accepting(t *testing.T) (s *Server, next chan<- any, end func(), ended <-chan error) {
	t.Helper()
	dir := t.TempDir()
	s, err := New(Options{Socket: dir + "/s", Notes: dir})
	if err != nil {
		t.Fatal(err)
	}
	l := &listener{make(chan any), make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.accept(ctx, l) }()
	return s, l.next, cancel, done
}

func within(t *testing.T, ended <-chan error) {
	t.Helper()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(3 * time.Second):
		t.Error("it does not end")
	}
}

// TestTooFewDescriptors: a process short of descriptors or memory takes the next connection when it has some again.
func TestTooFewDescriptors(t *testing.T) {
	_, next, end, ended := accepting(t)
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED, syscall.ENOMEM} {
		select {
		case next <- error(os.NewSyscallError("accept4", errno)):
		case err := <-ended:
			t.Fatalf("it ended before %v: %v", errno, err)
		}
	}
	ours, theirs := net.Pipe()
	select {
	case next <- theirs:
	case err := <-ended:
		t.Fatalf("it ended: %v", err)
	}
	if err := ours.Close(); err != nil { // no request: the conversation ends
		t.Error(err)
	}
	end()
	within(t, ended)
}

// TestALostListenerIsTold: an error that no waiting mends ends the room.
func TestALostListenerIsTold(t *testing.T) {
	_, next, end, ended := accepting(t)
	defer end()
	next <- error(syscall.EBADF)
	if err := <-ended; err == nil {
		t.Error("no error")
	}
}

// TestEndWhileAllSlotsAreTaken: a connection that waits for its turn does not keep the agent from ending, and is closed.
func TestEndWhileAllSlotsAreTaken(t *testing.T) {
	s, next, end, ended := accepting(t)
	for range atOnce {
		s.slots <- struct{}{}
	}
	ours, theirs := net.Pipe()
	next <- theirs
	end()
	within(t, ended)
	_ = ours.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := ours.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection is left open: %v", err)
	}
}
