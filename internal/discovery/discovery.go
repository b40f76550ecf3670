package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	batchlisters "k8s.io/client-go/listers/batch/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
)

// DefaultLockDir is where all discoveries of a host lock the disks that they serve. It is gone after a reboot, as the processes are.
const DefaultLockDir = "/run/berth/disks"

// Options of a Discovery.
type Options struct {
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory
	Node      string
	// Config is the original's ConfigMap: a manifest, or a directory with a file for each key. It is read again when it changes.
	Config string
	// InContainer: disks are looked at below mountDir, where a container has the host's hostDir.
	InContainer bool
	LockDir     string // empty: DefaultLockDir
	// Jobs are how the configuration's useJobForCleaning is done; nil where there is nobody to run them: then this process cleans.
	Jobs *Jobs
	// Patient: a configuration that can't be used at the start is told as one of a later change is, and waited for: this process has other
	// work, which must not suffer. Otherwise New refuses it.
	Patient bool
	// CleanWithin is the deadline of wiping a device of that many bytes; nil: cleanDeadline.
	CleanWithin func(bytes int64) time.Duration

	Events  record.EventRecorder
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Discovery serves the local disks of one node.
type Discovery struct {
	opts    Options
	log     *slog.Logger
	metrics *metrics
	locks   *locks
	wake    chan struct{}
	now     func() time.Time

	volumes corelisters.PersistentVolumeLister
	nodes   corelisters.NodeLister
	classes storagelisters.StorageClassLister
	synced  []cache.InformerSynced
	// Made when the configuration first asks for Jobs.
	jobs       batchlisters.JobLister
	jobsSynced cache.InformerSynced

	// Of the loop alone.
	config  *Config
	usable  bool // a configuration has been read
	cluster string
	told    map[string]string // by subject: what was said last
	said    map[string]bool   // subjects of this pass
	lostAt  map[string]time.Time
	untaint bool                       // the taint was taken away
	stuck   map[string]<-chan struct{} // by path: a look that does not end; closed when it does

	cleanings cleanings
}

// New reads the configuration and adds handlers to the informers. An error names the field that is wrong.
func New(o Options) (*Discovery, error) {
	if o.Client == nil || o.Informers == nil || o.Node == "" || o.Config == "" || o.Events == nil {
		return nil, errors.New("discovery: Client, Informers, Node, Config and Events are needed")
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.LockDir == "" {
		o.LockDir = DefaultLockDir
	}
	if o.CleanWithin == nil {
		o.CleanWithin = cleanDeadline
	}
	config, err := o.read()
	if err != nil {
		if !o.Patient {
			return nil, err
		}
		config = &Config{MinResync: defaultResync} // until Run reads a better one
	}
	d := &Discovery{
		opts: o, log: o.Log.With("room", "discovery"), config: config, usable: err == nil, wake: make(chan struct{}, 1), now: time.Now,
		locks: newLocks(o.LockDir, fmt.Sprintf("process %d for node %s with %s", os.Getpid(), o.Node, o.Config)),
		told:  map[string]string{}, said: map[string]bool{}, lostAt: map[string]time.Time{}, stuck: map[string]<-chan struct{}{},
	}
	d.cleanings.init()
	if d.metrics, err = newMetrics(o.Metrics); err != nil {
		return nil, err
	}
	core, storage := o.Informers.Core().V1(), o.Informers.Storage().V1()
	d.volumes, d.nodes, d.classes = core.PersistentVolumes().Lister(), core.Nodes().Lister(), storage.StorageClasses().Lister()
	return d, d.handle(core.PersistentVolumes().Informer(), core.Nodes().Informer(), storage.StorageClasses().Informer())
}

// handle wakes the loop for each change that can matter: of a local volume, of this node's labels or taints, of a class.
func (d *Discovery) handle(volumes, nodes, classes cache.SharedIndexInformer) error {
	wake := func(o any) {
		switch o := last(o).(type) {
		case *v1.PersistentVolume:
			if o.Spec.Local != nil {
				d.Wake()
			}
		case *v1.Node:
			if o.Name == d.opts.Node {
				d.Wake()
			}
		default:
			d.Wake()
		}
	}
	for _, i := range []cache.SharedIndexInformer{volumes, nodes, classes} {
		d.synced = append(d.synced, i.HasSynced)
		if _, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: wake, UpdateFunc: func(was, o any) {
			if !onlyHeartbeat(was, o) {
				wake(o)
			}
		}, DeleteFunc: func(o any) {
			if _, is := last(o).(*v1.Node); is { // of another node, too: its disks may have come to this one
				d.Wake()
				return
			}
			wake(o)
		}}); err != nil {
			return err
		}
	}
	return nil
}

