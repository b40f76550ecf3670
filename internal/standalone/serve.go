package standalone

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/control"
)

// readiness is what /readyz answers.
type readiness struct{ is atomic.Bool }

func (r *readiness) set() { r.is.Store(true) }

// serveControl listens on the control socket, and on --http-endpoint for what the network may ask.
func (in *instance) serveControl(ctx context.Context, work *errgroup.Group) error {
	public := http.NewServeMux()
	public.Handle("/metrics", promhttp.HandlerFor(in.rooms.metrics, promhttp.HandlerOpts{}))
	public.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, in.healthy()) })
	public.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		err := in.healthy()
		if err == nil && !in.ready.is.Load() {
			err = errors.New("starting")
		}
		answer(w, err)
	})
	s := control.NewServer(in.dir.Control())
	s.Handle("/metrics", public)
	s.Handle("/healthz", public)
	s.Handle("/readyz", public)
	s.JSON("GET "+PathStatus, func(r *http.Request) (any, error) { return in.status(r.Context()) })
	s.JSON("GET "+PathHolders, func(*http.Request) (any, error) { return in.holders(), nil })
	s.JSON("GET "+PathUnwell, func(*http.Request) (any, error) { return in.unwell(), nil })
	s.JSON("POST "+PathVolumeMount, func(r *http.Request) (any, error) { return in.named(r, in.mountVolume) })
	s.JSON("POST "+PathVolumeUnmount, func(r *http.Request) (any, error) { return in.named(r, in.unmountVolume) })
	s.JSON("GET "+PathOrphans, func(r *http.Request) (any, error) { return in.orphans(r.Context()) })
	s.JSON("GET "+pathPodPaths, func(r *http.Request) (any, error) { return in.podPaths(types.UID(r.PathValue("uid"))), nil })
	s.JSON("POST "+PathDown, func(r *http.Request) (any, error) { return struct{}{}, in.askDown(r.Context()) })
	work.Go(func() error { return s.Run(ctx) })
	if in.HTTP == "" {
		return nil
	}
	l, err := net.Listen("tcp", in.HTTP)
	if err != nil {
		return fmt.Errorf("--http-endpoint: %w", err)
	}
	work.Go(func() error { return control.Serve(ctx, l, public) })
	return nil
}

func answer(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// healthy says that the API server lives; the rooms end the process when they fail.
func (in *instance) healthy() error {
	select {
	case <-in.api.Done():
		return in.api.Err()
	default:
		return nil
	}
}

// askDown hands the request to the loop that owns the instance's end, and waits for the answer.
func (in *instance) askDown(ctx context.Context) error {
	r := downRequest{done: make(chan error, 1)}
	select {
	case in.down <- r:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
