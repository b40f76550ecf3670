package control

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// serve runs a server on a socket until the test ends.
func serve(t *testing.T, prepare func(*Server)) *Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctl-")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	s := NewServer(path)
	prepare(s)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	c := NewClient(path)
	deadline := time.Now().Add(30 * time.Second)
	for errors.Is(c.Get(ctx, "/", nil), ErrNotRunning) {
		if time.Now().After(deadline) {
			t.Fatal("the server did not listen")
		}
		time.Sleep(time.Millisecond)
	}
	return c
}

func TestAskAndAnswer(t *testing.T) {
	c := serve(t, func(s *Server) {
		s.JSON("GET /number", func(*http.Request) (any, error) { return 7, nil })
		s.JSON("GET /no", func(*http.Request) (any, error) { return nil, errors.New("not today") })
	})
	var n int
	if err := c.Get(t.Context(), "/number", &n); err != nil || n != 7 {
		t.Errorf("%d, %v", n, err)
	}
	if err := c.Get(t.Context(), "/no", &n); err == nil || err.Error() != "not today" {
		t.Errorf("error %v", err)
	}
}

// A program of another version does not know the question, or answers it in another form.
func TestOtherVersion(t *testing.T) {
	c := serve(t, func(s *Server) {
		s.JSON("GET /status", func(*http.Request) (any, error) { return []string{"a"}, nil })
	})
	var n int
	for _, path := range []string{"/newer", "/status"} {
		if err := c.Get(t.Context(), path, &n); !errors.Is(err, ErrOtherVersion) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestNobodyListens(t *testing.T) {
	if err := NewClient(filepath.Join(t.TempDir(), "none")).Get(t.Context(), "/", nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("error %v", err)
	}
}
