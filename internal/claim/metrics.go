package claim

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	"berth.io/berth/internal/plugin"
)

// notAvailable stands for a plugin's name that cannot be known.
const notAvailable = "N/A"

// metrics carry upstream's names and labels (persistentvolume/metrics, and the end-to-end histogram of volume/util).
// The numbers of volumes and claims are counted when they are asked for.
type metrics struct {
	c *Controller

	seconds                        *prometheus.HistogramVec
	errors, errorsTotal            *prometheus.CounterVec
	defaulted, defaultFailed       prometheus.Counter
	ephemeralMade, ephemeralFailed prometheus.Counter

	mu    sync.Mutex
	began map[[2]string]start // operation, key
}

type start struct {
	plugin string
	at     time.Time
}

var (
	totalPV    = prometheus.NewDesc("pv_collector_total_pv_count", "Gauge measuring total number of persistent volumes", []string{"plugin_name", "volume_mode"}, nil)
	boundPV    = prometheus.NewDesc("pv_collector_bound_pv_count", "Gauge measuring number of persistent volume currently bound", []string{"storage_class"}, nil)
	unboundPV  = prometheus.NewDesc("pv_collector_unbound_pv_count", "Gauge measuring number of persistent volume currently unbound", []string{"storage_class"}, nil)
	boundPVC   = prometheus.NewDesc("pv_collector_bound_pvc_count", "Gauge measuring number of persistent volume claim currently bound", []string{"namespace", "storage_class", "volume_attributes_class"}, nil)
	unboundPVC = prometheus.NewDesc("pv_collector_unbound_pvc_count", "Gauge measuring number of persistent volume claim currently unbound", []string{"namespace", "storage_class", "volume_attributes_class"}, nil)
)

func newMetrics(r prometheus.Registerer, c *Controller) (*metrics, error) {
	labels := []string{"plugin_name", "operation_name"}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		c: c, began: map[[2]string]start{},
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "volume_operation_total_seconds", Help: "Storage operation end to end duration in seconds",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600},
		}, labels),
		errors:          prometheus.NewCounterVec(prometheus.CounterOpts{Name: "volume_operation_total_errors", Help: "Total volume operation errors"}, labels),
		errorsTotal:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "volume_operation_errors_total", Help: "Total volume operation errors"}, labels),
		defaulted:       counter("retroactive_storageclass_total", "Total number of retroactive StorageClass assignments to persistent volume claim"),
		defaultFailed:   counter("retroactive_storageclass_errors_total", "Total number of failed retroactive StorageClass assignments to persistent volume claim"),
		ephemeralMade:   counter("ephemeral_volume_controller_create_total", "Number of PersistentVolumeClaim creation requests"),
		ephemeralFailed: counter("ephemeral_volume_controller_create_failures_total", "Number of PersistentVolumeClaim creation requests that failed"),
	}
	if r == nil {
		return m, nil
	}
	for _, one := range []prometheus.Collector{m, m.seconds, m.errors, m.errorsTotal, m.defaulted, m.defaultFailed, m.ephemeralMade, m.ephemeralFailed} {
		if err := r.Register(one); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// begin notes when an operation ("provision", "delete") began for a key; a second beginning does not count.
func (m *metrics) begin(operation, key, plugin string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := [2]string{operation, key}
	if _, ok := m.began[k]; !ok {
		m.began[k] = start{plugin: plugin, at: time.Now()}
	}
}

// finish measures an operation that has begun.
func (m *metrics) finish(operation, key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := [2]string{operation, key}
	if s, ok := m.began[k]; ok {
		m.seconds.WithLabelValues(s.plugin, operation).Observe(time.Since(s.at).Seconds())
		delete(m.began, k)
	}
}

// failed counts an error of an operation that has begun; it goes on.
func (m *metrics) failed(operation, key string, err error) {
	if err == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.began[[2]string{operation, key}]; ok {
		m.errors.WithLabelValues(s.plugin, operation).Inc()
		m.errorsTotal.WithLabelValues(s.plugin, operation).Inc()
	}
}

func (m *metrics) abandon(operation, key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.began, [2]string{operation, key})
}

func (m *metrics) retroactive(err error) {
	m.defaulted.Inc()
	if err != nil {
		m.defaultFailed.Inc()
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{totalPV, boundPV, unboundPV, boundPVC, unboundPVC} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	type dims [3]string
	counts := map[*prometheus.Desc]map[dims]int{}
	add := func(d *prometheus.Desc, labels dims) {
		if counts[d] == nil {
			counts[d] = map[dims]int{}
		}
		counts[d][labels]++
	}
	for _, pv := range m.c.volumes.list() {
		add(totalPV, dims{m.pluginOf(pv), string(ptr.Deref(pv.Spec.VolumeMode, v1.PersistentVolumeFilesystem))})
		if pv.Status.Phase == v1.VolumeBound {
			add(boundPV, dims{pv.Spec.StorageClassName})
		} else {
			add(unboundPV, dims{pv.Spec.StorageClassName})
		}
	}
	for _, c := range m.c.claims.list() {
		d := dims{c.Namespace, storagehelpers.GetPersistentVolumeClaimClass(c), ptr.Deref(c.Spec.VolumeAttributesClassName, "")}
		if c.Status.Phase == v1.ClaimBound {
			add(boundPVC, d)
		} else {
			add(unboundPVC, d)
		}
	}
	width := map[*prometheus.Desc]int{totalPV: 2, boundPV: 1, unboundPV: 1, boundPVC: 3, unboundPVC: 3}
	for d, by := range counts {
		for labels, n := range by {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels[:width[d]]...)
		}
	}
}

func (m *metrics) pluginOf(pv *v1.PersistentVolume) string {
	if csi := pv.Spec.CSI; csi != nil {
		return "kubernetes.io/csi:" + csi.Driver
	}
	if m.c.opts.Plugins != nil {
		if p, err := m.c.opts.Plugins.Find(&plugin.Volume{PV: pv}); err == nil {
			return p.Name()
		}
	}
	return notAvailable
}
