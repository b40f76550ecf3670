package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// contentType of the protocol's answers.
const contentType = "application/vnd.docker.plugins.v1.1+json"

// maxRequest bounds a request's body, in bytes; Docker's have some hundred.
const maxRequest = 1 << 20

// The protocol's messages; the fields' names are those on the wire.
type (
	createRequest struct {
		Name string
		Opts map[string]string
	}
	nameRequest  struct{ Name string }
	mountRequest struct{ Name, ID string }

	mountResponse struct{ Mountpoint string }
	getResponse   struct{ Volume shownVolume }
	listResponse  struct{ Volumes []shownVolume }
	capabilities  struct{ Capabilities capability }
	capability    struct{ Scope string }
	errorResponse struct{ Err string }

	// shownVolume is what Docker and Podman show of a volume.
	shownVolume struct {
		Name       string
		Mountpoint string         `json:",omitempty"`
		CreatedAt  string         `json:",omitempty"`
		Status     map[string]any `json:",omitempty"`
	}
)

// handler is the protocol over a plugin.
func handler(p *Plugin) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /Plugin.Activate", call(func(context.Context, struct{}) (any, error) {
		return map[string][]string{"Implements": {"VolumeDriver"}}, nil
	}))
	mux.Handle("POST /VolumeDriver.Capabilities", call(func(context.Context, struct{}) (any, error) {
		return capabilities{capability{Scope: "local"}}, nil
	}))
	mux.Handle("POST /VolumeDriver.Create", call(p.create))
	mux.Handle("POST /VolumeDriver.Remove", call(p.remove))
	mux.Handle("POST /VolumeDriver.Get", call(p.get))
	mux.Handle("POST /VolumeDriver.List", call(p.list))
	mux.Handle("POST /VolumeDriver.Path", call(p.path))
	mux.Handle("POST /VolumeDriver.Mount", call(p.mount))
	mux.Handle("POST /VolumeDriver.Unmount", call(p.unmount))
	return mux
}

// call answers one method: a request that cannot be read is refused before anything is done.
func call[T any](method func(context.Context, T) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var request T
		if err := decode(http.MaxBytesReader(w, r.Body, maxRequest), &request); err != nil {
			answer(w, http.StatusBadRequest, errorResponse{err.Error()})
			return
		}
		v, err := method(r.Context(), request)
		if err != nil {
			answer(w, http.StatusInternalServerError, errorResponse{inWords(r.Context(), err)})
			return
		}
		answer(w, http.StatusOK, v)
	})
}

// decode reads one JSON object. Docker sends none, or null, with methods that need none; fields that are not known here
// are a newer engine's.
func decode(body io.Reader, v any) error {
	d := json.NewDecoder(body)
	if err := d.Decode(v); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("the request cannot be read: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the request cannot be read: there is more behind its JSON object")
	}
	return nil
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// inWords is the text for the engine's user.
func inWords(ctx context.Context, err error) string {
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return "berth is stopping and has undone what it began; try again when `berth up` runs"
	}
	return err.Error()
}
