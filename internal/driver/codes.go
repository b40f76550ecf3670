package driver

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.io/berth/internal/backend"
)

// statusOf chooses the gRPC code of an error (CSI spec v1.13, "Error Scheme" of each RPC). The message is the error's
// text, which was written for a user.
func statusOf(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err // from a validation of this package
	}
	return status.Error(codeOf(err), err.Error())
}

func codeOf(err error) codes.Code {
	var busy *backend.BusyError
	switch {
	case errors.As(err, &busy):
		return codes.Aborted
	case errors.Is(err, backend.ErrNotFound), errors.Is(err, backend.ErrNodeNotFound), errors.Is(err, backend.ErrSnapshotNotFound):
		return codes.NotFound
	case errors.Is(err, backend.ErrExists):
		return codes.AlreadyExists
	case errors.Is(err, backend.ErrNoSpace):
		return codes.ResourceExhausted
	case errors.Is(err, backend.ErrTooLarge):
		return codes.OutOfRange
	case errors.Is(err, backend.ErrInvalid), errors.Is(err, backend.ErrInGroup): // DeleteSnapshot Errors
		return codes.InvalidArgument
	case errors.Is(err, backend.ErrInUse), errors.Is(err, backend.ErrNotStaged), errors.Is(err, backend.ErrCannotFreeze):
		return codes.FailedPrecondition
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	}
	return codes.Internal
}

func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}
