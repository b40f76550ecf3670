package csi

import (
	"context"
	"fmt"
	"sync"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/plugin"
)

// driver is one registration of a CSI driver: its connection and what its node service can do.
type driver struct {
	name    string
	timeout time.Duration
	conn    *grpc.ClientConn
	node    csipb.NodeClient
	seconds *prometheus.HistogramVec

	mu       sync.Mutex
	caps     *capabilities
	underWay int
	retired  bool
}

// capabilities of the node service that change what is called.
type capabilities struct {
	stage, expand, mountGroup, singleNodeMultiWriter, stats, condition, health bool
}

// call runs one RPC under its deadline.
func (d *driver) call(ctx context.Context, method string, rpc func(context.Context) error) error {
	d.mu.Lock()
	d.underWay++
	d.mu.Unlock()
	defer d.done()

	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	begun := time.Now()
	err := rpc(ctx)
	d.seconds.WithLabelValues(d.name, "/csi.v1.Node/"+method, status.Code(err).String(), "false").Observe(time.Since(begun).Seconds())
	if err == nil {
		return nil
	}
	return &RPCError{Driver: d.name, Method: method, Timeout: d.timeout, Status: status.Convert(err)}
}

func (d *driver) done() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.underWay--
	if d.retired && d.underWay == 0 {
		_ = d.conn.Close()
	}
}

// retire closes the connection when the last call has returned: cutting a call off would leave its outcome unknown.
func (d *driver) retire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.retired = true
	if d.underWay == 0 {
		_ = d.conn.Close()
	}
}

// capabilities asks once per registration.
func (d *driver) capabilities(ctx context.Context) (capabilities, error) {
	d.mu.Lock()
	caps := d.caps
	d.mu.Unlock()
	if caps != nil {
		return *caps, nil
	}
	var c capabilities
	err := d.call(ctx, "NodeGetCapabilities", func(ctx context.Context) error {
		r, err := d.node.NodeGetCapabilities(ctx, &csipb.NodeGetCapabilitiesRequest{})
		for _, e := range r.GetCapabilities() {
			switch e.GetRpc().GetType() {
			case csipb.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME:
				c.stage = true
			case csipb.NodeServiceCapability_RPC_EXPAND_VOLUME:
				c.expand = true
			case csipb.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP:
				c.mountGroup = true
			case csipb.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER:
				c.singleNodeMultiWriter = true
			case csipb.NodeServiceCapability_RPC_GET_VOLUME_STATS:
				c.stats = true
			case capabilityVolumeCondition:
				c.condition = true
			case csipb.NodeServiceCapability_RPC_GET_VOLUME_HEALTH:
				c.health = true
			}
		}
		return err
	})
	if err != nil {
		// Nothing has been asked of the volume yet: not uncertain, whatever the code.
		return capabilities{}, fmt.Errorf("%v", err)
	}
	d.mu.Lock()
	d.caps = &c
	d.mu.Unlock()
	return c, nil
}

// accessMode maps as upstream: without SINGLE_NODE_MULTI_WRITER both single-node modes are SINGLE_NODE_WRITER.
func (c capabilities) accessMode(m v1.PersistentVolumeAccessMode) csipb.VolumeCapability_AccessMode_Mode {
	switch m {
	case v1.ReadOnlyMany:
		return csipb.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	case v1.ReadWriteMany:
		return csipb.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	case v1.ReadWriteOnce:
		if c.singleNodeMultiWriter {
			return csipb.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
		}
		return csipb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	case v1.ReadWriteOncePod:
		if c.singleNodeMultiWriter {
			return csipb.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
		}
		return csipb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	}
	return csipb.VolumeCapability_AccessMode_UNKNOWN
}

// RPCError is a driver's failure in words for a user. It is plugin.ErrUncertain when the call may have had an effect.
type RPCError struct {
	Driver, Method string
	Timeout        time.Duration
	Status         *status.Status
}

func (e *RPCError) Error() string {
	switch e.Status.Code() {
	case codes.DeadlineExceeded:
		return fmt.Sprintf("%s of driver %s gave no answer for %s", e.Method, e.Driver, e.Timeout)
	case codes.Unavailable:
		return fmt.Sprintf("%s: driver %s can't be reached, or it went away during the call: %s", e.Method, e.Driver, e.Status.Message())
	case codes.Canceled:
		return fmt.Sprintf("%s of driver %s was cut off: this program is stopping", e.Method, e.Driver)
	case codes.Unimplemented:
		return fmt.Sprintf("driver %s does not implement %s", e.Driver, e.Method)
	}
	return fmt.Sprintf("driver %s refused %s: %s (%s)", e.Driver, e.Method, e.Status.Message(), e.Status.Code())
}

// Is makes errors.Is(err, plugin.ErrUncertain) true for the codes after which an operation may still be under way
// (upstream's isFinalError).
func (e *RPCError) Is(target error) bool {
	if target != plugin.ErrUncertain {
		return false
	}
	switch e.Status.Code() {
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.ResourceExhausted, codes.Aborted:
		return true
	}
	return false
}
