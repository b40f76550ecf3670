package block

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"berth.io/berth/internal/block/pool"
)

// newPauses counts for how long writes were held back.
func newPauses() prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "berth_volume_frozen_seconds", Help: "How long mounted volumes were frozen for a snapshot or clone, from asking for it to the thaw.",
		Buckets: []float64{.005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10},
	})
}

// registerMetrics shows the pool's capacity. It is read when somebody scrapes.
func registerMetrics(r prometheus.Registerer, p *pool.Pool, pauses prometheus.Collector) error {
	if r == nil {
		return nil
	}
	if err := r.Register(pauses); err != nil {
		return fmt.Errorf("block backend: register metrics: %w", err)
	}
	for kind, read := range map[string]func(pool.Capacity) int64{
		"total":     func(c pool.Capacity) int64 { return c.Total },
		"reserved":  func(c pool.Capacity) int64 { return c.Reserved },
		"available": func(c pool.Capacity) int64 { return c.Available },
		"backed":    func(c pool.Capacity) int64 { return c.Backed },
	} {
		gauge := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "berth_pool_bytes", Help: "Capacity of the pool: in all, promised to volumes, available to new ones, allocated on the host's disk.",
			ConstLabels: prometheus.Labels{"pool": p.Name(), "kind": kind},
		}, func() float64 { return float64(read(p.Capacity())) })
		if err := r.Register(gauge); err != nil {
			return fmt.Errorf("block backend: register metrics: %w", err)
		}
	}
	return nil
}
