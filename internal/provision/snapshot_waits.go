package provision

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	snaputils "github.com/kubernetes-csi/external-snapshotter/v8/pkg/utils"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"berth.io/berth/internal/trace"
)

// tellAfter lets a snapshot's caches settle before anything is said about it: what is applied together comes one by one.
const tellAfter = 250 * time.Millisecond

// snapshotWaits says why a snapshot is not taken: as an event on it, and in the journey of its volume. The common
// controller says some of it, in the API's words; of a driver that cannot take snapshots nobody says anything.
type snapshotWaits struct {
	m     *Manager
	queue workqueue.TypedRateLimitingInterface[string]
	told  reasons // by the snapshot's uid
}

func newSnapshotWaits(m *Manager) *snapshotWaits {
	return &snapshotWaits{m: m, queue: newQueue("provision-snapshot-waits")}
}

func (w *snapshotWaits) seen(s *snapv1.VolumeSnapshot) {
	if !w.m.has(SnapshotController) {
		return // who binds snapshots tells what they wait for
	}
	if !isReady(s) && s.DeletionTimestamp == nil {
		w.queue.AddAfter(s.Namespace+"/"+s.Name, tellAfter)
	} else if isReady(s) {
		w.told.Remove(string(s.UID))
	}
}

// gone ends the step in the journey of a snapshot that was given up.
func (w *snapshotWaits) gone(s *snapv1.VolumeSnapshot) {
	open := w.told.Remove(string(s.UID))
	w.m.mu.Lock()
	for _, r := range w.m.roles {
		open = r.forgetSnapshot(string(s.UID)) || open
	}
	w.m.mu.Unlock()
	if !open || s.Spec.Source.PersistentVolumeClaimName == nil {
		return
	}
	f := w.facts(s)
	e := trace.Entry{Step: trace.Snapshotted, State: trace.Done, Detail: "snapshot " + s.Name + " was deleted before it was ready", Claim: trace.Claim(f.claim)}
	if f.claim == nil {
		e.Claim = trace.ObjectRef{Namespace: s.Namespace, Name: *s.Spec.Source.PersistentVolumeClaimName}
	}
	if f.volume != nil {
		e.Volume = f.volume.Name
	}
	w.m.opts.Trace.Record(e)
}

func (w *snapshotWaits) tell(_ context.Context, key string) error {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return nil
	}
	s, err := w.m.opts.SnapInformers.Snapshot().V1().VolumeSnapshots().Lister().VolumeSnapshots(namespace).Get(name)
	if err != nil {
		return nil
	}
	f := w.facts(s)
	why := f.waitsFor()
	if why == "" || !w.told.Add(string(s.UID), why) {
		return nil
	}
	e := trace.Entry{Step: trace.Snapshotted, State: trace.Waiting, Detail: "snapshot " + name + ": " + why, Claim: trace.Claim(f.claim)}
	if f.claim == nil && s.Spec.Source.PersistentVolumeClaimName != nil {
		e.Claim = trace.ObjectRef{Namespace: namespace, Name: *s.Spec.Source.PersistentVolumeClaimName}
	}
	if f.volume != nil {
		e.Volume = f.volume.Name
	}
	w.m.opts.Trace.Record(e)
	if w.m.opts.Events != nil {
		w.m.opts.Events.Event(s, v1.EventTypeWarning, "SnapshotWaiting", why)
	}
	return nil
}

// snapshotFacts is what decides whether a snapshot can be taken; what is not there is nil.
type snapshotFacts struct {
	snapshot *snapv1.VolumeSnapshot
	claim    *v1.PersistentVolumeClaim
	volume   *v1.PersistentVolume
	classes  []*snapv1.VolumeSnapshotClass
	// driver of the volume: whether it is there, and whether it can take snapshots.
	registered, capable bool
}

func (w *snapshotWaits) facts(s *snapv1.VolumeSnapshot) snapshotFacts {
	m := w.m
	f := snapshotFacts{snapshot: s}
	if s.Spec.Source.PersistentVolumeClaimName == nil {
		return f
	}
	f.claim, _ = m.claims.PersistentVolumeClaims(s.Namespace).Get(*s.Spec.Source.PersistentVolumeClaimName)
	f.classes, _ = m.opts.SnapInformers.Snapshot().V1().VolumeSnapshotClasses().Lister().List(labels.Everything())
	if f.claim == nil || f.claim.Spec.VolumeName == "" {
		return f
	}
	f.volume, _ = m.volumes.Get(f.claim.Spec.VolumeName)
	if f.volume == nil || f.volume.Spec.CSI == nil {
		return f
	}
	if r := m.role(f.volume.Spec.CSI.Driver); r != nil && r.ready() {
		f.registered, f.capable = true, r.takesSnapshots
	}
	return f
}

