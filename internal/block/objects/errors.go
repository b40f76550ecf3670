package objects

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/backend"
)

// kinds in the order in which they are looked for. NotFound comes after those that may wrap it.
var kinds = []struct {
	kind api.ErrorKind
	err  error
}{
	{api.ErrorSnapshotNotFound, backend.ErrSnapshotNotFound},
	{api.ErrorNodeNotFound, backend.ErrNodeNotFound},
	{api.ErrorNotFound, backend.ErrNotFound},
	{api.ErrorExists, backend.ErrExists},
	{api.ErrorNoSpace, backend.ErrNoSpace},
	{api.ErrorTooLarge, backend.ErrTooLarge},
	{api.ErrorInvalid, backend.ErrInvalid},
	{api.ErrorInUse, backend.ErrInUse},
	{api.ErrorNotStaged, backend.ErrNotStaged},
	{api.ErrorCannotFreeze, backend.ErrCannotFreeze},
	{api.ErrorInGroup, backend.ErrInGroup},
}

// longestMessage that the definitions allow, in bytes.
const longestMessage = 4096

// Describe is an operation's error as a status has it.
func Describe(op api.Operation, err error, now time.Time) api.OperationError {
	return api.OperationError{Operation: op, Kind: KindOf(err), Message: Clip(err.Error()), Time: metav1.NewMicroTime(now)}
}

// Clip makes a text fit into a status.
func Clip(text string) string {
	if len(text) > longestMessage {
		text = text[:longestMessage]
	}
	return strings.ToValidUTF8(text, "")
}

// KindOf is the kind of a backend's error.
func KindOf(err error) api.ErrorKind {
	if busy := (*backend.BusyError)(nil); errors.As(err, &busy) {
		return api.ErrorBusy
	}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return k.kind
		}
	}
	return api.ErrorInternal
}

// Final says of a kind that the same again would fail again, until the one who asks changes what is asked for.
func Final(kind api.ErrorKind) bool {
	switch kind {
	case api.ErrorInternal, api.ErrorBusy, api.ErrorInUse, api.ErrorNotStaged:
		return false
	}
	return true
}

// RemoteError is an error that a node met. errors.Is finds the typed error of its kind, and errors.As a *backend.BusyError.
type RemoteError struct {
	Node string
	api.OperationError
}

func (e *RemoteError) Error() string { return fmt.Sprintf("node %s: %s", e.Node, e.Message) }

// Is implements errors.Is for the typed errors of internal/backend.
func (e *RemoteError) Is(target error) bool {
	for _, k := range kinds {
		if k.kind == e.Kind {
			return target == k.err
		}
	}
	return false
}

// As implements errors.As for *backend.BusyError. Who holds the volume is in the message.
func (e *RemoteError) As(target any) bool {
	busy, ok := target.(**backend.BusyError)
	if !ok || e.Kind != api.ErrorBusy {
		return false
	}
	*busy = &backend.BusyError{Holder: "node " + e.Node, Step: e.Message, Since: e.Time.Time}
	return true
}

// Find returns what stands in a status of one operation; nil: nothing.
func Find(all []api.OperationError, op api.Operation) *api.OperationError {
	for i := range all {
		if all[i].Operation == op {
			return &all[i]
		}
	}
	return nil
}

// AwayError says what is waited for, and why it may take longer: its caller's time was over. It is a context.DeadlineExceeded for
// errors.Is, or a context.Canceled where the caller went away.
type AwayError struct {
	What, Why string
	Cause     error
}

func (e *AwayError) Error() string {
	if e.Why == "" {
		return "waiting for " + e.What
	}
	return "waiting for " + e.What + ": " + e.Why
}

func (e *AwayError) Unwrap() error {
	if e.Cause == nil {
		return context.DeadlineExceeded
	}
	return e.Cause
}
