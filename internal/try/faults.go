package try

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/mountpoint"
	"berth.io/berth/internal/try/proxy"
	"berth.io/berth/internal/try/spec"
)

func isConflict(err error) bool { return apierrors.IsConflict(err) }

func (b *bench) stepKill(ctx context.Context, s *Step) error {
	kind := proxy.Kill
	if !b.ownDrivers() {
		kind, s.Title = proxy.Cut, "connection cut in each RPC (the driver is not the bench's process)"
	}
	return b.life(ctx, s, kind)
}

func (b *bench) stepLate(ctx context.Context, s *Step) error  { return b.life(ctx, s, proxy.Late) }
func (b *bench) stepLost(ctx context.Context, s *Step) error  { return b.life(ctx, s, proxy.Lost) }
func (b *bench) stepTwice(ctx context.Context, s *Step) error { return b.life(ctx, s, proxy.Twice) }

// rules spoil the first of each RPC of a volume's life.
func (b *bench) rules(ctx context.Context, kind proxy.Kind) []*proxy.Rule {
	methods := []string{"CreateVolume", "NodePublishVolume", "NodeUnpublishVolume", "DeleteVolume"}
	if b.caps.HasController("PUBLISH_UNPUBLISH_VOLUME") {
		methods = append(methods, "ControllerPublishVolume", "ControllerUnpublishVolume")
	}
	if b.caps.HasNode("STAGE_UNSTAGE_VOLUME") {
		methods = append(methods, "NodeStageVolume", "NodeUnstageVolume")
	}
	if b.caps.HasController("CREATE_DELETE_SNAPSHOT") {
		methods = append(methods, "CreateSnapshot", "DeleteSnapshot")
	}
	if b.expandsOnline() {
		if b.caps.HasController("EXPAND_VOLUME") {
			methods = append(methods, "ControllerExpandVolume")
		}
		b.mu.Lock()
		_, asked := b.began["NodeExpandVolume"] // only some drivers want it after the controller's
		b.mu.Unlock()
		if asked {
			methods = append(methods, "NodeExpandVolume")
		}
	}
	var rules []*proxy.Rule
	for _, m := range methods {
		d := b.controller
		if strings.HasPrefix(m, "Node") {
			d = b.node
		}
		b.mu.Lock()
		half := b.began[m] / 2
		b.mu.Unlock()
		rules = append(rules, &proxy.Rule{Kind: kind, Method: m, Killing: half, Kill: func() { b.crash(ctx, d) }})
	}
	return rules
}

func (b *bench) expandsOnline() bool { return b.needExpand("ONLINE") == nil && !b.noOnline }

// crash kills a driver and starts it again, as its DaemonSet would.
func (b *bench) crash(ctx context.Context, d *driver) {
	d.kill()
	b.revive(ctx, d)
}

// revive starts a driver that has ended.
func (b *bench) revive(ctx context.Context, d *driver) {
	err := d.start()
	if err == nil {
		go func() {
			if _, err := d.ready(ctx, readyWithin); err != nil {
				b.abandon(fmt.Errorf("after a restart: %w", err))
			}
		}()
		return
	}
	b.abandon(fmt.Errorf("the driver could not be started again: %w", err))
}

// abandon ends the step that runs.
func (b *bench) abandon(cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.giveUp != nil {
		b.giveUp(cause)
	}
}

// crashes of a driver in one step after which it is left alone.
const crashes = 4

// crashed notes that a driver ended by itself, and starts it again, as its DaemonSet would.
func (b *bench) crashed(ctx context.Context, d *driver, exit error) {
	how := "exit status 0"
	if exit != nil {
		how = exit.Error()
	}
	v := spec.Violation{Rule: "driver/crashed", Section: "Supervised Lifecycle Management", Text: "the driver's process ended by itself (" + how + ")" + d.lastWords()}
	b.mu.Lock()
	s := b.step
	n := b.refused["crash"] + 1
	b.refused["crash"] = n
	b.mu.Unlock()
	if s != nil {
		b.violate(s, v)
	}
	if n >= crashes {
		b.abandon(fmt.Errorf("the driver ended by itself %d times (%s)", n, how))
	}
	if ctx.Err() == nil {
		b.revive(ctx, d)
	}
}

// life takes a volume through everything that the driver can, and spoils each RPC once. Whatever happens to the RPCs, the
// data must be there and everything must be gone at the end.
func (b *bench) life(ctx context.Context, s *Step, kind proxy.Kind) error {
	if err := b.needMount(); err != nil {
		return err
	}
	b.proxy.Inject(b.rules(ctx, kind)...)
	path, err := b.mounted(ctx, s, s.Name)
	if err != nil {
		return err
	}
	sum, err := writeData(path, "data", 20)
	if err != nil {
		return err
	}
	if b.caps.HasController("CREATE_DELETE_SNAPSHOT") {
		if err := b.snapshot(ctx, s, s.Name, s.Name); err != nil {
			return err
		}
	}
	if b.expandsOnline() {
		if err := b.enlarge(ctx, s.Name, 2*b.o.size()); err != nil {
			return err
		}
		if _, err := b.enlarged(ctx, s.Name, 2*b.o.size()); err != nil {
			return err
		}
	}
	if err := b.again(ctx, s, s.Name); err != nil {
		return err
	}
	if err := b.still(ctx, s, s.Name, sum, "faults in each RPC"); err != nil {
		return err
	}
	return b.sweepObjects(ctx, s.Name) // the deletions, too, while the faults are armed
}

