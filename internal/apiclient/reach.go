package apiclient

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
)

const (
	// firstLook and lastLook are how long an API server that does not answer is left alone, doubling from one to the other and a little
	// more or less by chance: a thousand agents do not come back in one moment.
	firstLook = 250 * time.Millisecond
	lastLook  = 4 * time.Second
)

// Reach keeps informers close to an API server that goes away.
//
// client-go's reflectors leave an API server that cannot be reached alone for up to a minute (reflector.go: a doubling pause of 30 s at
// most, with a jitter of as much), and their factories let nobody change that: an agent, and with it a claim, would wait as long after the
// server is back. An attempt that meets nobody costs a server nothing, so here a request of an informer waits itself, and looks again
// within seconds until its context ends. Whatever answers, be it that it is too busy, is the reflector's to wait for.
type Reach struct {
	log *slog.Logger

	mu    sync.Mutex
	since time.Time // of the absence; zero: there is none
}

// NewReach tells log of an absence once when it begins, and once when it ends.
func NewReach(log *slog.Logger) *Reach { return &Reach{log: log} }

// Wrap is for rest.Config.Wrap.
func (r *Reach) Wrap(next http.RoundTripper) http.RoundTripper { return reaching{r, next} }

type reaching struct {
	r    *Reach
	next http.RoundTripper
}

// WrappedRoundTripper lets client-go find the transport underneath (utilnet.RoundTripperWrapper).
func (t reaching) WrappedRoundTripper() http.RoundTripper { return t.next }

func (t reaching) RoundTrip(req *http.Request) (*http.Response, error) {
	for pause := firstLook; ; pause = min(2*pause, lastLook) {
		resp, err := t.next.RoundTrip(req)
		if err == nil {
			t.r.present()
			return resp, nil
		}
		if !ofInformer(req) || !isAway(err) || req.Context().Err() != nil {
			return resp, err
		}
		t.r.away(req.URL.Host, err)
		if !wait(req.Context(), pause*3/4+rand.N(pause/2)) {
			return nil, err
		}
	}
}

// ofInformer is whether a reflector asks: it watches, or it lists from a version on. Everybody else is told at once that nobody answers.
func ofInformer(req *http.Request) bool {
	if req.Method != http.MethodGet {
		return false
	}
	q := req.URL.Query()
	return q.Has("watch") || q.Has("resourceVersion")
}

// isAway is whether nobody answered: no connection, or one that ended without an answer.
func isAway(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial" || utilnet.IsConnectionReset(err) || utilnet.IsHTTP2ConnectionLost(err) || utilnet.IsProbableEOF(err)
}

func (r *Reach) away(host string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.since.IsZero() {
		return
	}
	r.since = time.Now()
	r.log.Warn("the API server cannot be reached; what is watched is asked for again every few seconds until it answers", "host", host, "error", err)
}

func (r *Reach) present() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.since.IsZero() {
		return
	}
	r.log.Info("the API server answers again", "after", time.Since(r.since).Round(time.Millisecond))
	r.since = time.Time{}
}

// wait is false when ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
