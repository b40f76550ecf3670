package provision

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	libprov "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/trace"
)

// Finalizer on a claim says: CreateVolume may have been asked for this claim, and no PersistentVolume tells of it yet.
//
// The sidecars write nothing before CreateVolume. When the process dies between the RPC and the PersistentVolume, and
// the claim is deleted meanwhile, nobody knows of the volume any more (external-provisioner #486). With the finalizer the
// claim stays until the question is answered: the library asks CreateVolume again (idempotent by the volume's name),
// stores the PersistentVolume, and the ordinary reclaim deletes both.
//
// The finalizer costs one write before CreateVolume and one off the hot path, also for a driver whose volumes could be
// found by their names: a volume of which neither claim nor PersistentVolume tells may be one that somebody keeps (policy
// Retain, and its PersistentVolume deleted; an API restored from a backup). `berth orphans` names it; nobody deletes it
// unasked.
const Finalizer = "storage.berth.io/provisioning"

// releaseDelay keeps the finalizer's removal out of the rush in which the claim's pod is mounted.
const releaseDelay = time.Second

// volumeName is the PersistentVolume's name and CreateVolume's: the same for every attempt, which makes them idempotent.
func volumeName(uid types.UID) string { return "pvc-" + string(uid) }

// outcome is what this process knows of the latest CreateVolume of a claim.
type outcome int

const (
	running outcome = iota
	uncertain
	failed  // finally: there is no volume
	created // there is one, and its PersistentVolume is about to be stored
)

type attempt struct {
	outcome outcome
	intent  bool   // the finalizer is known to be there
	reason  string // the last failure recorded
	key     string
	driver  string
}

// intents keeps the finalizer true. One queue for all drivers; a key is a claim.
type intents struct {
	m     *Manager
	queue workqueue.TypedRateLimitingInterface[string]

	mu       sync.Mutex
	attempts map[types.UID]*attempt
	warned   map[types.UID]string
}

func newIntents(m *Manager) *intents {
	return &intents{m: m, queue: newQueue("provision-intent"), attempts: map[types.UID]*attempt{}, warned: map[types.UID]string{}}
}

func (n *intents) handlers() (claims, volumes cache.ResourceEventHandler) {
	claims = cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { n.claimSeen(o.(*v1.PersistentVolumeClaim)) },
		UpdateFunc: func(_, o any) { n.claimSeen(o.(*v1.PersistentVolumeClaim)) },
		DeleteFunc: func(o any) {
			if c, ok := last(o).(*v1.PersistentVolumeClaim); ok {
				n.claimGone(c)
			}
		},
	}
	volumes = cache.ResourceEventHandlerFuncs{AddFunc: func(o any) { n.volumeSeen(o.(*v1.PersistentVolume)) }}
	return claims, volumes
}

func (n *intents) claimSeen(c *v1.PersistentVolumeClaim) {
	if !slices.Contains(c.Finalizers, Finalizer) {
		return
	}
	switch key := cache.MetaObjectToName(c).String(); {
	case c.DeletionTimestamp != nil:
		n.queue.Add(key)
	case c.Status.Phase == v1.ClaimBound:
		n.queue.AddAfter(key, releaseDelay)
	}
}

func (n *intents) claimGone(c *v1.PersistentVolumeClaim) {
	n.mu.Lock()
	a := n.attempts[c.UID]
	if a != nil && a.outcome == failed {
		delete(n.attempts, c.UID)
	}
	delete(n.warned, c.UID)
	n.mu.Unlock()
}

// volumeSeen: the PersistentVolume tells of the volume from now on.
func (n *intents) volumeSeen(pv *v1.PersistentVolume) {
	if pv.Spec.ClaimRef == nil || pv.Name != volumeName(pv.Spec.ClaimRef.UID) {
		return
	}
	n.mu.Lock()
	_, ours := n.attempts[pv.Spec.ClaimRef.UID]
	delete(n.attempts, pv.Spec.ClaimRef.UID)
	n.mu.Unlock()
	if c, err := n.m.claims.PersistentVolumeClaims(pv.Spec.ClaimRef.Namespace).Get(pv.Spec.ClaimRef.Name); err == nil && (ours || c.DeletionTimestamp != nil) {
		n.claimSeen(c)
	}
}

