package schedule

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"berth.io/berth/internal/trace"
)

// SchedulerName is Berth's own name in pod.spec.schedulerName; pods that name the default scheduler are placed too.
const SchedulerName = "berth-scheduler"

// Options are what the scheduler works with. Client, Informers and Events are required.
type Options struct {
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory
	Events    record.EventRecorder
	Trace     *trace.Journal
	Log       *slog.Logger
	Metrics   prometheus.Registerer // may be nil

	// OnNoRoom is called when a pod is refused that more free space of a driver could help. It must not block; it may be nil.
	OnNoRoom func()

	// BindTimeout is how long a pod waits for its claims to be bound before it is decided again; 0 is 600 s.
	BindTimeout time.Duration
	// ReportDelay is how long a refusal must last before it is told; 0 is 100 ms. A pod often arrives a moment before
	// its claim does, or before the claim is bound; telling that costs two writes in the middle of the journey and
	// is wrong by the time anybody reads it.
	ReportDelay time.Duration
}

const (
	defaultBindTimeout = 600 * time.Second
	defaultReportDelay = 100 * time.Millisecond
	// writeTimeout bounds one call to the API server.
	writeTimeout = 30 * time.Second
	// writers is how many calls run at once: enough to fill the API server, few enough that each is quick.
	writers = 32
)

// Scheduler places pods. See the package comment.
type Scheduler struct {
	Options
	inbox  *inbox
	synced []cache.InformerSynced

	// All below belongs to the goroutine of Run.
	cluster *cluster
	pods    map[types.UID]*pendingPod
	byClaim map[string]map[types.UID]*pendingPod // claim key → pods that wait to be placed and use it
	refused map[types.UID]*pendingPod            // those that an event must wake
	queue   []*pendingPod                        // those to be decided now

	running context.Context // ends with Run
	work    sync.WaitGroup  // writes under way
	slots   chan struct{}   // one per writer
	metrics *metrics
}

// New registers the scheduler's handlers; the caller starts the informers afterwards, then Run.
func New(o Options) (*Scheduler, error) {
	if o.Client == nil || o.Informers == nil || o.Events == nil {
		return nil, errors.New("schedule: Client, Informers and Events are required")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.BindTimeout == 0 {
		o.BindTimeout = defaultBindTimeout
	}
	if o.ReportDelay == 0 {
		o.ReportDelay = defaultReportDelay
	}
	s := &Scheduler{
		Options: o,
		inbox:   newInbox(),
		cluster: newCluster(),
		pods:    map[types.UID]*pendingPod{},
		byClaim: map[string]map[types.UID]*pendingPod{},
		refused: map[types.UID]*pendingPod{},
		slots:   make(chan struct{}, writers),
	}
	s.metrics = newMetrics(o.Metrics)
	if err := s.watch(); err != nil {
		return nil, err
	}
	return s, nil
}

// Run places pods until ctx ends, and returns when the last write has ended.
func (s *Scheduler) Run(ctx context.Context) error {
	defer s.work.Wait()
	// Decide nothing on half a picture: a claim that has not been listed yet is not a claim that is missing.
	if !cache.WaitForCacheSync(ctx.Done(), s.synced...) {
		return nil
	}
	s.running = ctx
	s.Log.Info("scheduler started")
	for {
		// All that has happened first, then the decisions: a burst is decided on the newest picture.
		for _, f := range s.inbox.take() {
			f()
		}
		s.decideQueued()
		s.metrics.pending(len(s.pods)-len(s.refused), len(s.refused))
		select {
		case <-ctx.Done():
			return nil
		case <-s.inbox.ready:
		}
	}
}

// decideQueued decides the pods in the queue: higher priority first, then in order of arrival.
func (s *Scheduler) decideQueued() {
	for len(s.queue) > 0 {
		queue := s.queue
		s.queue = nil
		slices.SortStableFunc(queue, func(a, b *pendingPod) int { return int(priority(b.pod)) - int(priority(a.pod)) })
		for _, p := range queue {
			if s.pods[p.pod.UID] == p && p.phase == queued {
				s.decide(p)
			}
		}
	}
}

func priority(pod *v1.Pod) int32 {
	if pod.Spec.Priority == nil {
		return 0
	}
	return *pod.Spec.Priority
}

// Wait is a pod that is not placed yet, for a page that shows who waits for what.
type Wait struct {
	Pod    types.NamespacedName
	Phase  string // queued, writing, awaiting, binding, refused or backoff
	Since  time.Time
	Node   string // chosen, if any
	Reason string
}

// Waiting lists the pods that are not placed yet. It may be called from any goroutine while Run runs.
func (s *Scheduler) Waiting(ctx context.Context) ([]Wait, error) {
	answer := make(chan []Wait, 1)
	s.inbox.put(func() {
		waits := make([]Wait, 0, len(s.pods))
		for _, p := range s.pods {
			waits = append(waits, p.describe())
		}
		slices.SortFunc(waits, func(a, b Wait) int { return a.Since.Compare(b.Since) })
		answer <- waits
	})
	select {
	case waits := <-answer:
		return waits, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
