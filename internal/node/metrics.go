package node

import "github.com/prometheus/client_golang/prometheus"

// metrics of the room.
type metrics struct {
	ready, gone   prometheus.Histogram
	registrations *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	buckets := []float64{.005, .01, .02, .05, .1, .2, .5, 1, 5, 30, 120}
	m := &metrics{
		ready: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "berth_node_pod_ready_seconds", Buckets: buckets,
			Help: "Time from the first sight of a pod on this node to its Ready status, in seconds.",
		}),
		gone: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "berth_node_pod_gone_seconds", Buckets: buckets,
			Help: "Time from the first sight of a pod's deletion to its removal from the API, in seconds.",
		}),
		registrations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "berth_node_plugin_registrations_total",
			Help: "Plugin registrations by outcome (registered, failed, gone).",
		}, []string{"outcome"}),
	}
	if r != nil {
		r.MustRegister(m.ready, m.gone, m.registrations)
	}
	return m
}
