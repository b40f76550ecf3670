package agent

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/block/objects"
)

type metrics struct {
	operations *prometheus.HistogramVec
	orphans    prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		operations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "berth_block_agent_operation_duration_seconds", Help: "Duration of what the node did for BlockVolumes and BlockSnapshots, by operation and kind of error (empty: done).",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, 1, 5, 30, 120},
		}, []string{"operation", "error"}),
		orphans: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "berth_block_agent_orphans", Help: "Volumes and snapshots in this node's pool that no BlockVolume or BlockSnapshot names.",
		}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.operations, m.orphans} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

// timed runs an operation and notes how long it took.
func (m *metrics) timed(op api.Operation, f func() error) error {
	began := time.Now()
	err := f()
	kind := ""
	if err != nil {
		kind = string(objects.KindOf(err))
	}
	m.operations.WithLabelValues(string(op), kind).Observe(time.Since(began).Seconds())
	return err
}