// stepNodeRestart is a power failure of the node: the mounts are gone, nothing was unpublished, and the driver, the node
// agent and the API come up again.
func (b *bench) stepNodeRestart(ctx context.Context, s *Step) error {
	if err := b.needMount(); err != nil {
		return err
	}
	path, err := b.mounted(ctx, s, s.Name)
	if err != nil {
		return err
	}
	sum, err := writeData(path, "data", 21)
	if err != nil {
		return err
	}
	b.in.kill()
	for _, d := range b.drivers() {
		d.kill()
	}
	if err := unmountBelow(b.in.dir, b.in.database()); err != nil {
		return err
	}
	for _, d := range b.drivers() {
		if !d.ours() {
			s.Notes = append(s.Notes, "the mounts were taken away; the driver is not the bench's process and was not restarted")
			continue
		}
		if err := d.start(); err != nil {
			return err
		}
		if _, err := d.ready(ctx, readyWithin); err != nil {
			return err
		}
	}
	if err := b.in.start(ctx); err != nil {
		return err
	}
	// The pod still says Ready from before: its volume is mounted anew when a pod of that time can read it.
	if err := b.again(ctx, s, s.Name); err != nil {
		return err
	}
	return b.still(ctx, s, s.Name, sum, "the node was restarted while the volume was staged")
}

// unmountBelow takes every mount below dir away, the newest first, but those that are to stay.
func unmountBelow(dir string, stay ...string) error {
	mounts, err := mountpoint.List()
	if err != nil {
		return err
	}
	var errs []error
	for i := len(mounts) - 1; i >= 0; i-- {
		if strings.HasPrefix(mounts[i].Path, dir+"/") && !slices.Contains(stay, mounts[i].Path) {
			errs = append(errs, boundary.Do("try/unmount", func() error { return detachMount(mounts[i].Path) }))
		}
	}
	return errors.Join(errs...)
}

// stepScale mounts one volume, then many at once.
func (b *bench) stepScale(ctx context.Context, s *Step) error {
	if err := b.needMount(); err != nil {
		return err
	}
	began := time.Now()
	if _, err := b.mounted(ctx, s, s.Name); err != nil {
		return err
	}
	s.Notes = append(s.Notes, fmt.Sprintf("1 volume: claim to mounted in %s", time.Since(began).Round(time.Millisecond)))
	began = time.Now()
	names := make([]string, b.o.Scale)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", s.Name, i)
	}
	if err := each(names, func(n string) error { return errors.Join(b.claim(ctx, s, n), b.pod(ctx, s, n, n)) }); err != nil {
		return err
	}
	if err := b.allReady(ctx, s, b.o.Scale+1); err != nil {
		return err
	}
	s.Notes = append(s.Notes, fmt.Sprintf("%d volumes at once: all mounted in %s", b.o.Scale, time.Since(began).Round(time.Millisecond)))
	began = time.Now()
	if err := b.sweepObjects(ctx, s.Name); err != nil {
		return err
	}
	s.Notes = append(s.Notes, fmt.Sprintf("all deleted in %s", time.Since(began).Round(time.Millisecond)))
	return nil
}

// allReady waits until so many pods of the step are Ready, by one watch.
func (b *bench) allReady(ctx context.Context, s *Step, want int) error {
	api := b.in.client.CoreV1().Pods(namespace)
	of := metav1.ListOptions{LabelSelector: stepLabel + "=" + s.Name}
	ready, waiting := map[string]bool{}, ""
	note := func(p *corev1.Pod) {
		ok, state := podReady(p, true)
		if ready[p.Name] = ok; !ok {
			waiting = p.Name + ": " + state
		}
	}
	count := func() (n int) {
		for _, ok := range ready {
			if ok {
				n++
			}
		}
		return n
	}
	list, err := api.List(ctx, of)
	if err != nil {
		return err
	}
	for i := range list.Items {
		note(&list.Items[i])
	}
	of.ResourceVersion = list.ResourceVersion
	w, err := api.Watch(ctx, of)
	if err != nil {
		return err
	}
	defer w.Stop()
	for count() < want {
		select {
		case e, open := <-w.ResultChan():
			p, is := e.Object.(*corev1.Pod)
			if !open || !is {
				return errors.New("the watch on the pods ended")
			}
			note(p)
		case <-ctx.Done():
			return fmt.Errorf("%d of %d pods are Ready: %w; one that is not: %s", count(), want, context.Cause(ctx), waiting)
		}
	}
	return nil
}
