package driver

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"berth.io/berth/internal/backend"
)

// endless is a backend with one snapshot, of which there is always more to tell.
type endless struct {
	listed
	backend.Snapshotter
	ended chan error
}

func (e *endless) Snapshot(context.Context, string) (backend.Snapshot, error) {
	return backend.Snapshot{ID: "s", SizeBytes: 1 << 62}, nil
}

func (e *endless) Allocated(_ context.Context, _ string, _ int64, f func(backend.Range) error) error {
	for at := int64(0); ; at += 8192 {
		if err := f(backend.Range{Offset: at, Length: 4096}); err != nil {
			e.ended <- err
			return err
		}
	}
}

func (e *endless) Delta(context.Context, string, string, int64, func(backend.Range) error) error {
	return errors.New("not asked for")
}

// A caller that stops reading, and stays connected, does not hold the call.
func TestReaderThatStopsIsNotWaitedFor(t *testing.T) {
	e := &endless{ended: make(chan error, 1)}
	d := testDriver(t, e)
	d.patience = 200 * time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- d.Run(ctx) }()
	<-d.Serving()
	conn, err := grpc.NewClient("unix:"+d.o.SocketPath, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := csi.NewSnapshotMetadataClient(conn).GetMetadataAllocated(t.Context(), &csi.GetMetadataAllocatedRequest{SnapshotId: "s"})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-e.ended:
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("it ended by %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the call waits for a caller that does not read")
	}
	for err == nil { // what was on its way comes, and then the reason
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("the caller is told: %v", err)
	}
	stop()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}
