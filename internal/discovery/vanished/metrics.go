package vanished

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
)

// metrics have the original's names (its pkg/metrics/node-cleanup); volumes is ours.
type metrics struct {
	volumes                       *prometheus.GaugeVec
	volumesDeleted, volumesFailed *prometheus.CounterVec
	claimsDeleted, claimsFailed   prometheus.Counter
}

var phases = []v1.PersistentVolumePhase{v1.VolumePending, v1.VolumeAvailable, v1.VolumeBound, v1.VolumeReleased, v1.VolumeFailed}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	const prefix = "local_volume_node_cleanup_"
	m := &metrics{
		volumes:        prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "berth_discovery_volumes_without_node", Help: "Local volumes whose node is no more, by phase."}, []string{"phase"}),
		volumesDeleted: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "persistentvolume_delete_total", Help: "Volumes of nodes that are no more that were deleted, by phase."}, []string{"phase"}),
		volumesFailed:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "persistentvolume_delete_failed_total", Help: "Attempts at it that failed, by phase."}, []string{"phase"}),
		claimsDeleted:  prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + "persistentvolumeclaim_delete_total", Help: "Claims of such volumes that were deleted."}),
		claimsFailed:   prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + "persistentvolumeclaim_delete_failed_total", Help: "Attempts at it that failed."}),
	}
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.volumes, m.volumesDeleted, m.volumesFailed, m.claimsDeleted, m.claimsFailed} {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}

func (m *metrics) count(counts map[v1.PersistentVolumePhase]int) {
	for _, p := range phases {
		m.volumes.WithLabelValues(string(p)).Set(float64(counts[p]))
	}
}

func (m *metrics) deletedVolume(phase v1.PersistentVolumePhase, err error) {
	if err != nil {
		m.volumesFailed.WithLabelValues(string(phase)).Inc()
		return
	}
	m.volumesDeleted.WithLabelValues(string(phase)).Inc()
}

func (m *metrics) deletedClaim(err error) {
	if err != nil {
		m.claimsFailed.Inc()
		return
	}
	m.claimsDeleted.Inc()
}
