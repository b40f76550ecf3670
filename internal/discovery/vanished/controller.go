package vanished

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	volumehelpers "k8s.io/component-helpers/storage/volume"

	"berth.io/berth/internal/discovery"
)

// Delays are the flags, with the original's names where it has them (its cmd/node-cleanup).
type Delays struct {
	// Classes are StorageClasses whose claims are deleted, and whose volumes are looked after whoever made them. The volumes that a
	// discovery made are looked after in any case.
	Classes []string
	// Claim is how long after its node a claim of Classes is deleted.
	Claim time.Duration
	// Volume is how long after its node a volume is deleted that is Released with the policy Delete. One that is Available goes at once:
	// there was never anything in it, and a node that comes back offers the disk again.
	Volume time.Duration
	// Interval is between two passes without an event.
	Interval time.Duration
}

// DefaultDelays are the original's; it has none for Volume.
func DefaultDelays() Delays {
	return Delays{Claim: time.Minute, Volume: 10 * time.Minute, Interval: 10 * time.Second}
}

// AddFlags adds the flags; d holds the defaults.
func (d *Delays) AddFlags(f *pflag.FlagSet) {
	f.StringSliceVar(&d.Classes, "storageclass-names", d.Classes, "StorageClasses of local volumes whose claims are deleted when their node is gone; other claims are told of it, and kept")
	f.DurationVar(&d.Claim, "pvc-deletion-delay", d.Claim, "how long after its node a claim of --storageclass-names is deleted")
	f.DurationVar(&d.Volume, "stale-pv-deletion-delay", d.Volume, "how long after its node a released local volume with the policy Delete is deleted")
	f.DurationVar(&d.Interval, "stale-pv-discovery-interval", d.Interval, "how often local volumes are looked at when nothing changes")
}

// Validate names the flag that is wrong.
func (d *Delays) Validate() error {
	for _, f := range []struct {
		name  string
		value time.Duration
		least time.Duration
	}{{"--pvc-deletion-delay", d.Claim, 0}, {"--stale-pv-deletion-delay", d.Volume, 0}, {"--stale-pv-discovery-interval", d.Interval, time.Second}} {
		if f.value < f.least {
			return fmt.Errorf("%s %s: want %s at least", f.name, f.value, f.least)
		}
	}
	if slices.Contains(d.Classes, "") {
		return errors.New("--storageclass-names: a name is empty")
	}
	return nil
}

// Options of a Controller.
type Options struct {
	Delays
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory // volumes, and all nodes with their labels
	Events    record.EventRecorder
	Log       *slog.Logger
	Metrics   prometheus.Registerer
}

// Controller looks after the volumes of nodes that are no more. One runs in a cluster.
type Controller struct {
	Options
	volumes corelisters.PersistentVolumeLister
	nodes   corelisters.NodeLister
	synced  []cache.InformerSynced
	wake    chan struct{}
	metrics *metrics
	now     func() time.Time

	// Of the loop, by volume: what was said last, and since when its node is missed, until the informer has what was written of it.
	told   map[string]string
	missed map[types.UID]time.Time
}

// New adds handlers to the informers.
func New(o Options) (*Controller, error) {
	if o.Client == nil || o.Informers == nil || o.Events == nil {
		return nil, errors.New("discovery: Client, Informers and Events are needed")
	}
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Controller{Options: o, wake: make(chan struct{}, 1), now: time.Now, told: map[string]string{}, missed: map[types.UID]time.Time{}}
	var err error
	if c.metrics, err = newMetrics(o.Metrics); err != nil {
		return nil, err
	}
	core := o.Informers.Core().V1()
	c.volumes, c.nodes = core.PersistentVolumes().Lister(), core.Nodes().Lister()
	local := func(obj any) {
		if pv, is := obj.(*v1.PersistentVolume); !is || pv.Spec.Local != nil {
			c.Wake()
		}
	}
	handlers := map[cache.SharedIndexInformer]cache.ResourceEventHandlerFuncs{
		core.PersistentVolumes().Informer(): {AddFunc: local, UpdateFunc: func(_, obj any) { local(obj) }, DeleteFunc: local},
		core.Nodes().Informer(): {AddFunc: func(any) { c.Wake() }, DeleteFunc: func(any) { c.Wake() }, UpdateFunc: func(was, is any) {
			a, _ := was.(*v1.Node)
			b, _ := is.(*v1.Node)
			if a == nil || b == nil || !labels.Equals(a.Labels, b.Labels) { // not each heartbeat
				c.Wake()
			}
		}},
	}
	for informer, h := range handlers {
		c.synced = append(c.synced, informer.HasSynced)
		if _, err := informer.AddEventHandler(h); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Wake asks for a pass; it does not wait for it.
func (c *Controller) Wake() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), c.synced...) {
		return nil
	}
	for {
		next := time.NewTimer(min(c.pass(ctx), c.Interval))
		select {
		case <-ctx.Done():
			next.Stop()
			return nil
		case <-c.wake:
		case <-next.C:
		}
		next.Stop()
	}
}

// never is later than every interval.
const never = time.Duration(1<<63 - 1)

// pass looks at every local volume, and says when something is due.
func (c *Controller) pass(ctx context.Context) (next time.Duration) {
	next = never
	all, err := c.volumes.List(labels.Everything())
	nodes, err2 := c.nodes.List(labels.Everything())
	if err = errors.Join(err, err2); err != nil {
		c.Log.Warn("discovery: volumes of nodes that are gone are not looked at", "err", err)
		return next
	}
	slices.SortFunc(all, func(a, b *v1.PersistentVolume) int { return strings.Compare(a.Name, b.Name) })
	counts, seen, uids := map[v1.PersistentVolumePhase]int{}, map[string]bool{}, map[types.UID]bool{}
	for _, pv := range all {
		if ctx.Err() != nil {
			return next
		}
		if !c.concerns(pv) || pv.DeletionTimestamp != nil {
			continue
		}
		seen[pv.Name], uids[pv.UID] = true, true
		if served(pv, nodes) {
			delete(c.told, pv.Name)
			delete(c.missed, pv.UID)
			c.back(ctx, pv)
			continue
		}
		counts[pv.Status.Phase]++
		next = min(next, c.gone(ctx, pv))
	}
	for name := range c.told {
		if !seen[name] {
			delete(c.told, name)
		}
	}
	for uid := range c.missed {
		if !uids[uid] {
			delete(c.missed, uid)
		}
	}
	c.metrics.count(counts)
	return next
}

// concerns says whether a volume is looked after: a discovery made it, ours or the original's, or its class is named.
func (c *Controller) concerns(pv *v1.PersistentVolume) bool {
	return pv.Spec.Local != nil && len(discovery.Hostnames(pv)) > 0 &&
		(strings.HasPrefix(pv.Annotations[discovery.AnnProvisionedBy], discovery.ProvisionerName+"-") || slices.Contains(c.Classes, pv.Spec.StorageClassName))
}

// served says whether a node is there that the volume's affinity lets in, or that has the name of one that it means: a node whose labels
// are not complete yet is there.
func served(pv *v1.PersistentVolume, nodes []*v1.Node) bool {
	names := discovery.Hostnames(pv)
	for _, n := range nodes {
		if slices.Contains(names, n.Name) || volumehelpers.CheckNodeAffinity(pv, n.Labels) == nil {
			return true
		}
	}
	return false
}
