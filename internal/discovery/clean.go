package discovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/host/mountpoint"
)

// The original's reasons (k8s.io/kubernetes/pkg/controller/volume/events).
const (
	reasonDelete       = "VolumeDelete"
	reasonFailedDelete = "VolumeFailedDelete"
)

// errInUse is a disk that somebody uses: nothing of it is touched.
var errInUse = errors.New("in use")

// cleanAtOnce is how many disks are wiped at the same time.
const cleanAtOnce = 4

// cleanDeadline is the time that wiping may take: 10 minutes, and 2 for each GiB, which is a quarter of what a slow disk writes.
func cleanDeadline(bytes int64) time.Duration {
	return 10*time.Minute + time.Duration(bytes/gib)*2*time.Minute
}

// cleanings are the disks that are being wiped. They are kept by the volume's uid; a death ends them, and the next start's first pass
// begins them again, since the volume is still there and Released.
type cleanings struct {
	mu      sync.Mutex
	running map[types.UID]bool
	failed  map[types.UID]*failure
	slots   chan struct{}
	wg      sync.WaitGroup
}

// failure is when a disk that could not be wiped is tried again.
type failure struct {
	times int
	next  time.Time
	said  string
}

func (c *cleanings) init() {
	c.running, c.failed, c.slots = map[types.UID]bool{}, map[types.UID]*failure{}, make(chan struct{}, cleanAtOnce)
}

func (c *cleanings) wait() { c.wg.Wait() }

// begin says whether a volume's disk is to be wiped now, and that it is.
func (c *cleanings) begin(uid types.UID, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.failed[uid]; c.running[uid] || f != nil && now.Before(f.next) {
		return false
	}
	c.running[uid] = true
	c.wg.Add(1)
	return true
}

func (c *cleanings) hasFailed(uid types.UID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed[uid] != nil
}

func (c *cleanings) gauges() (running, failed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.running), len(c.failed)
}

// clean begins to wipe the disk of a released volume, unless it is being done.
func (s *scan) clean(ctx context.Context, e *entry, pv *v1.PersistentVolume) {
	if !s.cleanings.begin(pv.UID, s.now()) {
		return
	}
	class := s.config.Classes[e.class]
	d := s.Discovery // the pass ends before this does
	// A Job that was begun is waited for, also when the configuration wants none any more.
	job, err := s.job(pv.Name)
	how := byProcess
	if e.device && (s.byJobs() || job != nil || err != nil) {
		how = byJob
	}
	go func() {
		defer d.cleanings.wg.Done()
		began := d.now()
		var took time.Duration
		var err error
		if how == byJob {
			took, err = d.cleanByJob(ctx, *e, pv, class)
		} else {
			err = d.cleanInTurn(ctx, *e, pv, class)
			took = d.now().Sub(began)
		}
		d.ended(ctx, pv, err)
		if err == nil {
			capacity := pv.Spec.Capacity[v1.ResourceStorage]
			d.metrics.cleaned(e.mode(), how, capacity.Value(), class.BlockCleaner.name(), took)
			d.log.Info("a disk was cleaned and its volume taken away", "volume", pv.Name, "path", e.path, "by", how, "took", took.Round(time.Millisecond))
		} else if ctx.Err() == nil && !errors.Is(err, errJobRuns) {
			d.metrics.deletionsFailed.WithLabelValues(string(e.mode()), how).Inc()
		}
	}()
}

