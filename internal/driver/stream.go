package driver

import (
	"context"
	"log/slog"
	"path"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// longestStream is how long a stream may take. Its end is no loss: the caller goes on from the last offset that it got.
const longestStream = 30 * time.Minute

// slowestReader is how long a caller may take to make room for one message. One that reads no more is not waited for: neither
// gRPC nor the deadline of the stream would end the wait, and what it reads of is held meanwhile.
const slowestReader = time.Minute

// interceptStream does for streamed answers what intercept does for single ones.
func (d *Driver) interceptStream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(stream.Context(), longestStream)
	defer cancel()
	watched := &watchedStream{ServerStream: stream, ctx: ctx, patience: d.patience}
	method := path.Base(info.FullMethod)
	defer func() {
		if r := recover(); r != nil {
			d.o.Log.Error("bug in a CSI call", slog.String("method", method), slog.Any("panic", r), slog.String("stack", string(debug.Stack())))
			err = status.Errorf(codes.Internal, "bug in %s: %v", method, r)
		}
		d.note(ctx, method, watched.request, time.Since(began), err)
	}()
	return statusOf(handler(server, watched))
}

// watchedStream validates the request that comes through it, keeps it for the log, and has a deadline.
type watchedStream struct {
	grpc.ServerStream
	ctx      context.Context
	patience time.Duration
	request  any
}

func (w *watchedStream) Context() context.Context { return w.ctx }

func (w *watchedStream) RecvMsg(m any) error {
	if err := w.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	w.request = m
	if m, ok := m.(proto.Message); ok {
		return checkFields(m)
	}
	return nil
}

// SendMsg gives up a caller that makes no room for the message. The call that waits for it ends with the stream, when the handler has
// returned.
func (w *watchedStream) SendMsg(m any) error {
	sent := make(chan error, 1)
	go func() { sent <- w.ServerStream.SendMsg(m) }()
	patience := time.NewTimer(w.patience)
	defer patience.Stop()
	select {
	case err := <-sent:
		return err
	case <-patience.C:
		return status.Errorf(codes.DeadlineExceeded, "the caller has not read for %s: call again from the last offset that you got", w.patience)
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}
