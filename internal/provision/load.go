package provision

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"berth.io/berth/internal/trace"
)

// Names of the lanes in Load and in metrics.
const (
	LaneProvision = "provision"
	LaneDelete    = "delete"
	LaneAttach    = "attach"
	LaneDetach    = "detach"
)

// Load is what one lane of a driver has to do.
type Load struct {
	Driver string `json:"driver"`
	Lane   string `json:"lane"`
	// Items are those that wait and those that are worked on, failed ones that wait for another try among them.
	Items int `json:"items"`
	// Running are the calls of the driver at this moment, of at most Workers.
	Running int `json:"running"`
	Workers int `json:"workers"`
	// Oldest item, and since when it is in the lane by the API's clock; empty and zero without items.
	Oldest string    `json:"oldest,omitempty"`
	Since  time.Time `json:"since,omitzero"`
	// Of what the oldest item is: the claim, as namespace/name, and what is known of the volume and of the node.
	Claim  string `json:"claim,omitempty"`
	Volume string `json:"volume,omitempty"`
	Node   string `json:"node,omitempty"`
}

// item of a lane.
type item struct {
	name, claim, volume, node string
	since                     time.Time
}

// laneOf is where a driver's call runs.
var laneOf = map[string]string{"CreateVolume": LaneProvision, "DeleteVolume": LaneDelete, "ControllerPublishVolume": LaneAttach, "ControllerUnpublishVolume": LaneDetach}

// Load lists the lanes of all drivers that are served, by driver and lane. It reads the caches, so it costs nothing between questions.
func (m *Manager) Load() []Load {
	all := map[[2]string]*Load{}
	for _, s := range m.Status() {
		for _, role := range s.Roles {
			switch Role(role) {
			case Provision:
				all[[2]string{s.Name, LaneProvision}], all[[2]string{s.Name, LaneDelete}] = &Load{}, &Load{}
			case Attach:
				all[[2]string{s.Name, LaneAttach}], all[[2]string{s.Name, LaneDetach}] = &Load{}, &Load{}
			}
		}
	}
	m.eachItem(func(driver, lane string, i item) {
		l := all[[2]string{driver, lane}]
		if l == nil {
			return // another process's
		}
		l.Items++
		if l.Oldest == "" || i.since.Before(l.Since) {
			l.Oldest, l.Since, l.Claim, l.Volume, l.Node = i.name, i.since, i.claim, i.volume, i.node
		}
	})
	for _, h := range m.Holders() {
		if l := all[[2]string{h.Driver, laneOf[h.Step]}]; l != nil {
			l.Running++
		}
	}
	out := make([]Load, 0, len(all))
	for key, l := range all {
		l.Driver, l.Lane, l.Workers = key[0], key[1], m.opts.Workers
		out = append(out, *l)
	}
	slices.SortFunc(out, func(a, b Load) int { return cmp.Or(cmp.Compare(a.Driver, b.Driver), cmp.Compare(a.Lane, b.Lane)) })
	return out
}

func (m *Manager) eachItem(add func(driver, lane string, i item)) {
	attachments, _ := m.attachments.List(labels.Everything())
	for _, va := range attachments {
		lane, since := laneOfAttachment(va)
		if lane == "" {
			continue
		}
		i := item{name: va.Name, node: va.Spec.NodeName, since: since}
		if name := va.Spec.Source.PersistentVolumeName; name != nil {
			i.volume = *name
			if pv, err := m.volumes.Get(*name); err == nil {
				i.claim = claimOf(pv)
			}
		}
		add(va.Spec.Attacher, lane, i)
	}
	claims, _ := m.claims.List(labels.Everything())
	for _, c := range claims {
		if driver := provisionerOf(c); driver != "" && c.Spec.VolumeName == "" && c.DeletionTimestamp == nil && m.mayProvision(c) {
			name := c.Namespace + "/" + c.Name
			add(driver, LaneProvision, item{name: name, claim: name, node: c.Annotations[annSelectedNode], since: c.CreationTimestamp.Time})
		}
	}
	volumes, _ := m.volumes.List(labels.Everything())
	for _, pv := range volumes {
		if pv.Status.Phase == v1.VolumeReleased && pv.Spec.PersistentVolumeReclaimPolicy == v1.PersistentVolumeReclaimDelete {
			since := pv.CreationTimestamp.Time
			if t := pv.Status.LastPhaseTransitionTime; t != nil {
				since = t.Time
			}
			add(pv.Annotations[annProvisionedBy], LaneDelete, item{name: pv.Name, claim: claimOf(pv), volume: pv.Name, since: since})
		}
	}
}

