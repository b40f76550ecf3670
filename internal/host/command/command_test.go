package command

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	if _, err := Run(t.Context(), time.Second, "no-such-program"); !errors.Is(err, ErrMissing) {
		t.Error(err)
	}
	_, err := Run(t.Context(), time.Second, "sh", "-c", "echo because >&2; exit 7")
	var e *Error
	if !errors.As(err, &e) || e.Exit != 7 || !strings.Contains(e.Error(), "because") {
		t.Error(err)
	}
	out, err := Run(t.Context(), 10*time.Second, "head", "-c", "100000", "/dev/zero")
	if err != nil || len(out) != outputLimit {
		t.Errorf("%d bytes, %v", len(out), err)
	}
}

// Output keeps data and complaints apart, and hands files on.
func TestOutput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, _ = w.WriteString("handed on")
	w.Close()
	out, err := Output(t.Context(), 10*time.Second, []*os.File{r}, "sh", "-c", "echo warning >&2; cat <&3")
	if err != nil || out != "handed on" {
		t.Errorf("%q, %v", out, err)
	}
	_, err = Output(t.Context(), 10*time.Second, nil, "sh", "-c", "echo data; echo because >&2; exit 7")
	var e *Error
	if !errors.As(err, &e) || e.Exit != 7 || strings.TrimSpace(e.Output) != "because" {
		t.Errorf("%+v", err)
	}
}

// A program that hangs, and its child that keeps the pipe open, are gone at the deadline.
func TestHangingProgramIsKilled(t *testing.T) {
	began := time.Now()
	_, err := Run(t.Context(), 50*time.Millisecond, "sh", "-c", "sleep 60 & sleep 60")
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 5*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}