// begin makes the claim carry the intent before CreateVolume is asked for it.
func (n *intents) begin(ctx context.Context, r *role, c *v1.PersistentVolumeClaim) error {
	n.mu.Lock()
	a := n.attempts[c.UID]
	if a == nil {
		a = &attempt{key: cache.MetaObjectToName(c).String(), driver: r.driver.Name}
		n.attempts[c.UID] = a
	}
	known := a.intent || slices.Contains(c.Finalizers, Finalizer)
	before := a.outcome
	a.outcome = running
	n.mu.Unlock()
	if known {
		return nil
	}
	err := n.patch(ctx, c, func(patch []byte) error {
		return boundary.Do("provision/write-intent", func() error {
			_, err := n.m.opts.Client.CoreV1().PersistentVolumeClaims(c.Namespace).Patch(ctx, c.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
			return err
		})
	}, "finalizers", []string{Finalizer})
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		if before == running { // nothing was asked yet
			before = failed
		}
		a.outcome = before
		return fmt.Errorf("write the intent to provision on claim %s: %w", a.key, err)
	}
	a.intent = true
	return nil
}

// patch applies a change of metadata that is refused when the claim of this name is another one by now.
func (n *intents) patch(_ context.Context, c *v1.PersistentVolumeClaim, send func([]byte) error, field string, value any) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": c.UID, field: value}})
	if err != nil {
		return err
	}
	return send(patch)
}

// end records what became of an attempt; it reports whether reason is news.
func (n *intents) end(c *v1.PersistentVolumeClaim, o outcome, reason string) (news bool) {
	n.mu.Lock()
	a := n.attempts[c.UID]
	if a == nil { // the PersistentVolume was seen before we were back
		n.mu.Unlock()
		return true
	}
	a.outcome = o
	news = o == created || a.reason != reason
	a.reason = reason
	n.mu.Unlock()
	if cur, err := n.m.claims.PersistentVolumeClaims(c.Namespace).Get(c.Name); err == nil && cur.UID == c.UID {
		if cur.DeletionTimestamp != nil {
			n.queue.Add(a.key)
		}
	} else if o == failed {
		n.mu.Lock()
		delete(n.attempts, c.UID)
		n.mu.Unlock()
	}
	return news
}

// attemptOf is a copy of what is known of the claim's latest attempt.
func (n *intents) attemptOf(uid types.UID) (attempt, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a := n.attempts[uid]; a != nil {
		return *a, true
	}
	return attempt{}, false
}

// mustFinish says of a claim that is being deleted whether provisioning must go on all the same: CreateVolume may have
// made a volume that no PersistentVolume tells of.
func (n *intents) mustFinish(c *v1.PersistentVolumeClaim) bool {
	if a, ok := n.attemptOf(c.UID); ok {
		return a.outcome == running || a.outcome == uncertain
	}
	return slices.Contains(c.Finalizers, Finalizer)
}

// refused lists the claims of a driver whose last attempt failed finally.
func (n *intents) refused(driver string) (keys []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range n.attempts {
		if a.driver == driver && a.outcome == failed {
			keys = append(keys, a.key)
		}
	}
	return keys
}

func (n *intents) run(ctx context.Context, workers int) {
	work(ctx, n.queue, workers, n.settle)
}

// settle removes the finalizer of one claim when its question is answered.
func (n *intents) settle(ctx context.Context, key string) error {
	ns, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return nil
	}
	c, err := n.m.claims.PersistentVolumeClaims(ns).Get(name)
	if err != nil || !slices.Contains(c.Finalizers, Finalizer) {
		return nil
	}
	answered, err := n.answered(ctx, c)
	if err != nil || !answered {
		return err
	}
	err = n.patch(ctx, c, func(patch []byte) error {
		return boundary.Do("provision/remove-intent", func() error {
			_, err := n.m.opts.Client.CoreV1().PersistentVolumeClaims(ns).Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
			return err
		})
	}, "$deleteFromPrimitiveList/finalizers", []string{Finalizer})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // gone, or another claim of this name
	}
	if err == nil {
		n.mu.Lock()
		if a := n.attempts[c.UID]; a != nil && a.outcome != created {
			delete(n.attempts, c.UID)
		}
		n.mu.Unlock()
	}
	return err
}