// claimOf is the volume's claim as namespace/name; "" when it has none.
func claimOf(pv *v1.PersistentVolume) string {
	if c := trace.ClaimOf(pv); c.Name != "" {
		return c.Namespace + "/" + c.Name
	}
	return ""
}

// mayProvision says whether a claim waits for its driver, and not for a pod that chooses a node.
func (m *Manager) mayProvision(c *v1.PersistentVolumeClaim) bool {
	if c.Annotations[annSelectedNode] != "" {
		return true
	}
	class, err := m.classes.Get(className(c))
	return err == nil && (class.VolumeBindingMode == nil || *class.VolumeBindingMode == storagev1.VolumeBindingImmediate)
}

// laneOfAttachment is "" when there is nothing to do.
func laneOfAttachment(va *storagev1.VolumeAttachment) (lane string, since time.Time) {
	switch {
	case va.DeletionTimestamp != nil:
		return LaneDetach, va.DeletionTimestamp.Time
	case !va.Status.Attached:
		return LaneAttach, va.CreationTimestamp.Time
	}
	return "", time.Time{}
}

// loads shows Load as metrics when they are asked for.
type loads struct{ m *Manager }

var (
	laneItems = prometheus.NewDesc("berth_lane_items", "How many items wait in a lane of a driver, or are worked on.", []string{"driver_name", "lane"}, nil)
	laneAge   = prometheus.NewDesc("berth_lane_oldest_seconds", "For how long the oldest item is in a lane of a driver, in seconds; 0 without items.", []string{"driver_name", "lane"}, nil)
	// One series for each lane at a time, whatever its length: an alert leads to the volume by it.
	laneOldest = prometheus.NewDesc("berth_lane_oldest_info", "Of what the oldest item in a lane of a driver is; what is not known yet is empty.",
		[]string{"driver_name", "lane", "claim_namespace", "claim", "volume", "target_node"}, nil)
	laneBusy = prometheus.NewDesc("berth_lane_running", "How many calls of a driver run in a lane.", []string{"driver_name", "lane"}, nil)
)

// Describe implements prometheus.Collector.
func (c loads) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{laneItems, laneAge, laneOldest, laneBusy} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c loads) Collect(to chan<- prometheus.Metric) {
	now := time.Now()
	for _, l := range c.m.Load() {
		age := 0.0
		if l.Items > 0 {
			age = max(0, now.Sub(l.Since).Seconds())
			namespace, claim, _ := strings.Cut(l.Claim, "/")
			to <- prometheus.MustNewConstMetric(laneOldest, prometheus.GaugeValue, 1, l.Driver, l.Lane, namespace, claim, l.Volume, l.Node)
		}
		to <- prometheus.MustNewConstMetric(laneItems, prometheus.GaugeValue, float64(l.Items), l.Driver, l.Lane)
		to <- prometheus.MustNewConstMetric(laneAge, prometheus.GaugeValue, age, l.Driver, l.Lane)
		to <- prometheus.MustNewConstMetric(laneBusy, prometheus.GaugeValue, float64(l.Running), l.Driver, l.Lane)
	}
}

// laneWaits tells, as an event on the volume and in its journey, why an attach or detach takes long: how many are before it, or which
// call of the driver runs. A key is a VolumeAttachment. What is told is read by `berth why` in any cluster.
type laneWaits struct {
	m     *Manager
	after time.Duration
	queue workqueue.TypedRateLimitingInterface[string]
}

