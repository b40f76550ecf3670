package driver

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Somebody removes the driver's socket: who calls next finds another one there, as often as it happens, and none is left at the end.
func TestSocketThatIsRemoved(t *testing.T) {
	d := testDriver(t, &listed{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	<-d.Serving()
	for range 3 {
		if err := os.Remove(d.o.SocketPath); err != nil {
			t.Fatal(err)
		}
		conn, err := grpc.NewClient("unix://"+d.o.SocketPath, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		answer, stop := context.WithTimeout(ctx, 10*time.Second)
		_, err = csi.NewIdentityClient(conn).GetPluginInfo(answer, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
		stop()
		conn.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(d.o.SocketPath); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}
