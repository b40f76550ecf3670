package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// ErrNoLease says that a write was not sent: this process does not hold the lease, or may not hold it any more.
var ErrNoLease = errors.New("this process does not hold the lease: nothing is written")

// fence lets writes through while the lease is certainly held. It trusts no callback: the lease lasts until `lasts` after the moment
// at which the last successful renewal was sent, since that is the earliest at which others may have begun to count. Both
// clocks must agree, so that a machine that was suspended (the monotonic clock stood still) is not trusted.
type fence struct {
	lasts time.Duration
	now   func() time.Time

	mu      sync.Mutex
	renewed time.Time // zero: not held
	term    context.Context
	end     context.CancelCauseFunc
	timer   *time.Timer
}

func newFence(lasts time.Duration) *fence {
	f := &fence{lasts: lasts, now: time.Now}
	f.term, f.end = context.WithCancelCause(context.Background())
	return f
}

// hold says that a renewal that was sent at a time succeeded. A fence that has closed stays closed.
func (f *fence) hold(sent time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.term.Err() != nil {
		return
	}
	f.renewed = sent
	left := f.lasts - f.passed()
	if f.timer == nil {
		f.timer = time.AfterFunc(left, f.expire)
		return
	}
	f.timer.Reset(left)
}

// passed since the last renewal, by the clock that says more. Called with mu held.
func (f *fence) passed() time.Duration {
	now := f.now()
	return max(now.Sub(f.renewed), now.Round(0).Sub(f.renewed.Round(0)))
}

// close ends the term: the lease is lost, or the work is over and the lease is about to be given up.
func (f *fence) close(why error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shut(why)
}

func (f *fence) shut(why error) {
	f.renewed = time.Time{}
	if f.timer != nil {
		f.timer.Stop()
	}
	f.end(why)
}

func (f *fence) expire() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if left := f.lasts - f.passed(); !f.renewed.IsZero() && left > 0 {
		f.timer.Reset(left) // renewed while the timer fired
		return
	}
	f.shut(fmt.Errorf("%w: it was not renewed within %s", ErrNoLease, f.lasts))
}

// Check is nil while the lease is held.
func (f *fence) Check() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.renewed.IsZero() {
		return ErrNoLease
	}
	if f.passed() >= f.lasts {
		f.shut(fmt.Errorf("%w: it was not renewed within %s", ErrNoLease, f.lasts))
		return ErrNoLease
	}
	return nil
}

// Term ends with the lease; its cause says why.
func (f *fence) Term() context.Context { return f.term }

// Wrap refuses writes without the lease, and breaks off those that are under way when it is lost. It is for
// rest.Config.Wrap.
func (f *fence) Wrap(next http.RoundTripper) http.RoundTripper { return fenced{f, next} }

type fenced struct {
	f    *fence
	next http.RoundTripper
}

func (t fenced) RoundTrip(req *http.Request) (*http.Response, error) {
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return t.next.RoundTrip(req)
	}
	if err := t.f.Check(); err != nil {
		if req.Body != nil {
			_ = req.Body.Close() // as every RoundTripper must
		}
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	stop := context.AfterFunc(t.f.term, func() { cancel(context.Cause(t.f.term)) })
	end := func() { stop(); cancel(nil) }
	resp, err := t.next.RoundTrip(req.WithContext(ctx))
	if err != nil {
		end()
		return resp, err
	}
	resp.Body = &untilClosed{resp.Body, end}
	return resp, nil
}

// WrappedRoundTripper lets client-go find the transport underneath (utilnet.RoundTripperWrapper).
func (t fenced) WrappedRoundTripper() http.RoundTripper { return t.next }

// untilClosed keeps a request's context until its answer is read.
type untilClosed struct {
	io.ReadCloser
	end func()
}

func (b *untilClosed) Close() error {
	defer b.end()
	return b.ReadCloser.Close()
}

// holdForever is for a process that is alone by its user's word.
func (f *fence) holdForever() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lasts, f.renewed = 1<<62, f.now()
}
