package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// probeWithin bounds one Probe; livenessprobe's --probe-timeout is as long.
const probeWithin = time.Second

// prober asks a driver over its socket whether it is well, as livenessprobe does.
type prober struct {
	socket string
	conn   *grpc.ClientConn
}

func newProber(socket string) (*prober, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return &prober{socket, conn}, nil
}

func (p *prober) close() { _ = p.conn.Close() }

// probe is nil when the driver answers that it is ready, or says nothing about it (CSI: not set means ready).
func (p *prober) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	answer, err := csi.NewIdentityClient(p.conn).Probe(ctx, &csi.ProbeRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("probe at %s: %w", p.socket, err)
	}
	if answer.GetReady() != nil && !answer.GetReady().GetValue() {
		return errors.New("probe at " + p.socket + ": the driver says that it is not ready")
	}
	return nil
}