// laneTellAfter is when a user begins to wonder.
const laneTellAfter = 5 * time.Second

func newLaneWaits(m *Manager) (*laneWaits, error) {
	w := &laneWaits{m: m, after: laneTellAfter, queue: newQueue("provision-lanes")}
	began := func(o any) {
		if va, ok := o.(*storagev1.VolumeAttachment); ok {
			if lane, _ := laneOfAttachment(va); lane != "" {
				w.queue.AddAfter(va.Name, w.after)
			}
		}
	}
	_, err := m.opts.Informers.Storage().V1().VolumeAttachments().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: began,
		UpdateFunc: func(was, o any) {
			if a, b := was.(*storagev1.VolumeAttachment), o.(*storagev1.VolumeAttachment); a.DeletionTimestamp == nil && b.DeletionTimestamp != nil {
				began(o)
			}
		},
	})
	return w, err
}

func (w *laneWaits) tell(_ context.Context, name string) error {
	va, err := w.m.attachments.Get(name)
	if err != nil || va.Spec.Source.PersistentVolumeName == nil {
		return nil
	}
	lane, since := laneOfAttachment(va)
	if lane == "" || va.Status.AttachError != nil || va.Status.DetachError != nil || !w.m.attaches(va.Spec.Attacher) {
		return nil // done, or told already by who knows better
	}
	pv, err := w.m.volumes.Get(*va.Spec.Source.PersistentVolumeName)
	if err != nil {
		return nil
	}
	text, before := w.text(va, lane, since, pv)
	e := trace.Entry{Step: trace.Attached, State: trace.Waiting, Detail: text, Claim: trace.ClaimOf(pv), Volume: pv.Name, Node: va.Spec.NodeName}
	reason := "AttachQueued"
	if lane == LaneDetach {
		e.Step, reason = trace.Detached, "DetachQueued"
	}
	w.m.opts.Trace.Record(e)
	if w.m.opts.Events != nil && before < laneTellFirst {
		w.m.opts.Events.Event(pv, v1.EventTypeNormal, reason, text)
	}
	return nil
}

// laneTellFirst bounds the events of a long lane: those behind can be counted from the VolumeAttachments.
const laneTellFirst = 100

// text says what holds the attachment up, and how many are before it in its lane.
func (w *laneWaits) text(va *storagev1.VolumeAttachment, lane string, since time.Time, pv *v1.PersistentVolume) (text string, before int) {
	now := time.Now()
	oldest := since
	w.m.eachAttachment(va.Spec.Attacher, lane, func(other *storagev1.VolumeAttachment, at time.Time) {
		if other.Name != va.Name && !at.After(since) {
			before++
			if at.Before(oldest) {
				oldest = at
			}
		}
	})
	running := 0
	for _, h := range w.m.Holders() {
		if h.Driver != va.Spec.Attacher || laneOf[h.Step] != lane {
			continue
		}
		if pv.Spec.CSI != nil && h.Volume == pv.Spec.CSI.VolumeHandle {
			return fmt.Sprintf("driver %s has been asked to %s the volume at node %s %s ago and has not answered", va.Spec.Attacher, lane, va.Spec.NodeName, now.Sub(h.Since).Round(time.Second)), 0
		}
		running++
	}
	return fmt.Sprintf("waits to %s at node %s: %d before it in the %s lane of driver %s, the oldest for %s; %d of %d workers are calling the driver",
		lane, va.Spec.NodeName, before, lane, va.Spec.Attacher, now.Sub(oldest).Round(time.Second), running, w.m.opts.Workers), before
}

func (m *Manager) eachAttachment(driver, lane string, f func(*storagev1.VolumeAttachment, time.Time)) {
	all, _ := m.attachments.List(labels.Everything())
	for _, va := range all {
		if is, since := laneOfAttachment(va); va.Spec.Attacher == driver && is == lane {
			f(va, since)
		}
	}
}

// attaches says whether the driver's volumes are attached by this process.
func (m *Manager) attaches(driver string) bool {
	r := m.role(driver)
	return r != nil && r.ready() && m.has(Attach)
}