// waitsFor is why the snapshot is not taken, with what to do about it; "" when nothing stands in its way.
func (f snapshotFacts) waitsFor() string {
	s := f.snapshot
	if isReady(s) || s.DeletionTimestamp != nil || snaputils.IsVolumeGroupSnapshotMember(s) {
		return ""
	}
	if name := s.Spec.Source.VolumeSnapshotContentName; name != nil {
		if s.Status != nil && s.Status.BoundVolumeSnapshotContentName != nil {
			return ""
		}
		return fmt.Sprintf("VolumeSnapshotContent %q is not there, or not for this snapshot", *name)
	}
	if s.Spec.Source.PersistentVolumeClaimName == nil {
		return "it has no source: name a claim in spec.source.persistentVolumeClaimName"
	}
	claim := *s.Spec.Source.PersistentVolumeClaimName
	bound := s.Status != nil && s.Status.BoundVolumeSnapshotContentName != nil
	switch c := f.claim; {
	case bound && f.volume == nil: // it is being taken; the claim may go meanwhile
		return ""
	case c == nil:
		return fmt.Sprintf("claim %s does not exist in namespace %s", claim, s.Namespace)
	case c.DeletionTimestamp != nil && !slices.Contains(c.Finalizers, snaputils.PVCFinalizer):
		return fmt.Sprintf("claim %s is being deleted: no snapshot of it can be taken any more", claim)
	case c.Status.Phase != v1.ClaimBound:
		return fmt.Sprintf("claim %s is not bound to a volume yet (%s); its snapshot is taken as soon as it is", claim, orPending(c.Status.Phase))
	case f.volume == nil:
		return fmt.Sprintf("volume %s of claim %s does not exist", c.Spec.VolumeName, claim)
	case f.volume.Spec.CSI == nil:
		return fmt.Sprintf("volume %s of claim %s belongs to no CSI driver: there are no snapshots of such volumes", f.volume.Name, claim)
	}
	driver := f.volume.Spec.CSI.Driver
	switch {
	case !f.registered:
		return fmt.Sprintf("driver %s of claim %s is not registered; its snapshot is taken when the driver comes", driver, claim)
	case !f.capable:
		return fmt.Sprintf("driver %s of claim %s cannot take snapshots (it has no CREATE_DELETE_SNAPSHOT)", driver, claim)
	}
	if why := f.classProblem(driver); why != "" {
		return why
	}
	if s.Status != nil && s.Status.Error != nil && s.Status.Error.Message != nil && !strings.Contains(*s.Status.Error.Message, driverSaid) {
		return *s.Status.Error.Message
	}
	return ""
}

// driverSaid is in the error of a driver's refusal, which the journey has already (tracedSnapshotter).
const driverSaid = "failed to take snapshot of the volume"

func orPending(p v1.PersistentVolumeClaimPhase) v1.PersistentVolumeClaimPhase {
	if p == "" {
		return v1.ClaimPending
	}
	return p
}

func (f snapshotFacts) classProblem(driver string) string {
	var own, defaults []string
	for _, c := range f.classes {
		if c.Driver != driver {
			continue
		}
		own = append(own, c.Name)
		if snaputils.IsVolumeSnapshotClassDefaultAnnotation(c.ObjectMeta) {
			defaults = append(defaults, c.Name)
		}
	}
	slices.Sort(own)
	slices.Sort(defaults)
	there := "driver " + driver + " has none: make one"
	if len(own) > 0 {
		there = "driver " + driver + " has " + strings.Join(own, ", ")
	}
	if want := f.snapshot.Spec.VolumeSnapshotClassName; want != nil {
		at := slices.IndexFunc(f.classes, func(c *snapv1.VolumeSnapshotClass) bool { return c.Name == *want })
		switch {
		case at < 0:
			return fmt.Sprintf("VolumeSnapshotClass %q does not exist; %s", *want, there)
		case f.classes[at].Driver != driver:
			return fmt.Sprintf("VolumeSnapshotClass %q is of driver %s, and the volume is of driver %s; %s", *want, f.classes[at].Driver, driver, there)
		}
		return ""
	}
	switch len(defaults) {
	case 0:
		return fmt.Sprintf("it names no VolumeSnapshotClass, and none of driver %s is the default; %s", driver, there)
	case 1:
		return ""
	}
	return fmt.Sprintf("it names no VolumeSnapshotClass, and driver %s has several defaults: %s", driver, strings.Join(defaults, ", "))
}
