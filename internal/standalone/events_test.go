package standalone

import (
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// slowSink notes what is written, in the order of its end.
type slowSink struct {
	mu      sync.Mutex
	writes  []string
	expired bool
}

func (s *slowSink) note(verb string, e *corev1.Event) (*corev1.Event, error) {
	if verb == "create" {
		time.Sleep(2 * time.Millisecond)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes = append(s.writes, verb+" "+e.Name)
	return e, nil
}

func (s *slowSink) Create(e *corev1.Event) (*corev1.Event, error) { return s.note("create", e) }
func (s *slowSink) Update(e *corev1.Event) (*corev1.Event, error) { return s.note("update", e) }
func (s *slowSink) Patch(e *corev1.Event, _ []byte) (*corev1.Event, error) {
	if s.expired {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "events"}, e.Name)
	}
	return s.note("patch", e)
}

func (s *slowSink) written() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.writes)
}

func eventNamed(name string) *corev1.Event {
	return &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
}

func TestEventsAreWrittenLaterAndInOrder(t *testing.T) {
	s := &slowSink{}
	b := newEventBatches(s, slog.New(slog.DiscardHandler))
	if _, err := b.Create(eventNamed("a")); err != nil {
		t.Fatal(err)
	}
	_, _ = b.Patch(eventNamed("a"), nil)
	_, _ = b.Create(eventNamed("b"))
	if got := s.written(); len(got) > 0 {
		t.Fatalf("written at once: %q", got)
	}
	deadline := time.Now().Add(10 * time.Second)
	for len(s.written()) < 3 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	got := s.written()
	if len(got) != 3 || slices.Index(got, "create a") > slices.Index(got, "patch a") || !slices.Contains(got, "create b") {
		t.Errorf("wrote %q", got)
	}
}

func TestCountOfAnExpiredEventIsWrittenAnew(t *testing.T) {
	s := &slowSink{expired: true}
	b := newEventBatches(s, slog.New(slog.DiscardHandler))
	_, _ = b.Patch(eventNamed("a"), nil)
	b.close(10 * time.Second)
	if got := s.written(); !slices.Equal(got, []string{"create a"}) {
		t.Errorf("wrote %q", got)
	}
}

func TestCloseWritesWhatIsPendingAndTakesNoMore(t *testing.T) {
	s := &slowSink{}
	b := newEventBatches(s, slog.New(slog.DiscardHandler))
	_, _ = b.Create(eventNamed("a"))
	b.close(10 * time.Second)
	_, _ = b.Create(eventNamed("late"))
	b.flush()
	if got := s.written(); !slices.Equal(got, []string{"create a"}) {
		t.Errorf("wrote %q", got)
	}
}
