package objects

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/backend"
)

// What a node's backend says comes out at the controller as the error that it was.
func TestErrorsSurviveTheStatus(t *testing.T) {
	for _, tc := range []struct {
		err   error
		kind  api.ErrorKind
		final bool
	}{
		{backend.ErrNotFound, api.ErrorNotFound, true},
		{backend.ErrNodeNotFound, api.ErrorNodeNotFound, true},
		{backend.ErrSnapshotNotFound, api.ErrorSnapshotNotFound, true},
		{backend.ErrExists, api.ErrorExists, true},
		{backend.ErrNoSpace, api.ErrorNoSpace, true},
		{backend.ErrTooLarge, api.ErrorTooLarge, true},
		{backend.ErrInvalid, api.ErrorInvalid, true},
		{backend.ErrInUse, api.ErrorInUse, false},
		{backend.ErrNotStaged, api.ErrorNotStaged, false},
		{backend.ErrCannotFreeze, api.ErrorCannotFreeze, true},
		{backend.ErrInGroup, api.ErrorInGroup, true},
	} {
		said := Describe(api.OperationCreate, fmt.Errorf("around: %w", tc.err), time.Now())
		heard := error(&RemoteError{Node: "n", OperationError: said})
		if said.Kind != tc.kind || Final(said.Kind) != tc.final {
			t.Errorf("%v: %s, final %v", tc.err, said.Kind, Final(said.Kind))
		}
		for _, k := range kinds {
			if is := errors.Is(fmt.Errorf("more: %w", heard), k.err); is != (k.err == tc.err) {
				t.Errorf("%v: is %v: %v", heard, k.err, is)
			}
		}
		if !strings.Contains(heard.Error(), "node n") || !strings.Contains(heard.Error(), tc.err.Error()) {
			t.Errorf("%q does not say where and what", heard)
		}
		if busy := (*backend.BusyError)(nil); errors.As(heard, &busy) {
			t.Errorf("%v is said to be busy", heard)
		}
	}
	other := &RemoteError{Node: "n", OperationError: Describe(api.OperationCreate, errors.New("input/output error"), time.Now())}
	if other.Kind != api.ErrorInternal || errors.Is(other, backend.ErrInvalid) || Final(other.Kind) {
		t.Errorf("%+v", other)
	}
}

func TestBusySurvivesTheStatus(t *testing.T) {
	said := Describe(api.OperationResize, fmt.Errorf("x: %w", &backend.BusyError{Volume: "v", Holder: "NodeStageVolume", Step: "making ext4", Since: time.Unix(0, 0)}), time.Now())
	var busy *backend.BusyError
	if err := error(&RemoteError{Node: "n", OperationError: said}); !errors.As(err, &busy) || !strings.Contains(err.Error(), "making ext4") {
		t.Errorf("%v, %+v", err, busy)
	}
}

// The definitions allow 4096 bytes, and only whole characters can be written.
func TestClip(t *testing.T) {
	for _, text := range []string{"", "short", strings.Repeat("ä", 4000), "a" + strings.Repeat("ä", 4000)} {
		got := Clip(text)
		if len(got) > longestMessage || !utf8.ValidString(got) || !strings.HasPrefix(text, got) || len(text) <= longestMessage && got != text {
			t.Errorf("%d bytes became %d", len(text), len(got))
		}
	}
}

func TestAwayIsTheCallersDeadline(t *testing.T) {
	err := error(&AwayError{What: "node n to make volume v", Why: "node n is not ready since yesterday"})
	if !errors.Is(err, context.DeadlineExceeded) || err.Error() != "waiting for node n to make volume v: node n is not ready since yesterday" {
		t.Error(err)
	}
	if err := error(&AwayError{What: "x", Cause: context.Canceled}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
