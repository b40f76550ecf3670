package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	coordination "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// leaseAPI is an API server that has one Lease and optimistic concurrency, and can be cut off.
type leaseAPI struct {
	mu      sync.Mutex
	lease   *coordination.Lease
	version int
	cut     atomic.Bool
	writes  atomic.Int32 // beside the lease's
}

func (a *leaseAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if a.cut.Load() {
		http.Error(w, "cut off", http.StatusServiceUnavailable)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	fail := func(code int, reason metav1.StatusReason) {
		a.write(w, code, &metav1.Status{Status: metav1.StatusFailure, Code: int32(code), Reason: reason})
	}
	switch {
	case r.URL.Path != "/apis/coordination.k8s.io/v1/namespaces/ns/leases/l" && r.URL.Path != "/apis/coordination.k8s.io/v1/namespaces/ns/leases":
		a.writes.Add(1)
		a.write(w, 200, &metav1.Status{Status: metav1.StatusSuccess})
	case r.Method == http.MethodGet && a.lease == nil:
		fail(404, metav1.StatusReasonNotFound)
	case r.Method == http.MethodGet:
		a.write(w, 200, a.lease)
	default:
		sent := &coordination.Lease{}
		if err := json.NewDecoder(r.Body).Decode(sent); err != nil {
			t := err.Error()
			a.write(w, 400, &metav1.Status{Status: metav1.StatusFailure, Code: 400, Message: r.Header.Get("Content-Type") + ": " + t})
			return
		}
		if a.lease != nil && sent.ResourceVersion != a.lease.ResourceVersion {
			fail(409, metav1.StatusReasonConflict)
			return
		}
		a.version++
		sent.ResourceVersion = string(rune('a' + a.version%26))
		a.lease = sent
		a.write(w, 200, sent)
	}
}

func (a *leaseAPI) write(w http.ResponseWriter, code int, o any) {
	switch o := o.(type) {
	case *metav1.Status:
		o.Kind, o.APIVersion = "Status", "v1"
	case *coordination.Lease:
		o.Kind, o.APIVersion = "Lease", coordination.SchemeGroupVersion.String()
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(o)
}

func (a *leaseAPI) holder() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lease == nil || a.lease.Spec.HolderIdentity == nil {
		return ""
	}
	return *a.lease.Spec.HolderIdentity
}

var quick = Election{Namespace: "ns", Name: "l", LeaseDuration: 3 * time.Second, RenewDeadline: 2 * time.Second, RetryPeriod: 200 * time.Millisecond}

// candidate is one process.
type candidate struct {
	f     *fence
	leads atomic.Bool
	err   chan error
	stop  context.CancelFunc
	wrote http.RoundTripper
	url   string
}

func candidateAt(t *testing.T, url, name string) *candidate {
	t.Setenv("POD_NAME", name)
	c := &candidate{f: newFence(quick.fencedFor()), err: make(chan error, 1), url: url}
	c.wrote = c.f.Wrap(http.DefaultTransport)
	ctx, stop := context.WithCancel(t.Context())
	c.stop = stop
	me := make(chan struct{})
	go func() {
		close(me)
		c.err <- lead(ctx, &rest.Config{Host: url, Timeout: time.Second, ContentConfig: rest.ContentConfig{ContentType: "application/json", AcceptContentTypes: "application/json"}}, quick, c.f, slog.New(slog.NewTextHandler(t.Output(), nil)), func(ctx context.Context) error {
			c.leads.Store(true)
			defer c.leads.Store(false)
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	<-me
	return c
}

// write tries to change something, as this candidate.
func (c *candidate) write(t *testing.T) error {
	req, err := http.NewRequest(http.MethodPost, c.url+"/api/v1/persistentvolumes", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.wrote.RoundTrip(req)
	if err == nil {
		resp.Body.Close()
	}
	return err
}

func eventually(t *testing.T, what string, fact func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if fact() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

// One of two works. When it stops as it should, the other takes over without waiting for the lease to run out, and it was told to
// stop before the lease was given back.
func TestTheLeaseIsGivenBackAfterTheWork(t *testing.T) {
	api := &leaseAPI{}
	s := httptest.NewServer(api)
	t.Cleanup(s.Close)
	a := candidateAt(t, s.URL, "a")
	eventually(t, "a to lead", a.leads.Load)
	b := candidateAt(t, s.URL, "b")
	time.Sleep(300 * time.Millisecond)
	if b.leads.Load() || api.holder() != "a" {
		t.Fatalf("b leads beside a; the holder is %q", api.holder())
	}
	if err := b.write(t); !errors.Is(err, ErrNoLease) {
		t.Errorf("a write of b, which stands by: %v", err)
	}
	if err := a.write(t); err != nil {
		t.Errorf("a write of a: %v", err)
	}
	a.stop()
	if err := <-a.err; err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("a ended with %v", err)
	}
	if err := a.write(t); err == nil {
		t.Error("a wrote after its end")
	}
	began := time.Now()
	eventually(t, "b to lead", b.leads.Load)
	if took := time.Since(began); took > quick.LeaseDuration {
		t.Errorf("b took over after %s: the lease was not given back", took)
	}
	b.stop()
	<-b.err
}

// The API is gone for longer than the lease lasts: the work ends, the process says that it lost the lease, and nothing of it is written
// from before the moment on at which another may take over, not even when the API is back.
func TestALostLeaseEndsTheWork(t *testing.T) {
	api := &leaseAPI{}
	s := httptest.NewServer(api)
	t.Cleanup(s.Close)
	a := candidateAt(t, s.URL, "a")
	eventually(t, "a to lead", a.leads.Load)
	api.cut.Store(true)
	cut := time.Now()
	if err := <-a.err; !errors.Is(err, ErrNoLease) {
		t.Errorf("a ended with %v", err)
	}
	if took := time.Since(cut); took > quick.LeaseDuration+endWithin {
		t.Errorf("a worked on for %s", took)
	}
	if a.leads.Load() {
		t.Error("the work goes on")
	}
	api.cut.Store(false)
	if err := a.write(t); !errors.Is(err, ErrNoLease) {
		t.Errorf("a write after the loss: %v", err)
	}
	b := candidateAt(t, s.URL, "b")
	eventually(t, "b to lead", b.leads.Load)
	if err := a.write(t); !errors.Is(err, ErrNoLease) || api.writes.Load() != 0 {
		t.Errorf("a wrote beside b: %v, %d writes", err, api.writes.Load())
	}
	b.stop()
	<-b.err
}

// Somebody else has the lease, by force: the old holder finds out with its next renewal.
func TestALeaseThatIsTaken(t *testing.T) {
	api := &leaseAPI{}
	s := httptest.NewServer(api)
	t.Cleanup(s.Close)
	a := candidateAt(t, s.URL, "a")
	eventually(t, "a to lead", a.leads.Load)
	api.mu.Lock()
	other := "other"
	now := metav1.NowMicro()
	api.lease = api.lease.DeepCopy()
	api.lease.Spec.HolderIdentity, api.lease.Spec.RenewTime, api.lease.ResourceVersion = &other, &now, "taken"
	api.mu.Unlock()
	if err := <-a.err; !errors.Is(err, ErrNoLease) {
		t.Errorf("a ended with %v", err)
	}
}