// answered says whether it is known what became of CreateVolume: a PersistentVolume tells, or there is no volume.
func (n *intents) answered(ctx context.Context, c *v1.PersistentVolumeClaim) (bool, error) {
	if c.DeletionTimestamp == nil {
		return c.Status.Phase == v1.ClaimBound, nil
	}
	if _, err := n.m.volumes.Get(volumeName(c.UID)); err == nil {
		return true, nil
	}
	if a, ok := n.attemptOf(c.UID); ok {
		return a.outcome == failed, nil // otherwise the attempt's end, or the PersistentVolume, wakes us
	}
	// Only an earlier process knew. The cache may lag behind its last write.
	_, err := n.m.opts.Client.CoreV1().PersistentVolumes().Get(ctx, volumeName(c.UID), metav1.GetOptions{})
	if err == nil {
		return true, nil
	}
	if !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("look for the volume of claim %s/%s: %w", c.Namespace, c.Name, err)
	}
	return n.askable(c)
}

// askable finds out whether the library is going to ask CreateVolume again for a deleted claim, and says so when it
// cannot. True means that there is nothing to ask.
func (n *intents) askable(c *v1.PersistentVolumeClaim) (settled bool, err error) {
	driver := provisionerOf(c)
	class, err := n.m.classes.Get(className(c))
	switch {
	case err != nil || class.Provisioner != driver:
		n.waitFor(c, fmt.Sprintf("the claim was deleted while driver %s may have been creating its volume; to find out, its StorageClass %q is needed: create it again, or remove the finalizer %s when the driver holds no volume %s",
			driver, className(c), Finalizer, volumeName(c.UID)))
		return false, nil
	case class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer && c.Annotations[annSelectedNode] == "":
		return true, nil // handed back to the scheduler, which happens only after a final error
	case !n.m.serves(driver):
		n.waitFor(c, fmt.Sprintf("the claim was deleted while driver %s may have been creating its volume; waiting for the driver to come back to find out", driver))
		return false, nil
	}
	return false, nil
}

func (n *intents) waitFor(c *v1.PersistentVolumeClaim, reason string) {
	n.mu.Lock()
	told := n.warned[c.UID] == reason
	n.warned[c.UID] = reason
	n.mu.Unlock()
	if told {
		return
	}
	n.m.opts.Trace.Record(trace.Entry{Step: trace.Deleted, State: trace.Waiting, Detail: reason, Claim: trace.Claim(c)})
	if n.m.opts.Events != nil {
		n.m.opts.Events.Event(c, v1.EventTypeWarning, "ProvisioningCleanupFailed", reason)
	}
}

// wake looks again at the claims that a driver's absence may have held up.
func (n *intents) wake() {
	for _, o := range n.m.claimIndex.List() {
		if c, ok := o.(*v1.PersistentVolumeClaim); ok {
			n.claimSeen(c)
		}
	}
}

// asked is what one run of the library's Provision did: its errors before the RPC say nothing about the volume.
type asked struct{ create bool }

type askedKey struct{}

func noteAsked(ctx context.Context, req any) {
	if _, ok := req.(*csi.CreateVolumeRequest); !ok {
		return
	}
	if a, ok := ctx.Value(askedKey{}).(*asked); ok {
		a.create = true
	}
}

// outcomeOf reads the library's answer. Before is the outcome of the attempt before, if there was one.
func outcomeOf(err error, state libprov.ProvisioningState, a asked, before outcome) outcome {
	switch {
	case err == nil:
		return created
	case !a.create:
		return before
	case state == libprov.ProvisioningFinished || state == libprov.ProvisioningReschedule:
		return failed
	}
	return uncertain
}
