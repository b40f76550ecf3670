package retention

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	schedules     prometheus.Gauge
	made, skipped prometheus.Counter
	deleted       *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		schedules: prometheus.NewGauge(prometheus.GaugeOpts{Name: "berth_snapshot_schedules", Help: "SnapshotSchedules there are."}),
		made:      prometheus.NewCounter(prometheus.CounterOpts{Name: "berth_snapshot_schedule_created_total", Help: "Snapshots that schedules have asked for."}),
		skipped:   prometheus.NewCounter(prometheus.CounterOpts{Name: "berth_snapshot_schedule_skipped_total", Help: "Snapshots that schedules have left out: the one before was not ready, or the API refused."}),
		deleted: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "berth_snapshot_schedule_deleted_total",
			Help: "Snapshots that schedules have deleted, by reason: retention (more than keep), failed (a new one took its place)."}, []string{"reason"}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.schedules, m.made, m.skipped, m.deleted} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
