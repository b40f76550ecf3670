package provision

import (
	"net/http"
	"strings"

	"berth.io/berth/internal/boundary"
)

// WrapTransport is for the REST configuration of the client that the sidecars' libraries write with
// (rest.Config.Wrap): their API writes happen in code that is not ours, and each must stand in a boundary.
func WrapTransport(next http.RoundTripper) http.RoundTripper { return writes{next} }

type writes struct{ next http.RoundTripper }

func (w writes) RoundTrip(req *http.Request) (*http.Response, error) {
	var resp *http.Response
	send := func() (err error) {
		resp, err = w.next.RoundTrip(req)
		return err
	}
	err := bound(req.Method, req.URL.Path, send)
	return resp, err
}

// bound chooses the boundary of a write by verb and resource. Reads, events and leases need none.
func bound(method, path string, send func() error) error {
	if method == http.MethodGet || strings.Contains(path, "/events") || strings.Contains(path, "/leases") {
		return send()
	}
	switch {
	case strings.Contains(path, "/persistentvolumes"):
		switch method {
		case http.MethodPost:
			return boundary.Do("provision/store-volume", send)
		case http.MethodDelete:
			return boundary.Do("provision/remove-volume", send)
		}
		return boundary.Do("provision/update-volume", send)
	case strings.Contains(path, "/persistentvolumeclaims"):
		return boundary.Do("provision/update-claim", send)
	case strings.Contains(path, "/volumeattachments"):
		if strings.HasSuffix(path, "/status") {
			return boundary.Do("provision/report-attachment", send)
		}
		return boundary.Do("provision/update-attachment", send)
	case strings.Contains(path, "/csistoragecapacities"):
		return boundary.Do("provision/publish-capacity", send)
	case strings.Contains(path, "snapshot"):
		return boundary.Do("provision/update-snapshot", send)
	}
	return boundary.Do("provision/api-write", send)
}

// WrappedRoundTripper lets client-go find the transport underneath (utilnet.RoundTripperWrapper).
func (w writes) WrappedRoundTripper() http.RoundTripper { return w.next }
