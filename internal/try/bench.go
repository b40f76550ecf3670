package try

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	storagev1 "k8s.io/api/storage/v1"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/try/proxy"
	"berth.io/berth/internal/try/spec"
)

// stepWithin bounds one step, once the instance is there.
const stepWithin = 90 * time.Second

// bench is one run.
type bench struct {
	o      Options
	work   string
	report *Report
	say    *teller

	node, controller *driver // the same one, where the services are on one socket
	proxy            *proxy.Proxy
	checker          *spec.Checker
	redact           *redactor
	ledger           *ledger
	former           []entry // of ledger: a killed run's
	name             string
	caps             spec.Capabilities
	nodeID           string
	topology         *csi.Topology

	identity csi.IdentityClient
	ctl      csi.ControllerClient
	nodes    csi.NodeClient
	group    csi.GroupControllerClient

	in         *instance
	startingIn chan error // one answer: the instance is there, or why not
	inReady    bool
	noOnline   bool // expanding a mounted volume was tried, and failed
	access     access
	csiDriver  *storagev1.CSIDriver
	told       map[string]bool // events that a step has shown

	watch   sync.Mutex // around the checker
	mu      sync.Mutex
	step    *Step          // that runs now
	refused map[string]int // method and subject → times in a row
	giveUp  context.CancelCauseFunc
	began   map[string]time.Duration // method → how long it usually takes
}

// errSkip marks a step that the driver has nothing for.
type errSkip struct{ reason string }

func (e errSkip) Error() string { return e.reason }

func skipf(format string, args ...any) error { return errSkip{fmt.Sprintf(format, args...)} }

// run tries the driver in work, an empty directory. The report is valid whatever the error says; the error is about the
// bench, not about the driver's faults.
func run(ctx context.Context, o Options, work string, before former) (*Report, error) {
	b := &bench{o: o, work: work, say: newTeller(o.Out, o.Color), refused: map[string]int{}, began: map[string]time.Duration{}, told: map[string]bool{},
		report: &Report{Berth: o.Version, Began: time.Now()}, ledger: newLedger(filepath.Join(work, ledgerName))}
	whole, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("the run took longer than --timeout %s", o.Timeout))
	defer cancel()
	steps, err := selectSteps(o.Only, o.Skip)
	if err != nil {
		return nil, err
	}
	defer b.close()
	if err := b.open(whole); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	if !b.ownDrivers() {
		b.ledger.begin(b.name)
		if err := b.takeOver(before); err != nil {
			return nil, err
		}
	}
	if needInstance(steps) {
		b.beginInstance(whole)
	}
	for _, s := range steps {
		if whole.Err() != nil {
			b.report.Ended = context.Cause(whole).Error()
			if ctx.Err() != nil {
				b.report.Ended = "interrupted"
			}
			break
		}
		if err := b.do(whole, s); err != nil {
			b.report.Ended = err.Error()
			break
		}
	}
	b.cleanUp(context.WithoutCancel(ctx))
	b.report.sum()
	b.say.summary(b.report)
	return b.report, nil
}

// open starts the driver and puts the proxy before it.
func (b *bench) open(ctx context.Context) (err error) {
	if b.node, err = newDriver(b.o.Driver, b.work, "driver"); err != nil {
		return err
	}
	b.controller = b.node
	if b.o.Controller != "" {
		if b.controller, err = newDriver(b.o.Controller, b.work, "controller"); err != nil {
			return err
		}
	}
	b.checker, b.redact = spec.New(b.o.secretValues()...), newRedactor(b.o.secretValues())
	b.proxy = proxy.New(b.seen)
	for _, d := range b.drivers() {
		d.crashed = func(exit error) { b.crashed(ctx, d, exit) }
		if err := d.start(); err != nil {
			return err
		}
	}
	for _, d := range b.drivers() {
		info, err := d.ready(ctx, readyWithin)
		if err != nil {
			return err
		}
		if b.name != "" && b.name != info.GetName() {
			return fmt.Errorf("the driver at %s calls itself %q, and its controller %q: they must be one driver", b.node.socket, b.name, info.GetName())
		}
		b.name = info.GetName()
		b.report.Driver, b.report.Version, b.report.Manifest = info.GetName(), info.GetVendorVersion(), info.GetManifest()
	}
	if b.o.CSIDriver != "" {
		var err error
		if b.csiDriver, err = readCSIDriver(b.o.CSIDriver, b.name); err != nil {
			return err
		}
	}
	b.say.began(b)
	return b.serve()
}

// serve puts the proxy's sockets up: a pair for each caller.
func (b *bench) serve() error {
	up, err := b.proxy.Upstream(b.node.socket)
	if err != nil {
		return err
	}
	upc := up
	if b.controller != b.node {
		if upc, err = b.proxy.Upstream(b.controller.socket); err != nil {
			return err
		}
	}
	for _, from := range []string{proxy.Kubernetes, proxy.Bench, proxy.Sanity} {
		if err := errors.Join(b.proxy.Serve(b.socket(from, "n"), from, up), b.proxy.Serve(b.socket(from, "c"), from, upc)); err != nil {
			return err
		}
	}
	nodes, err := dialDriver(b.socket(proxy.Bench, "n"))
	if err != nil {
		return err
	}
	ctl, err := dialDriver(b.socket(proxy.Bench, "c"))
	if err != nil {
		return err
	}
	b.identity, b.nodes = csi.NewIdentityClient(nodes), csi.NewNodeClient(nodes)
	b.ctl, b.group = csi.NewControllerClient(ctl), csi.NewGroupControllerClient(ctl)
	return nil
}

// socket of the proxy for one caller; kind is n or c.
func (b *bench) socket(from, kind string) string {
	return filepath.Join(b.work, from[:1]+kind+".sock")
}

