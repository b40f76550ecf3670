package mount

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"berth.io/berth/internal/plugin"
)

// metrics have the kubelet's names.
type metrics struct {
	seconds             *prometheus.HistogramVec
	reconstructed       prometheus.Counter
	reconstructedErrors prometheus.Counter
	forceCleaned        prometheus.Counter
	forceCleanedErrors  prometheus.Counter
	total               *prometheus.Desc
	stats               volumeStats
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
		stats:               newVolumeStats(),
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
	if f, ok := v.plugin.(plugin.Family); ok {
		if driver, ok := f.Member(v.lane); ok {
			return driver
		}
	}
	if name := v.plugin.Name(); v.lane != name {
		return name + ":" + v.lane
	}
	return v.plugin.Name()
}

// Describe and Collect count the volumes when the metrics are read.
func (s *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- s.total
	for _, d := range s.stats {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *metrics) Collect(ch chan<- prometheus.Metric) {
	type key struct{ plugin, state string }
	counts := map[key]int{}
	m := s.manager
	m.mu.Lock()
	for _, v := range m.volumes {
		s.stats.collect(v, ch)
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

// volumeStats are the kubelet's figures of claims, as the drivers said last.
type volumeStats map[string]*prometheus.Desc

func newVolumeStats() volumeStats {
	s := volumeStats{}
	for name, help := range map[string]string{
		"capacity_bytes":         "Capacity in bytes of the volume",
		"available_bytes":        "Number of available bytes in the volume",
		"used_bytes":             "Number of used bytes in the volume",
		"inodes":                 "Maximum number of inodes in the volume",
		"inodes_free":            "Number of free inodes in the volume",
		"inodes_used":            "Number of used inodes in the volume",
		"health_status_abnormal": "Abnormal volume health status: 1 when its driver reports a problem, else 0",
	} {
		s[name] = prometheus.NewDesc("kubelet_volume_stats_"+name, help, []string{"namespace", "persistentvolumeclaim"}, nil)
	}
	return s
}

// collect shows the volume once, whatever the number of its pods.
func (s volumeStats) collect(v *volume, ch chan<- prometheus.Metric) {
	if v.claim.Name == "" {
		return
	}
	show := func(name string, n int64) {
		ch <- prometheus.MustNewConstMetric(s[name], prometheus.GaugeValue, float64(n), v.claim.Namespace, v.claim.Name)
	}
	for _, u := range v.uses {
		i := u.inspected
		if u.state != present || i.Bytes == nil && i.Inodes == nil && !i.Health {
			continue
		}
		if i.Bytes != nil {
			show("capacity_bytes", i.Bytes.Total)
			show("available_bytes", i.Bytes.Available)
			show("used_bytes", i.Bytes.Used)
		}
		if i.Inodes != nil {
			show("inodes", i.Inodes.Total)
			show("inodes_free", i.Inodes.Available)
			show("inodes_used", i.Inodes.Used)
		}
		if i.Health {
			show("health_status_abnormal", int64(min(len(i.Problems), 1)))
		}
		return
	}
}
