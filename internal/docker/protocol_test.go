package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"berth.io/berth/internal/volume"
)

// shelf is what the plugin asks, without an API.
type shelf struct {
	volumes map[string]volume.Request
	callers map[string]map[string]bool
	path    string
	fail    error
}

func newShelf() *shelf {
	return &shelf{volumes: map[string]volume.Request{}, callers: map[string]map[string]bool{}, path: "/pods/data"}
}

func (s *shelf) EnsureNamespace(context.Context, string) error { return nil }

func (s *shelf) Create(_ context.Context, _ string, r volume.Request) error {
	s.volumes[r.Name] = r
	return s.fail
}

func (s *shelf) Get(_ context.Context, ns, name string) (volume.Volume, error) {
	if _, ok := s.volumes[name]; !ok {
		return volume.Volume{}, fmt.Errorf("%w: %s", volume.ErrNotFound, name)
	}
	v := volume.Volume{Namespace: ns, Name: name, Claim: volume.ClaimName(name), Size: "1Gi", Phase: "Bound", Class: "berth-block",
		Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	if len(s.callers[name]) > 0 {
		v.Path = s.path
	}
	return v, nil
}

func (s *shelf) List(ctx context.Context, ns string) (all []volume.Volume, err error) {
	for name := range s.volumes {
		v, err := s.Get(ctx, ns, name)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

func (s *shelf) Remove(_ context.Context, _, name string) error {
	delete(s.volumes, name)
	return s.fail
}

func (s *shelf) Hold(_ context.Context, _, name string, c volume.Caller) (string, error) {
	if s.callers[name] == nil {
		s.callers[name] = map[string]bool{}
	}
	s.callers[name][c.ID] = true
	return s.path, s.fail
}

func (s *shelf) Release(_ context.Context, _, name string, c volume.Caller) error {
	delete(s.callers[name], c.ID)
	return s.fail
}

func ask(t *testing.T, h http.Handler, method, body string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, method, strings.NewReader(body)))
	if ct := w.Header().Get("Content-Type"); ct != contentType {
		t.Errorf("%s: content type %q", method, ct)
	}
	return w.Code, strings.TrimSpace(w.Body.String())
}

// The conversation of the protocol's documentation, word by word.
func TestConversation(t *testing.T) {
	s := newShelf()
	s.path = t.TempDir()
	h := handler(New(Options{Name: "berth", Dir: "/x", Volumes: s}))
	for _, step := range []struct {
		method, body string
		code         int
		want         string
	}{
		{"/Plugin.Activate", ``, 200, `{"Implements":["VolumeDriver"]}`},
		{"/VolumeDriver.Capabilities", `{}`, 200, `{"Capabilities":{"Scope":"local"}}`},
		{"/VolumeDriver.List", `{}`, 200, `{"Volumes":[]}`},
		{"/VolumeDriver.Get", `{"Name":"volume_name"}`, 500, `{"Err":"no such volume: volume_name"}`},
		{"/VolumeDriver.Create", `{"Name":"volume_name","Opts":{"size":"1Gi"}}`, 200, `{}`},
		{"/VolumeDriver.Create", `{"Name":"x","Opts":null}`, 200, `{}`},
		{"/VolumeDriver.Remove", `{"Name":"x"}`, 200, `{}`},
		{"/VolumeDriver.Path", `{"Name":"volume_name"}`, 200, `{"Mountpoint":""}`},
		{"/VolumeDriver.Mount", `{"Name":"volume_name","ID":"b87d7442095999a92b65b3d9691e697b61713829cc0ffd1bb72e4ccd51aa4d6c"}`, 200, fmt.Sprintf(`{"Mountpoint":%q}`, s.path)},
		{"/VolumeDriver.Get", `{"Name":"volume_name"}`, 200, fmt.Sprintf(`{"Volume":{"Name":"volume_name","Mountpoint":%q,"CreatedAt":"2026-01-02T03:04:05Z","Status":{`, s.path)},
		{"/VolumeDriver.Unmount", `{"Name":"volume_name","ID":"b87d7442095999a92b65b3d9691e697b61713829cc0ffd1bb72e4ccd51aa4d6c"}`, 200, `{}`},
		{"/VolumeDriver.Path", `{"Name":"volume_name"}`, 200, `{"Mountpoint":""}`},
		{"/VolumeDriver.Create", `{"Name":"y","Opts":{"size":"banana"}}`, 500, `{"Err":"size \"banana\" is not a size`},
		{"/VolumeDriver.Create", `{"Name":"y","Opts":{"path":"/etc"}}`, 500, `{"Err":"unknown option \"path\"; the options are`},
		{"/VolumeDriver.Create", `{"Name":"../y"}`, 500, `{"Err":"volume name`},
		{"/VolumeDriver.Create", `{"Name":""}`, 500, `{"Err":"the volume's name is empty"}`},
	} {
		code, got := ask(t, h, step.method, step.body)
		if code != step.code || !strings.HasPrefix(got, step.want) {
			t.Errorf("%s %s: %d %s, want %d %s", step.method, step.body, code, got, step.code, step.want)
		}
	}
}

// What cannot be read is refused before anything is done.
func TestMalformed(t *testing.T) {
	s := newShelf()
	h := handler(New(Options{Volumes: s}))
	for name, body := range map[string]string{
		"not JSON":          `size=1Gi`,
		"cut off":           `{"Name":"da`,
		"a list":            `["data"]`,
		"a number for name": `{"Name":7}`,
		"options as a list": `{"Name":"data","Opts":["size=1Gi"]}`,
		"two objects":       `{"Name":"data"}{"Name":"other"}`,
		"too long":          `{"Name":"` + strings.Repeat("a", maxRequest) + `"}`,
	} {
		code, got := ask(t, h, "/VolumeDriver.Create", body)
		if code != http.StatusBadRequest || !strings.HasPrefix(got, `{"Err":"the request cannot be read`) {
			t.Errorf("%s: %d %s", name, code, got)
		}
	}
	if len(s.volumes) > 0 {
		t.Errorf("made: %v", s.volumes)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/VolumeDriver.List", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", w.Code)
	}
}

