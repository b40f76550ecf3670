package attach

import (
	"github.com/prometheus/client_golang/prometheus"

	"berth.io/berth/internal/plugin"
)

// metrics have upstream's names and labels.
type metrics struct {
	c      *Controller
	inUse  *prometheus.Desc
	total  *prometheus.Desc
	forced *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, c *Controller) (*metrics, error) {
	m := &metrics{
		c:     c,
		inUse: prometheus.NewDesc("storage_count_attachable_volumes_in_use", "Measure number of volumes in use", []string{"node", "volume_plugin"}, nil),
		total: prometheus.NewDesc("attachdetach_controller_total_volumes", "Number of volumes in A/D Controller", []string{"plugin_name", "state"}, nil),
		forced: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "attachdetach_controller_forced_detaches",
			Help: "Number of times the A/D Controller performed a forced detach",
		}, []string{"reason"}),
	}
	if reg == nil {
		return m, nil
	}
	if err := reg.Register(m.forced); err != nil {
		return nil, err
	}
	return m, reg.Register(m)
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) { ch <- m.inUse; ch <- m.total }

// Collect counts when it is asked.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	type at struct{ a, b string }
	inUse, total := map[at]float64{}, map[at]float64{}
	m.c.mu.Lock()
	for _, e := range m.c.entries {
		name := "N/A"
		if e.attacher != nil {
			name = plugin.MemberOf(e.attacher, string(e.key.volume))
			if e.volume != nil && e.volume.PV != nil && e.volume.PV.Spec.CSI != nil {
				name += ":" + e.volume.PV.Spec.CSI.Driver
			}
		}
		if len(e.pods) > 0 {
			inUse[at{string(e.node), name}] += float64(len(e.pods))
			total[at{name, "desired_state_of_world"}]++
		}
		if e.actual != detached {
			total[at{name, "actual_state_of_world"}]++
		}
	}
	m.c.mu.Unlock()
	for k, n := range inUse {
		ch <- prometheus.MustNewConstMetric(m.inUse, prometheus.GaugeValue, n, k.a, k.b)
	}
	for k, n := range total {
		ch <- prometheus.MustNewConstMetric(m.total, prometheus.GaugeValue, n, k.a, k.b)
	}
}
