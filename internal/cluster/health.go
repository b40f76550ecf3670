package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"berth.io/berth/internal/control"
)

// endpoint is what --http-endpoint serves.
type endpoint struct {
	mux *http.ServeMux
}

// newEndpoint answers /metrics, /healthz and /readyz.
func newEndpoint(metrics prometheus.Gatherer, healthy, ready func(context.Context) error) *endpoint {
	e := &endpoint{mux: http.NewServeMux()}
	e.mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	e.check("/healthz", healthy)
	e.check("/readyz", ready)
	return e
}

func (e *endpoint) check(path string, f func(context.Context) error) {
	e.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		if err := f(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
}

// json answers what f returns.
func (e *endpoint) json(path string, f func() any) {
	e.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(f())
	})
}

// serve until ctx ends; address is empty when nothing is to be served. The listener is open when serve returns.
func (e *endpoint) serve(ctx context.Context, address string, wg *sync.WaitGroup, failed func(error)) error {
	if address == "" {
		return nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("--http-endpoint: %w", err)
	}
	wg.Go(func() {
		if err := control.Serve(ctx, l, e.mux); err != nil && ctx.Err() == nil {
			failed(fmt.Errorf("--http-endpoint: %w", err))
		}
	})
	return nil
}

// validEndpoint refuses what is no ADDR:PORT; nothing given is fine.
func validEndpoint(flag, address string) error {
	if address == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return fmt.Errorf("%s %q is not ADDR:PORT, such as :8080", flag, address)
	}
	return nil
}