// ended notes the outcome: what failed is tried again after 1 s, 2 s, 4 s, … 5 minutes, what is in use also when something changes.
func (d *Discovery) ended(ctx context.Context, pv *v1.PersistentVolume, err error) {
	c := &d.cleanings
	c.mu.Lock()
	delete(c.running, pv.UID)
	f := c.failed[pv.UID]
	var text string
	switch {
	case err == nil || ctx.Err() != nil || errors.Is(err, errJobRuns):
		delete(c.failed, pv.UID)
	default:
		if f == nil {
			f = &failure{}
			c.failed[pv.UID] = f
		}
		f.times++
		after := min(time.Second<<min(f.times-1, 20), 5*time.Minute)
		if !errors.Is(err, errInUse) && !errors.Is(err, errJobFailed) { // of these, a change may be told
			f.next = d.now().Add(after)
		}
		d.wakeIn(after + 10*time.Millisecond)
		// Just released, a volume is still being unmounted: that it is in use is told when it stays so.
		if text = fmt.Sprintf("Error cleaning PV %q: %v", pv.Name, err); text == f.said || errors.Is(err, errInUse) && f.times < 3 {
			text = ""
		} else {
			f.said = text
		}
	}
	c.mu.Unlock()
	if text != "" {
		d.opts.Events.Event(pv, v1.EventTypeWarning, reasonFailedDelete, text)
		d.log.Warn("discovery", "volume", pv.Name, "reason", reasonFailedDelete, "message", text)
	}
	if err == nil {
		d.Wake()
	}
}

// cleanInTurn waits for one of the few places, with the deadline running only from then on.
func (d *Discovery) cleanInTurn(ctx context.Context, e entry, pv *v1.PersistentVolume, class Class) error {
	select {
	case d.cleanings.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-d.cleanings.slots }()
	ctx, cancel := context.WithTimeout(ctx, d.opts.CleanWithin(e.capacity))
	defer cancel()
	if err := d.stillReleased(ctx, pv); err != nil {
		return err
	}
	var err error
	if e.device {
		err = d.cleanDevice(ctx, e, pv, class)
	} else {
		err = d.cleanDirectory(ctx, e, pv)
	}
	if err != nil {
		return err
	}
	return d.deleteVolume(ctx, pv, false)
}

// stillReleased asks the API, not the informer, which may lag: nothing is wiped that could belong to a claim.
func (d *Discovery) stillReleased(ctx context.Context, pv *v1.PersistentVolume) error {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	now, err := d.opts.Client.CoreV1().PersistentVolumes().Get(ctx, pv.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if now.UID != pv.UID || now.Status.Phase != v1.VolumeReleased || now.Spec.PersistentVolumeReclaimPolicy != v1.PersistentVolumeReclaimDelete ||
		now.Annotations[annDisk] != pv.Annotations[annDisk] {
		return fmt.Errorf("%w: the volume is %s with policy %s by now", errInUse, now.Status.Phase, now.Spec.PersistentVolumeReclaimPolicy)
	}
	ref := now.Spec.ClaimRef
	if ref == nil {
		return nil
	}
	// Who switches may have the original's role, which sees no claims. That the volume is Released says that the claim is gone; this is a
	// second look.
	claim, err := d.opts.Client.CoreV1().PersistentVolumeClaims(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err), apierrors.IsForbidden(err):
		return nil
	case err != nil:
		return err
	case claim.UID == ref.UID:
		return fmt.Errorf("%w: claim %s/%s is still there", errInUse, ref.Namespace, ref.Name)
	}
	return nil
}

// cleanDirectory empties a mounted filesystem or a bound directory.
func (d *Discovery) cleanDirectory(ctx context.Context, e entry, pv *v1.PersistentVolume) error {
	root, err := openRoot(e.look)
	if err != nil {
		return err
	}
	defer root.Close()
	m, marked, err := readMark(root)
	if err != nil {
		return err
	}
	if !marked || m.ID != pv.Annotations[annDisk] || m.Cluster != d.cluster {
		return fmt.Errorf("the disk at %s is not the one that was offered: it is not touched", e.path)
	}
	path, err := filepath.EvalSymlinks(e.look) // as the kernel names it: hostDir may be reached through a link
	if err != nil {
		return err
	}
	if err := mountedElsewhere(path); err != nil {
		return err
	}
	if users := others(mountpoint.Users(path)); len(users) > 0 {
		return fmt.Errorf("%w: %s is used by process %s", errInUse, e.path, strings.Join(users, ", "))
	}
	if err := removeContents(ctx, root, d.progress(pv)); err != nil {
		return err
	}
	return m.restore(root)
}

