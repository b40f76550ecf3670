package claim

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/trace"
)

// syncClaim is the claim worker: look at the claim, decide, do it.
func (c *Controller) syncClaim(ctx context.Context, key string) error {
	defer c.settle(key)
	claim := c.claims.get(key)
	if claim == nil {
		c.waiting.remove(key)
		c.forgetClaim(key)
		return nil
	}
	claim, err := c.alignClaim(ctx, claim)
	if err != nil {
		return err
	}
	if claim.Spec.VolumeName != "" || metav1.HasAnnotation(claim.ObjectMeta, storagehelpers.AnnBindCompleted) {
		c.waiting.remove(key)
		return c.syncNamingClaim(ctx, claim)
	}
	if !c.noted.again(key+"/claimed", string(claim.UID)) {
		c.opts.Trace.Record(trace.Entry{Step: trace.Claimed, State: trace.Done, Claim: trace.Claim(claim),
			Detail: fmt.Sprintf("asks for %s", claim.Spec.Resources.Requests.Storage())})
	}
	return c.syncOpenClaim(ctx, claim)
}

// settle passes the volume that a claim was woken for on to the next, when this claim did not want it after all.
func (c *Controller) settle(key string) {
	if name, ok := c.waiting.settle(key); ok && c.volumes.isFree(name) {
		if pv := c.volumes.get(name); pv != nil {
			c.offer(pv)
		}
	}
}

func (c *Controller) forgetClaim(key string) {
	c.told.forget(key)
	c.noted.forget(key)
	c.noted.forget(key + "/claimed")
	c.ops.forget("provision/" + key)
}

// syncNamingClaim works on a claim that names its volume, bound or not.
func (c *Controller) syncNamingClaim(ctx context.Context, claim *v1.PersistentVolumeClaim) error {
	name := claim.Spec.VolumeName
	pv := c.volumes.get(name)
	v := decideClaim(claimView{claim: claim, named: pv})
	if v.act != actBind {
		return c.apply(ctx, claim, v)
	}
	if isBound(pv, claim) {
		c.forgetClaim(keyOf(claim))
		return nil
	}
	pv, release, err := c.volumes.hold(name, "claim "+keyOf(claim), "binding", c.wakeClaim(claim))
	if err != nil {
		return err
	}
	defer release()
	// Decide again on what the volume is now that nobody else writes it.
	return c.apply(ctx, claim, decideClaim(claimView{claim: claim, named: pv}))
}

// syncOpenClaim works on a claim that will take any volume that matches, or one made for it.
func (c *Controller) syncOpenClaim(ctx context.Context, claim *v1.PersistentVolumeClaim) error {
	view := claimView{claim: claim}
	var err error
	if name := storagehelpers.GetPersistentVolumeClaimClass(claim); name != "" {
		if view.class, err = c.classNamed(ctx, name); err != nil {
			return err
		}
		if view.class != nil && view.class.VolumeBindingMode == nil {
			return fmt.Errorf("VolumeBindingMode not set for StorageClass %q", name)
		}
	}
	delay := delays(view.class)
	var release func()
	view.match, release, err = c.volumes.match(claim, delay, c.wakeClaim(claim))
	if err != nil {
		return fmt.Errorf("find a volume for claim %q: %w", keyOf(claim), err)
	}
	if view.match != nil {
		defer release()
		c.waiting.remove(keyOf(claim))
		if view.match.Spec.ClaimRef == nil {
			c.opts.Trace.Record(trace.Entry{Step: trace.Matched, State: trace.Done, Claim: trace.Claim(claim), Volume: view.match.Name,
				Detail: fmt.Sprintf("volume %s with %s is the smallest that fits", view.match.Name, view.match.Spec.Capacity.Storage())})
		}
		err := c.apply(ctx, claim, decideClaim(view))
		c.stats.failed("provision", keyOf(claim), err)
		return err
	}

	if err := c.addAlternatives(&view); err != nil {
		return err
	}
	if err := c.apply(ctx, claim, decideClaim(view)); err != nil {
		return err
	}
	want, err := requestOf(claim)
	if err != nil {
		return err
	}
	c.waiting.add(keyOf(claim), want, delay)
	// A volume that became free between the search and getting in line had nobody to be offered to.
	if !delay && c.volumes.hasMatch(want) {
		c.claimQueue.Add(keyOf(claim))
	}
	return nil
}

// addAlternatives fills in what matters only when no volume was found.
func (c *Controller) addAlternatives(view *claimView) (err error) {
	if delays(view.class) {
		view.unscheduled, err = c.pods.unscheduled(keyOf(view.claim))
		return err
	}
	if view.class != nil {
		return nil
	}
	classes, err := c.class.List(labels.Everything())
	if err != nil {
		return err
	}
	view.fallback = defaultClass(classes)
	for _, class := range classes {
		view.classes = append(view.classes, class.Name)
	}
	return nil
}

// apply does what was decided. For actBind the caller holds the volume.
func (c *Controller) apply(ctx context.Context, claim *v1.PersistentVolumeClaim, v verdict) error {
	switch v.act {
	case actBind:
		return c.bind(ctx, v.volume, claim)
	case actProvision:
		return c.provision(ctx, claim, v.class)
	case actAdopt:
		return c.adoptClass(ctx, claim, v.class)
	case actLose:
		if claim.Status.Phase == v1.ClaimLost {
			return nil
		}
		lost, err := c.setClaimPhase(ctx, claim, v1.ClaimLost)
		if err != nil {
			return err
		}
		c.event(lost, v.notice)
		c.opts.Trace.Record(trace.Entry{Step: trace.Bound, State: trace.Failed, Claim: trace.Claim(claim),
			Volume: claim.Spec.VolumeName, Detail: v.notice.message})
		return nil
	}
	c.waits(claim, trace.Matched, v.waiting, v.notice)
	if v.act == actRefuse {
		return fmt.Errorf("claim %q: %s", keyOf(claim), v.waiting)
	}
	_, err := c.setClaimPhase(ctx, claim, v1.ClaimPending)
	return err
}

// adoptClass gives a claim without a class the default one, also long after it was made (upstream's retroactive
// default), and works on it again.
func (c *Controller) adoptClass(ctx context.Context, claim *v1.PersistentVolumeClaim, class *storagev1.StorageClass) error {
	p := newPatch(claim).guarded(claim).spec(map[string]any{"storageClassName": class.Name})
	err := boundary.Do("claim/default-class", func() (err error) {
		claim, err = c.opts.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType, p.json(), metav1.PatchOptions{})
		return err
	})
	c.stats.retroactive(err)
	if err != nil {
		return fmt.Errorf("give claim the default StorageClass %q: %w", class.Name, err)
	}
	c.claims.put(claim)
	c.claimQueue.Add(keyOf(claim))
	return nil
}

// classNamed returns the class, nil when there is none. A miss in the cache is checked against the API: a class is
// often applied in the same breath as its first claim, and the user should not read that it does not exist.
func (c *Controller) classNamed(ctx context.Context, name string) (*storagev1.StorageClass, error) {
	class, err := c.class.Get(name)
	if apierrors.IsNotFound(err) {
		class, err = c.opts.Client.StorageV1().StorageClasses().Get(ctx, name, metav1.GetOptions{})
	}
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read StorageClass %q: %w", name, err)
	}
	return class, nil
}

func (c *Controller) wakeClaim(claim *v1.PersistentVolumeClaim) func() {
	key := keyOf(claim)
	return func() { c.claimQueue.Add(key) }
}
