package discovery

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
)

// metrics have the original's names (its pkg/metrics), so that its dashboards and alerts go on; disks is ours.
type metrics struct {
	capacity        *prometheus.GaugeVec
	discoveries     *prometheus.CounterVec
	discoverySecs   *prometheus.HistogramVec
	deletions       *prometheus.CounterVec
	deletionsFailed *prometheus.CounterVec
	deletionSecs    *prometheus.HistogramVec
	requests        *prometheus.CounterVec
	requestsFailed  *prometheus.CounterVec
	requestSecs     *prometheus.HistogramVec
	running, failed prometheus.Gauge
	disks           *prometheus.GaugeVec
}

// byProcess is how the original labels cleaning that is not done by a Job.
const byProcess = "process"

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	const prefix = "local_volume_provisioner_"
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, labels)
	}
	seconds := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: prefix + name, Help: help, Buckets: prometheus.DefBuckets}, labels)
	}
	m := &metrics{
		capacity:        prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + "persistentvolume_capacity_bytes", Help: "Capacity of the volumes of local disks, by mode."}, []string{"mode"}),
		discoveries:     counter("persistentvolume_discovery_total", "Volumes made for local disks.", "mode"),
		discoverySecs:   seconds("persistentvolume_discovery_duration_seconds", "From finding a disk to its volume.", "mode"),
		deletions:       counter("persistentvolume_delete_total", "Volumes taken away after their disk was cleaned.", "mode", "type"),
		deletionsFailed: counter("persistentvolume_delete_failed_total", "Attempts to clean a disk that failed.", "mode", "type"),
		deletionSecs:    seconds("persistentvolume_delete_duration_seconds", "Time that cleaning a disk took.", "mode", "type", "capacity", "cleanup_command"),
		requests:        counter("apiserver_requests_total", "Writes to the API.", "method"),
		requestsFailed:  counter("apiserver_requests_failed_total", "Writes to the API that failed.", "method"),
		requestSecs:     seconds("apiserver_requests_duration_seconds", "Time that writes to the API took.", "method"),
		running:         prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + "proctable_running", Help: "Disks that are being cleaned."}),
		failed:          prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + "proctable_failed", Help: "Disks whose cleaning failed and is tried again."}),
		disks:           prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "berth_discovery_disks", Help: "Local disks by state: offered, cleaning, refused, gone (its volume is there and it is not), wrong (another disk is in its place), unselected."}, []string{"state"}),
	}
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.capacity, m.discoveries, m.discoverySecs, m.deletions, m.deletionsFailed, m.deletionSecs,
		m.requests, m.requestsFailed, m.requestSecs, m.running, m.failed, m.disks} {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}

func (m *metrics) request(method string, call func() error) error {
	began := time.Now()
	err := call()
	m.requests.WithLabelValues(method).Inc()
	m.requestSecs.WithLabelValues(method).Observe(time.Since(began).Seconds())
	if err != nil {
		m.requestsFailed.WithLabelValues(method).Inc()
	}
	return err
}

func (m *metrics) discovered(mode v1.PersistentVolumeMode, took time.Duration) {
	m.discoveries.WithLabelValues(string(mode)).Inc()
	m.discoverySecs.WithLabelValues(string(mode)).Observe(took.Seconds())
}

func (m *metrics) cleaned(mode v1.PersistentVolumeMode, how string, capacity int64, command string, took time.Duration) {
	m.deletions.WithLabelValues(string(mode), how).Inc()
	m.deletionSecs.WithLabelValues(string(mode), how, capacityStep(capacity), command).Observe(took.Seconds())
}

// capacityStep is the original's label: the next multiple of 500 GiB.
func capacityStep(bytes int64) string {
	return fmt.Sprintf("%dG", (bytes+500*gib-1)/(500*gib)*500)
}

func (s *scan) publish() {
	s.publishCleanings()
	for _, mode := range []v1.PersistentVolumeMode{v1.PersistentVolumeBlock, v1.PersistentVolumeFilesystem} {
		s.metrics.capacity.WithLabelValues(string(mode)).Set(float64(s.counts[string(mode)+" bytes"]))
	}
	for _, state := range []string{"offered", "cleaning", "refused", "gone", "wrong", "unselected"} {
		s.metrics.disks.WithLabelValues(state).Set(float64(s.counts[state]))
	}
}

func (d *Discovery) publishCleanings() {
	running, failed := d.cleanings.gauges()
	d.metrics.running.Set(float64(running))
	d.metrics.failed.Set(float64(failed))
}