func onlyHeartbeat(was, now any) bool {
	a, isNode := was.(*v1.Node)
	b, _ := now.(*v1.Node)
	return isNode && b != nil && a.UID == b.UID && len(a.Spec.Taints) == len(b.Spec.Taints) && fmt.Sprint(a.Labels) == fmt.Sprint(b.Labels)
}

func last(o any) any {
	if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
		return gone.Obj
	}
	return o
}

// Wake asks for a pass; it does not wait for it.
func (d *Discovery) Wake() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Run serves the disks until ctx ends. Wiping that is under way then ends, too, and begins anew at the next start.
func (d *Discovery) Run(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), d.synced...) {
		return ctx.Err()
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := newWatch(d)
	wg.Go(func() { w.run(ctx) })
	defer func() {
		d.cleanings.wait()
		d.locks.keep(nil)
	}()
	w.follow(d.config, d.opts)
	d.reload() // it may have changed between the first reading and the watch
	for {
		resync := time.NewTimer(time.Duration(float64(d.config.MinResync) * (1 + rand.Float64())))
		w.follow(d.config, d.opts)
		if d.usable {
			d.followJobs(ctx)
			d.pass(ctx)
		}
		select {
		case <-ctx.Done():
			resync.Stop()
			return nil
		case <-d.wake:
		case <-w.configChanged:
			d.reload()
		case <-resync.C:
		}
		resync.Stop()
	}
}

// read reads the configuration, and makes sure that it can be done here.
func (o *Options) read() (*Config, error) {
	c, err := ReadConfig(o.Config)
	if err != nil {
		return nil, err
	}
	if err := o.possible(c); err != nil {
		return nil, fmt.Errorf("discovery configuration %s: %w", o.Config, err)
	}
	if c.UseJobs && o.Jobs == nil {
		c.Notes = append(c.Notes, keyJobs+" is not done here: nobody would run the Jobs; disks are cleaned in the background by this process")
	}
	return c, nil
}

// reload reads the configuration again; one with an error changes nothing.
func (d *Discovery) reload() {
	config, err := d.opts.read()
	if err != nil {
		then := "the last one stays in force"
		if !d.usable {
			then = "no disk is offered, wiped or taken away until it is corrected"
		}
		d.log.Error("the discovery configuration can't be used; "+then, "error", err)
		d.tellNode("config", v1.EventTypeWarning, "DiscoveryConfigInvalid", err.Error()+"; "+then)
		return
	}
	delete(d.told, "config")
	d.config, d.usable = config, true
	d.log.Info("the discovery configuration was read", "file", d.opts.Config)
	for _, note := range config.Notes {
		d.log.Warn("discovery configuration", "note", note)
	}
}

// callWithin bounds one call of the API.
const callWithin = 30 * time.Second

// who finds out what a pass needs to know of the cluster and the node; it is false while one of them is not there yet.
func (d *Discovery) who(ctx context.Context) (*v1.Node, bool) {
	node, err := d.nodes.Get(d.opts.Node)
	if apierrors.IsNotFound(err) {
		return nil, false // its being made wakes the loop
	}
	if err == nil && node.Labels[v1.LabelHostname] == "" {
		err = fmt.Errorf("node %s has no label %s, by which volumes name it", node.Name, v1.LabelHostname)
	}
	if err == nil && d.cluster == "" {
		ctx, cancel := context.WithTimeout(ctx, callWithin)
		defer cancel()
		var ns *v1.Namespace
		if ns, err = d.opts.Client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{}); err == nil {
			d.cluster = string(ns.UID)
		}
	}
	if err != nil {
		d.log.Warn("discovery waits", "error", err)
		d.wakeIn(retryAfter)
		return nil, false
	}
	return node, true
}

// retryAfter is when a pass that the API failed is made again.
const retryAfter = 5 * time.Second

func (d *Discovery) wakeIn(after time.Duration) { time.AfterFunc(after, d.Wake) }
