package apiclient

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// server is an API server that may be away; it knows one node.
type server struct {
	away  atomic.Bool
	asked atomic.Int32 // while away
}

func (s *server) RoundTrip(req *http.Request) (*http.Response, error) {
	if s.away.Load() {
		s.asked.Add(1)
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	const node = `{"apiVersion":"v1","kind":"Node","metadata":{"name":"a","resourceVersion":"7"}}`
	ok := &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Request: req}
	if !req.URL.Query().Has("watch") {
		ok.Body = io.NopCloser(strings.NewReader(`{"apiVersion":"v1","kind":"NodeList","metadata":{"resourceVersion":"7"},"items":[` + node + `]}`))
		return ok, nil
	}
	events, w := io.Pipe()
	go func() {
		if req.URL.Query().Get("sendInitialEvents") == "true" {
			_, _ = io.WriteString(w, `{"type":"ADDED","object":`+node+`}`+"\n"+`{"type":"BOOKMARK","object":{"apiVersion":"v1","kind":"Node","metadata":{"resourceVersion":"7","annotations":{"k8s.io/initial-events-end":"true"}}}}`+"\n")
		}
		<-req.Context().Done()
		_ = w.CloseWithError(req.Context().Err())
	}()
	ok.Body = events
	return ok, nil
}

// An informer sees what an API server has within seconds of its return, however long that was away: left to itself client-go lets up to a
// minute pass. The log has one line for the absence and one for its end.
func TestInformersComeBackWithinSeconds(t *testing.T) {
	for _, away := range []time.Duration{time.Second, time.Minute, time.Hour} {
		t.Run(away.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				s := &server{}
				s.away.Store(true)
				config := &rest.Config{Host: "https://api.test", Transport: s, QPS: -1}
				config.Wrap(NewReach(slog.New(slog.NewTextHandler(&log, nil))).Wrap)
				client, err := kubernetes.NewForConfig(config)
				if err != nil {
					t.Fatal(err)
				}
				ctx, stop := context.WithCancel(t.Context())
				factory := informers.NewSharedInformerFactory(client, 0)
				nodes := factory.Core().V1().Nodes().Informer()
				factory.StartWithContext(ctx)
				defer factory.Shutdown()
				defer stop()
				time.Sleep(away)
				s.away.Store(false)
				time.Sleep(lastLook * 5 / 4)
				synctest.Wait()
				if _, found, _ := nodes.GetStore().GetByKey("a"); !found {
					t.Errorf("not seen %s after the server is back", lastLook*5/4)
				}
				if n, most := s.asked.Load(), int32(away/(lastLook*3/4))+7; n > most {
					t.Errorf("asked %d times in %s, more than %d", n, away, most)
				}
				for _, want := range []string{"cannot be reached", "answers again"} {
					if n := strings.Count(log.String(), want); n != 1 {
						t.Errorf("%d lines say %q:\n%s", n, want, log.String())
					}
				}
			})
		})
	}
}

// Who is no informer is told at once; so is an informer whose context ends, and one that gets an error that waiting does not end.
func TestOnlyInformersWait(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	for _, c := range []struct {
		name, method, url string
		err               error
		waits             bool
	}{
		{"a watch", http.MethodGet, "/api/v1/nodes?watch=true", refused, true},
		{"an informer's list", http.MethodGet, "/api/v1/nodes?limit=500&resourceVersion=0", refused, true},
		{"a connection that ends without an answer", http.MethodGet, "/api/v1/nodes?watch=true", io.ErrUnexpectedEOF, true},
		{"a connection that is reset", http.MethodGet, "/api/v1/nodes?watch=true", &net.OpError{Op: "read", Err: syscall.ECONNRESET}, true},
		{"a live list", http.MethodGet, "/api/v1/nodes?labelSelector=a", refused, false},
		{"a get", http.MethodGet, "/api/v1/nodes/a", refused, false},
		{"a write", http.MethodPut, "/api/v1/nodes/a?resourceVersion=1", refused, false},
		{"a certificate of nobody's", http.MethodGet, "/api/v1/nodes?watch=true", errors.New("x509: certificate signed by unknown authority"), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const deadline = time.Minute
				ctx, cancel := context.WithTimeout(t.Context(), deadline)
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, c.method, "https://api.test"+c.url, nil)
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				_, err = NewReach(slog.New(slog.DiscardHandler)).Wrap(failing{c.err}).RoundTrip(req)
				if !errors.Is(err, c.err) {
					t.Errorf("got %v", err)
				}
				want := time.Duration(0)
				if c.waits {
					want = deadline
				}
				if waited := time.Since(began); waited != want {
					t.Errorf("waited %s, not %s", waited, want)
				}
			})
		})
	}
}

type failing struct{ err error }

func (f failing) RoundTrip(*http.Request) (*http.Response, error) { return nil, f.err }
