package cluster

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// answers is an API that counts what reaches it.
type answers struct {
	writes, reads atomic.Int32
	hang          chan struct{} // writes wait for it; nil: they do not
}

func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet {
		a.reads.Add(1)
	} else {
		a.writes.Add(1)
		if a.hang != nil {
			select {
			case <-a.hang:
			case <-r.Context().Done():
				return nil, context.Cause(r.Context())
			}
		}
	}
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("ok")), Request: r}, nil
}

func send(t *testing.T, through http.RoundTripper, method string) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://api/x", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := through.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.ReadAll(resp.Body)
	return err
}

// Before the lease, while it is held, renewed, and after it has run out: reads always pass, writes only while it is held.
func TestFenceFollowsTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, api := newFence(10*time.Second), &answers{}
		through := f.Wrap(api)
		must := func(when string, want error) {
			t.Helper()
			before := api.writes.Load()
			if err := send(t, through, http.MethodPatch); !errors.Is(err, want) {
				t.Errorf("%s: a write: %v", when, err)
			}
			if sent := api.writes.Load() - before; (sent == 1) != (want == nil) {
				t.Errorf("%s: %d writes reached the API", when, sent)
			}
			if err := send(t, through, http.MethodGet); err != nil {
				t.Errorf("%s: a read: %v", when, err)
			}
		}
		must("before", ErrNoLease)
		f.hold(time.Now())
		must("held", nil)
		time.Sleep(9 * time.Second)
		f.hold(time.Now().Add(-time.Second)) // sent a second ago, answered now
		time.Sleep(8 * time.Second)
		must("renewed", nil)
		time.Sleep(time.Second)
		must("run out, counted from when the renewal was sent", ErrNoLease)
		f.hold(time.Now())
		must("held again: the term is over for good", ErrNoLease)
	})
}

// The term ends by itself when no renewal comes; a write under way ends with it.
func TestFenceBreaksOffWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, api := newFence(10*time.Second), &answers{hang: make(chan struct{})}
		f.hold(time.Now())
		began := time.Now()
		if err := send(t, f.Wrap(api), http.MethodPost); !errors.Is(err, ErrNoLease) {
			t.Errorf("the write that hung: %v", err)
		}
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("it was broken off after %s", took)
		}
		if cause := context.Cause(f.Term()); !errors.Is(cause, ErrNoLease) {
			t.Errorf("the term's cause: %v", cause)
		}
	})
}

// A machine that was suspended: the wall clock has gone on, the monotonic clock has not.
func TestFenceAfterASuspension(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFence(10 * time.Second)
		f.hold(time.Now())
		f.mu.Lock()
		f.now = func() time.Time { return time.Now().Round(0).Add(time.Hour) } // no monotonic clock tells of the hour
		f.mu.Unlock()
		if err := f.Check(); !errors.Is(err, ErrNoLease) {
			t.Errorf("after an hour: %v", err)
		}
	})
}

func TestFenceOfOneThatIsAlone(t *testing.T) {
	f, api := newFence(time.Second), &answers{}
	f.holdForever()
	if err := send(t, f.Wrap(api), http.MethodDelete); err != nil || api.writes.Load() != 1 {
		t.Errorf("%v, %d writes", err, api.writes.Load())
	}
}