func (b *bench) drivers() []*driver {
	if b.controller == b.node {
		return []*driver{b.node}
	}
	return []*driver{b.controller, b.node}
}

// close ends everything that open and the steps began.
func (b *bench) close() {
	if b.in != nil {
		<-b.startingIn
		b.in.kill()
	}
	if b.proxy != nil {
		b.proxy.Close()
	}
	for _, d := range []*driver{b.node, b.controller} {
		if d != nil {
			d.stop()
		}
	}
}

// do runs one step and reports it. An error ends the run.
func (b *bench) do(ctx context.Context, d stepDef) error {
	s := &Step{Name: d.name, Title: d.title, Began: time.Now()}
	stepCtx, giveUp := context.WithCancelCause(ctx)
	b.mu.Lock()
	b.step, b.giveUp, b.refused = s, giveUp, map[string]int{}
	b.mu.Unlock()
	b.say.step(s)
	var err, end error
	if d.instance {
		if end = b.awaitInstance(stepCtx); end != nil {
			err = end
		}
	}
	stepCtx, cancel := context.WithTimeoutCause(stepCtx, stepWithin, fmt.Errorf("not done within %s", stepWithin))
	if err == nil {
		err = d.run(b, stepCtx, s)
	}
	cause := context.Cause(stepCtx)
	giveUp(nil)
	cancel()
	unfired := b.proxy.Disarm()
	if d.instance && end == nil {
		b.shown(ctx, s, err != nil)
		if left := b.sweepObjects(ctx, s.Name); left != nil && err == nil {
			err = left
		}
	}
	b.mu.Lock()
	b.step, b.giveUp = nil, nil
	b.mu.Unlock()
	for _, m := range unfired {
		if err != nil {
			break // the step did not come so far
		}
		s.Notes = append(s.Notes, m+" did not come, so nothing was done to it")
	}
	s.Seconds = time.Since(s.Began).Seconds()
	s.Shown = b.redact.texts(s.Shown)
	var skip errSkip
	switch {
	case errors.As(err, &skip) && !s.broken():
		s.Outcome, s.Reason = Skipped, skip.reason
	case errors.As(err, &skip):
		s.Outcome, s.Reason = Failed, skip.reason
	case err != nil:
		s.Outcome, s.Reason = Failed, err.Error()
		if cause != nil && ctx.Err() == nil && errors.Is(err, context.Canceled) {
			s.Reason = cause.Error()
		}
	case s.broken():
		s.Outcome = Failed
	default:
		s.Outcome = Passed
	}
	s.Reason = b.redact.text(s.Reason)
	b.report.Steps = append(b.report.Steps, s)
	b.say.done(s)
	return end
}

// refusals of one RPC in a row after which a step waits no longer: Kubernetes would go on for ever.
const refusals = 6

// seen takes in each call from the proxy.
func (b *bench) seen(c *proxy.Call) {
	b.watch.Lock()
	found := append(b.checker.Check(c), b.kernel(c)...)
	b.watch.Unlock()
	b.ledger.note(c)
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.Code == codes.OK && c.Injected == "" {
		b.began[c.Method] = c.Took
	}
	if b.step == nil {
		return
	}
	b.step.RPCs = append(b.step.RPCs, b.redact.rpc(newRPC(c, b.step.Began)))
	b.step.Violations = append(b.step.Violations, b.redact.violations(found)...)
	if c.From != proxy.Kubernetes || !c.Answered() {
		return
	}
	key := c.Method + subject(c)
	switch c.Code {
	case codes.OK:
		delete(b.refused, key)
	case codes.Aborted, codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
	default:
		if c.Method == "NodeExpandVolume" && c.Code == codes.FailedPrecondition && b.giveUp != nil {
			b.giveUp(fmt.Errorf("NodeExpandVolume answered %s, after which nobody asks again while the volume is mounted: %s", c.Code, c.Message))
		}
		if b.refused[key]++; b.refused[key] >= refusals && b.giveUp != nil {
			b.giveUp(fmt.Errorf("%s was refused %d times in a row: %s (%s)", c.Method, refusals, c.Message, c.Code))
		}
	}
}

// violate adds what a step itself found.
func (b *bench) violate(s *Step, v ...spec.Violation) {
	for _, v := range v {
		b.watch.Lock()
		found := b.checker.Add(v)
		b.watch.Unlock()
		b.mu.Lock()
		s.Violations = append(s.Violations, b.redact.violations(found)...)
		b.mu.Unlock()
	}
}

// last is the newest call of a method that the current step made itself.
func (b *bench) last(s *Step, method string) *RPC {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := len(s.RPCs) - 1; i >= 0; i-- {
		if s.RPCs[i].Method == method && s.RPCs[i].From == proxy.Bench {
			return &s.RPCs[i]
		}
	}
	return nil
}

// subject names what a call is about.
func subject(c *proxy.Call) string {
	switch q := c.Request.(type) {
	case interface{ GetVolumeId() string }:
		return " " + q.GetVolumeId()
	case interface{ GetName() string }:
		return " " + q.GetName()
	case interface{ GetSnapshotId() string }:
		return " " + q.GetSnapshotId()
	}
	return ""
}

// ask makes one RPC of the bench's own.
func ask[Q, R any](ctx context.Context, rpc func(context.Context, Q, ...grpc.CallOption) (R, error), q Q) (r R, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err = boundary.Do("try/rpc", func() error {
		r, err = rpc(ctx, q)
		return err
	})
	return r, err
}

// logFile opens a file of the work directory for appending.
func logFile(work, name string) (io.WriteCloser, error) {
	return os.OpenFile(filepath.Join(work, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}
