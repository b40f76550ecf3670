package mount

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics have the kubelet's names.
type metrics struct {
	seconds             *prometheus.HistogramVec
	reconstructed       prometheus.Counter
	reconstructedErrors prometheus.Counter
	forceCleaned        prometheus.Counter
	forceCleanedErrors  prometheus.Counter
	total               *prometheus.Desc
	manager             *Manager
}

func newMetrics(m *Manager, r prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	s := &metrics{
		manager: m,
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "storage_operation_duration_seconds",
			Help:    "Duration of storage operations on this node, in seconds.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600},
		}, []string{"volume_plugin", "operation_name", "status", "migrated"}),
		reconstructed:       counter("reconstruct_volume_operations_total", "Volumes found on the disk at start that were tried to be reconstructed."),
		reconstructedErrors: counter("reconstruct_volume_operations_errors_total", "Volumes found on the disk at start that could not be reconstructed."),
		forceCleaned:        counter("force_cleaned_failed_volume_operations_total", "Volumes that were cleaned after their reconstruction had failed."),
		forceCleanedErrors:  counter("force_cleaned_failed_volume_operation_errors_total", "Volumes that could not be cleaned after their reconstruction had failed."),
		total:               prometheus.NewDesc("volume_manager_total_volumes", "Volumes of this node's pods.", []string{"plugin_name", "state"}, nil),
	}
	if r != nil {
		r.MustRegister(s.seconds, s.reconstructed, s.reconstructedErrors, s.forceCleaned, s.forceCleanedErrors, s)
	}
	return s
}

func (s *metrics) observe(v *volume, operation string, begun time.Time, err error) {
	status := "success"
	if err != nil {
		status = "fail-unknown"
	}
	if errors.Is(err, errStopping) {
		return
	}
	s.seconds.WithLabelValues(fullPluginName(v), operation, status, "false").Observe(time.Since(begun).Seconds())
}

// fullPluginName is "kubernetes.io/csi:<driver>" for drivers (upstream GetFullQualifiedPluginNameForVolume).
func fullPluginName(v *volume) string {
	if name := v.plugin.Name(); v.lane != name {
		return name + ":" + v.lane
	}
	return v.plugin.Name()
}

// Describe and Collect count the volumes when the metrics are read.
func (s *metrics) Describe(ch chan<- *prometheus.Desc) { ch <- s.total }

// Collect implements prometheus.Collector.
func (s *metrics) Collect(ch chan<- prometheus.Metric) {
	type key struct{ plugin, state string }
	counts := map[key]int{}
	m := s.manager
	m.mu.Lock()
	for _, v := range m.volumes {
		for _, u := range v.uses {
			if u.desired {
				counts[key{fullPluginName(v), "desired_state_of_world"}]++
			}
			if u.state != absent {
				counts[key{fullPluginName(v), "actual_state_of_world"}]++
			}
		}
	}
	m.mu.Unlock()
	for k, n := range counts {
		ch <- prometheus.MustNewConstMetric(s.total, prometheus.GaugeValue, float64(n), k.plugin, k.state)
	}
}
