package driver

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"runtime/debug"
	"time"

	"github.com/kubernetes-csi/csi-lib-utils/protosanitizer"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"berth.io/berth/internal/trace"
)

// longest is the deadline of a call whose caller set none: a format and a repair fit into it.
const longest = 5 * time.Minute

// intercept goes around every call: a deadline, a code for its error, the log without secrets, the metrics, and an answer
// instead of a crash when there is a bug.
func (d *Driver) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	began := time.Now()
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, longest)
		defer cancel()
	}
	method := path.Base(info.FullMethod)
	defer func() {
		if r := recover(); r != nil {
			d.o.Log.Error("bug in a CSI call", slog.String("method", method), slog.Any("panic", r), slog.String("stack", string(debug.Stack())))
			resp, err = nil, status.Errorf(codes.Internal, "bug in %s: %v", method, r)
		}
		d.note(ctx, method, req, time.Since(began), err)
	}()
	if m, ok := req.(proto.Message); ok {
		if err := checkFields(m); err != nil {
			return nil, err
		}
	}
	resp, err = handler(ctx, req)
	return resp, statusOf(err)
}

func (d *Driver) note(ctx context.Context, method string, req any, took time.Duration, err error) {
	code := status.Code(err)
	d.metrics.observe(method, code, took)
	level := slog.LevelDebug
	if err != nil {
		level = slog.LevelWarn
	}
	if d.o.Log.Enabled(ctx, level) {
		// String, not the message itself: a JSON handler would look inside, and find the secrets.
		args := []any{slog.String("method", method), slog.String("request", printable(req)), slog.Duration("took", took)}
		if err != nil {
			args = append(args, slog.String("code", code.String()), slog.String("error", status.Convert(err).Message()))
		}
		d.o.Log.Log(ctx, level, "CSI call", args...)
	}
	if volume := volumeOf(req); code == codes.Aborted && volume != "" {
		d.o.Trace.Record(trace.Entry{Step: stepOf(method), State: trace.Waiting, Volume: volume, Node: d.o.Node, Detail: status.Convert(err).Message()})
	}
}

// contextTokens is the key in a volume's context under which a kubelet passes a pod's service-account tokens (CSIDriver's
// tokenRequests). The specification does not mark the context as secret.
const contextTokens = sidecarPrefix + "serviceAccount.tokens"

// printable is a request without its secrets.
func printable(req any) string {
	if r, ok := req.(interface{ GetVolumeContext() map[string]string }); ok && r.GetVolumeContext()[contextTokens] != "" {
		if m, ok := req.(proto.Message); ok {
			m = proto.Clone(m)
			m.(interface{ GetVolumeContext() map[string]string }).GetVolumeContext()[contextTokens] = "***stripped***"
			req = m
		}
	}
	return protosanitizer.StripSecrets(req).String()
}

// volumeOf is the volume that a request is about; empty when it is about none, or several.
func volumeOf(req any) string {
	switch r := req.(type) {
	case interface{ GetVolumeId() string }:
		return r.GetVolumeId()
	case interface{ GetSourceVolumeId() string }:
		return r.GetSourceVolumeId()
	}
	return ""
}

// stepOf is the station of the journey that a call belongs to.
func stepOf(method string) trace.Step {
	switch method {
	case "DeleteVolume":
		return trace.Deleted
	case "ControllerExpandVolume", "NodeExpandVolume":
		return trace.Expanded
	case "CreateSnapshot":
		return trace.Snapshotted
	case "NodeStageVolume":
		return trace.Staged
	case "NodePublishVolume":
		return trace.Published
	case "NodeUnpublishVolume":
		return trace.Unpublished
	case "NodeUnstageVolume":
		return trace.Unstaged
	}
	return trace.Provisioned
}

type metrics struct {
	calls *prometheus.HistogramVec
}

func newMetrics(driver string, r prometheus.Registerer) (*metrics, error) {
	if r == nil {
		return nil, nil
	}
	m := &metrics{calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "berth_csi_call_duration_seconds", Help: "Duration of the CSI calls that a driver served, by method and gRPC code.",
		ConstLabels: prometheus.Labels{"driver": driver},
		Buckets:     []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5, 30, 120},
	}, []string{"method", "code"})}
	if err := r.Register(m.calls); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return m, nil
}

func (m *metrics) observe(method string, code codes.Code, took time.Duration) {
	if m != nil {
		m.calls.WithLabelValues(method, code.String()).Observe(took.Seconds())
	}
}