// A mount that ends because berth stops says so, not "context canceled".
func TestStopping(t *testing.T) {
	s := newShelf()
	s.fail = fmt.Errorf("mount volume data: %w", context.Canceled)
	h := handler(New(Options{Volumes: s}))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/VolumeDriver.Mount", strings.NewReader(`{"Name":"data","ID":"a"}`)).WithContext(ctx))
	if got := w.Body.String(); !strings.Contains(got, "berth is stopping") {
		t.Errorf("got %s", got)
	}
}

// Whatever comes, the answer is an object that an engine can read.
func FuzzRequest(f *testing.F) {
	for _, method := range []string{"Create", "Remove", "Get", "List", "Path", "Mount", "Unmount", "Capabilities"} {
		for _, body := range []string{``, `{}`, `null`, `{"Name":"data","ID":"a","Opts":{"size":"1Gi"}}`, `{"Name":7}`, `[`, `{"name":"a","NAME":"b"}`} {
			f.Add(method, []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, method string, body []byte) {
		if strings.ContainsAny(method, " \x00\r\n%?#/") {
			return
		}
		r, err := http.NewRequest(http.MethodPost, "http://plugin/VolumeDriver."+method, bytes.NewReader(body))
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		handler(New(Options{Volumes: newShelf(), Log: slog.New(slog.DiscardHandler)})).ServeHTTP(w, r)
		if w.Code == http.StatusNotFound || w.Code == http.StatusMovedPermanently || w.Code == http.StatusTemporaryRedirect || w.Code == http.StatusPermanentRedirect {
			return
		}
		var answer map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
			t.Fatalf("%s: %d %q: %v", method, w.Code, w.Body.String(), err)
		}
		if said, _ := answer["Err"].(string); (w.Code == http.StatusOK) == (said != "") {
			t.Errorf("%s: %d %q", method, w.Code, w.Body.String())
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"Name":"a","Opts":{"size":"1Gi"}}`))
	f.Add([]byte(` null `))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r createRequest
		if decode(bytes.NewReader(b), &r) == nil && len(bytes.TrimSpace(b)) > 0 && !json.Valid(b) {
			t.Errorf("%q was taken", b)
		}
	})
}

var errNone = errors.New("no plugin answers")
