package schedule

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics carry upstream's names, so that dashboards for kube-scheduler show this one too.
type metrics struct {
	attempts *prometheus.CounterVec
	waiting  *prometheus.GaugeVec
	duration prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "scheduler_schedule_attempts_total", Help: "Attempts to schedule pods, by the result: scheduled, unschedulable (no node will do) or error.",
		}, []string{"result"}),
		waiting: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "scheduler_pending_pods", Help: "Pods without a node, by queue: active (being decided or waiting for claims to be bound) or unschedulable.",
		}, []string{"queue"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "scheduler_pod_scheduling_sli_duration_seconds", Help: "Time from a pod's arrival to its Binding, the wait for its claims included.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 20),
		}),
	}
	if r != nil {
		r.MustRegister(m.attempts, m.waiting, m.duration)
	}
	return m
}

func (m *metrics) attempt(result string)     { m.attempts.WithLabelValues(result).Inc() }
func (m *metrics) scheduled(d time.Duration) { m.duration.Observe(d.Seconds()) }

func (m *metrics) pending(active, unschedulable int) {
	m.waiting.WithLabelValues("active").Set(float64(active))
	m.waiting.WithLabelValues("unschedulable").Set(float64(unschedulable))
}