// others leaves this process out, which has the root open; what it does for pods is a mount, which is looked for.
func others(users []string) []string {
	own := fmt.Sprintf("%d (", os.Getpid())
	return slices.DeleteFunc(users, func(u string) bool { return strings.HasPrefix(u, own) })
}

// mountedElsewhere looks for other mounts of what is mounted at path: those of pods, mostly. A mount of something above it (the
// filesystem of a directory that is bound there) is no use of it.
func mountedElsewhere(path string) error {
	all, err := mountpoint.List()
	if err != nil {
		return err
	}
	var own *mountpoint.Entry
	for i := range all {
		if all[i].Path == path {
			own = &all[i] // the last one is on top
		}
	}
	if own == nil {
		return fmt.Errorf("%s: %w", path, errNotMounted)
	}
	for _, m := range all {
		switch {
		case strings.HasPrefix(m.Path, path+"/"):
			return fmt.Errorf("%w: something is mounted in it, at %s", errInUse, m.Path)
		case m.Path != path && m.Major == own.Major && m.Minor == own.Minor && (m.Root == own.Root || strings.HasPrefix(m.Root, strings.TrimSuffix(own.Root, "/")+"/")):
			return fmt.Errorf("%w: it is mounted at %s as well", errInUse, m.Path)
		}
	}
	return nil
}

// cleanDevice wipes a block device. It is held exclusively meanwhile: nobody can mount it.
func (d *Discovery) cleanDevice(ctx context.Context, e entry, pv *v1.PersistentVolume, class Class) error {
	f, dev, err := d.holdDevice(e, pv)
	if err != nil {
		return err
	}
	defer f.Close()
	if !d.cleanings.hasFailed(pv.UID) {
		d.opts.Events.Eventf(pv, v1.EventTypeNormal, reasonDelete, "Starting cleanup of Block PV %q, this may take a while", pv.Name)
	}
	w := wiper{f: f, dev: dev, progress: d.progress(pv), raw: modeOf(pv) == v1.PersistentVolumeBlock}
	if c := class.BlockCleaner; c.method == external {
		w.external = func() error { return d.runCleaner(ctx, pv, c.command, e.look) }
	}
	return w.wipe(ctx, class.BlockCleaner)
}

// free says whether the device is the one that was offered, and nobody has it open.
func (d device) free(e entry, pv *v1.PersistentVolume) error {
	if d.id != pv.Annotations[annDisk] {
		return fmt.Errorf("the disk at %s (%s) is not the one that was offered (%s): it is not touched", e.path, d.id, pv.Annotations[annDisk])
	}
	if users := d.openers(); len(users) > 0 {
		return fmt.Errorf("%w: %s is open in process %s", errInUse, e.path, strings.Join(users, ", "))
	}
	return nil
}

// deviceMounts names where the device is mounted, for an error.
func deviceMounts(path string) string {
	f, dev, err := openDevice(path, os.O_RDONLY)
	if err != nil {
		return ""
	}
	defer f.Close()
	all, _ := mountpoint.List()
	for _, m := range all {
		if m.Major == int(dev.major) && m.Minor == int(dev.minor) {
			return " (mounted at " + m.Path + ")"
		}
	}
	return ""
}

// progressEvery keeps events of one disk's wiping apart.
const progressEvery = 10 * time.Second

// progress returns what wiping calls with how far it is; now and then it becomes an event of the volume.
func (d *Discovery) progress(pv *v1.PersistentVolume) func(string) {
	said := d.now()
	return func(text string) {
		if d.now().Sub(said) < progressEvery {
			return
		}
		said = d.now()
		d.opts.Events.Event(pv, v1.EventTypeNormal, reasonDelete, "cleaning: "+text)
	}
}
