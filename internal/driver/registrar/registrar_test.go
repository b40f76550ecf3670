package registrar

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// The plugin watcher asks who is there and says what came of it; when the registrar ends, its socket goes.
func TestRegistration(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d-reg.sock")
	notified := make(chan error, 2)
	s, err := New(Options{Driver: "d.example", Endpoint: "/run/d/csi.sock", SocketPath: path, Notified: func(err error) { notified <- err }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	call, stop := context.WithTimeout(t.Context(), 5*time.Second)
	defer stop()
	client := registration.NewRegistrationClient(conn)
	info, err := client.GetInfo(call, &registration.InfoRequest{}, grpc.WaitForReady(true))
	if err != nil || info.Name != "d.example" || info.Type != registration.CSIPlugin || info.Endpoint != "/run/d/csi.sock" || len(info.SupportedVersions) == 0 {
		t.Errorf("%v, %v", info, err)
	}
	for _, ok := range []bool{true, false} {
		if _, err := client.NotifyRegistrationStatus(call, &registration.RegistrationStatus{PluginRegistered: ok, Error: "why"}); err != nil {
			t.Error(err)
		}
		if err := <-notified; (err == nil) != ok {
			t.Errorf("registered %v: %v", ok, err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}
