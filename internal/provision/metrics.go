package provision

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/status"
	libmetrics "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller/metrics"
)

// metrics are shared by all drivers; names and labels are the sidecars' own.
type metrics struct {
	lib       libmetrics.Metrics
	operation *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		lib: libmetrics.New("controller"),
		operation: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Subsystem: "csi_sidecar",
			Name:      "operations_seconds",
			Help:      "Duration of an RPC to a CSI driver, in seconds.",
			Buckets:   []float64{.002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 15, 25, 50, 120},
		}, []string{"driver_name", "method_name", "grpc_status_code"}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.operation,
		m.lib.PersistentVolumeClaimProvisionTotal,
		m.lib.PersistentVolumeClaimProvisionFailedTotal,
		m.lib.PersistentVolumeClaimProvisionDurationSeconds,
		m.lib.PersistentVolumeDeleteTotal,
		m.lib.PersistentVolumeDeleteFailedTotal,
		m.lib.PersistentVolumeDeleteDurationSeconds,
	} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) rpc(driver, method string, err error, took time.Duration) {
	m.operation.WithLabelValues(driver, method, status.Code(err).String()).Observe(took.Seconds())
}
