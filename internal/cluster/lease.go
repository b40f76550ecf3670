package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"berth.io/berth/internal/boundary"
)

// Election are the flags of the leader election; names and defaults are the sidecars'.
type Election struct {
	Off           bool
	Namespace     string // empty: the pod's
	Name          string // of the Lease
	LeaseDuration time.Duration
	RenewDeadline time.Duration
	RetryPeriod   time.Duration
}

// DefaultElection is that of the sidecars, but for the retry: a second replica takes over so much sooner.
var DefaultElection = Election{Name: "berth-controller", LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second}

func (e *Election) validate() error {
	if e.Off {
		return nil
	}
	if problems := validation.IsDNS1123Subdomain(e.Name); len(problems) > 0 {
		return fmt.Errorf("--leader-election-lease-name %q: %s", e.Name, strings.Join(problems, "; "))
	}
	if e.Namespace != "" {
		if problems := validation.IsDNS1123Label(e.Namespace); len(problems) > 0 {
			return fmt.Errorf("--leader-election-namespace %q: %s", e.Namespace, strings.Join(problems, "; "))
		}
	}
	switch {
	case e.LeaseDuration < time.Second || e.LeaseDuration%time.Second != 0: // the Lease has whole seconds
		return fmt.Errorf("--leader-election-lease-duration %s: want whole seconds, one at least", e.LeaseDuration)
	case e.RenewDeadline >= e.LeaseDuration:
		return fmt.Errorf("--leader-election-renew-deadline %s must be less than --leader-election-lease-duration %s", e.RenewDeadline, e.LeaseDuration)
	case e.RetryPeriod <= 0 || float64(e.RenewDeadline) <= leaderelection.JitterFactor*float64(e.RetryPeriod):
		return fmt.Errorf("--leader-election-retry-period %s: want more than zero, and at most 1/%.1f of --leader-election-renew-deadline %s", e.RetryPeriod, leaderelection.JitterFactor, e.RenewDeadline)
	}
	return nil
}

// fencedFor is how long after a renewal writes may pass: half of the time between giving up and the first moment at which another
// may take over is left for writes that are under way.
func (e *Election) fencedFor() time.Duration {
	return e.LeaseDuration - (e.LeaseDuration-e.RenewDeadline)/2
}

// lead waits for the lease, runs work while it is held, and gives it back when work has ended. It returns work's error; ErrNoLease
// when the lease was lost. work's context ends with the lease, and with ctx.
func lead(ctx context.Context, config *rest.Config, e Election, f *fence, log *slog.Logger, work func(context.Context) error) error {
	if e.Off {
		f.holdForever()
		return work(ctx)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	me := identity()
	l, err := resourcelock.New(resourcelock.LeasesResourceLock, e.Namespace, e.Name, client.CoreV1(), client.CoordinationV1(), resourcelock.ResourceLockConfig{Identity: me})
	if err != nil {
		return err
	}
	won := make(chan struct{})
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &lock{Interface: l, f: f}, Name: e.Name, LeaseDuration: e.LeaseDuration, RenewDeadline: e.RenewDeadline, RetryPeriod: e.RetryPeriod, ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { close(won) },
			OnStoppedLeading: func() {},
			OnNewLeader: func(who string) {
				log.Info("leader", "lease", e.Namespace+"/"+e.Name, "holder", who, "this", who == me)
			},
		},
	})
	if err != nil {
		return err
	}
	// The election outlives ctx: the lease is given back when the work has stopped, not before.
	electing, stop := context.WithCancel(klog.NewContext(context.WithoutCancel(ctx), klog.Background()))
	defer stop()
	over := make(chan struct{})
	go func() { defer close(over); elector.Run(electing) }()
	select {
	case <-ctx.Done():
		stop()
		<-over
		return nil
	case <-over: // cannot be without ctx; never work without a lease
		return ErrNoLease
	case <-won:
	}
	return held(ctx, f, over, stop, work)
}

// held runs work until it ends or the lease is lost, whichever is first.
func held(ctx context.Context, f *fence, over <-chan struct{}, stop func(), work func(context.Context) error) error {
	working, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(f.Term(), func() { cancel(context.Cause(f.Term())) })()
	go func() {
		<-over
		f.close(fmt.Errorf("%w: it could not be renewed, or another process has it", ErrNoLease))
	}()
	done := make(chan error, 1)
	go func() { done <- work(working) }()
	select {
	case err := <-done:
		if cause := context.Cause(working); errors.Is(cause, ErrNoLease) {
			return cause
		}
		f.close(context.Canceled)
		stop()
		<-over
		return err
	case <-f.Term().Done():
		// What still runs can write nothing; it has a moment for its own files and sockets.
		select {
		case <-done:
		case <-time.After(endWithin):
		}
		return context.Cause(f.Term())
	}
}

// endWithin is how long the work may take to end when the lease is lost.
const endWithin = 3 * time.Second

// identity names this process among the candidates: the pod, whose restarted container takes its own lease up at once; elsewhere
// no two processes of a host are the same.
func identity() string {
	if pod := os.Getenv("POD_NAME"); pod != "" {
		return pod
	}
	host, err := os.Hostname()
	if err != nil {
		host = "berth"
	}
	return host + "_" + string(uuid.NewUUID())
}

// lock tells the fence of each renewal.
type lock struct {
	resourcelock.Interface
	f *fence
}

func (l *lock) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	sent := l.f.now()
	return l.noted(sent, r, boundary.Do("cluster/take-lease", func() error { return l.Interface.Create(ctx, r) }))
}

func (l *lock) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	sent := l.f.now()
	return l.noted(sent, r, boundary.Do("cluster/renew-lease", func() error { return l.Interface.Update(ctx, r) }))
}

func (l *lock) noted(sent time.Time, r resourcelock.LeaderElectionRecord, err error) error {
	if err == nil && r.HolderIdentity == l.Identity() {
		l.f.hold(sent)
	}
	return err
}
