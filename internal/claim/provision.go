package claim

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/trace"
)

// provision has a volume made for the claim: by the external provisioner that its class names, or by a plugin.
func (c *Controller) provision(ctx context.Context, claim *v1.PersistentVolumeClaim, class *storagev1.StorageClass) error {
	name := class.Provisioner
	if driver := migratedTo(name); driver != "" {
		return c.handOver(ctx, claim, driver)
	}
	p, err := c.opts.Plugins.Provisioner(name)
	switch {
	case err == nil:
		key := keyOf(claim)
		c.stats.begin("provision", key, name)
		c.ops.start("provision/"+key, func(after time.Duration) { c.claimQueue.AddAfter(key, after) }, func(ctx context.Context) error {
			err := c.provisionInTree(ctx, claim, class, p)
			c.stats.failed("provision", key, err)
			return err
		})
		return nil
	case !strings.HasPrefix(name, inTree):
		return c.handOver(ctx, claim, name)
	case name == storagehelpers.NotSupportedProvisioner:
		c.waits(claim, trace.Matched, fmt.Sprintf("no volume matches, and volumes of StorageClass %q are not made on demand: create one of this class", class.Name),
			warning(reasonProvisioningFailed, fmt.Sprintf("%v: volumes of StorageClass %q are not made on demand, create one", err, class.Name)))
	default:
		c.waits(claim, trace.Matched, fmt.Sprintf("StorageClass %q names the provisioner %q, which does not exist here", class.Name, name),
			warning(reasonProvisioningFailed, err.Error()))
	}
	return nil
}

// handOver tells an external provisioner that the claim is its to serve, in one write that says nothing else.
func (c *Controller) handOver(ctx context.Context, claim *v1.PersistentVolumeClaim, provisioner string) error {
	key := keyOf(claim)
	c.stats.begin("provision", key, provisioner)
	if _, err := c.nameProvisioner(ctx, claim, provisioner); err != nil {
		c.stats.failed("provision", key, err)
		c.event(claim, warning(reasonProvisioningFailed, fmt.Sprintf("Error saving claim: %v", err)))
		return err
	}
	n := normal(reasonExternalProvisioning, fmt.Sprintf("Waiting for a volume to be created either by the external provisioner '%s' "+
		"or manually by the system administrator. If volume creation is delayed, please verify that "+
		"the provisioner is running and correctly registered.", provisioner))
	if !c.told.again(key, n.reason+n.message) {
		c.event(claim, n)
	}
	if detail := "handed to provisioner " + provisioner; !c.noted.again(key, detail) {
		c.opts.Trace.Record(trace.Entry{Step: trace.Matched, State: trace.Done, Claim: trace.Claim(claim), Detail: detail,
			Node: claim.Annotations[storagehelpers.AnnSelectedNode]})
	}
	return nil
}

// nameProvisioner annotates the claim with its provisioner, under the current and the old name of the annotation.
func (c *Controller) nameProvisioner(ctx context.Context, claim *v1.PersistentVolumeClaim, provisioner string) (*v1.PersistentVolumeClaim, error) {
	if claim.Annotations[storagehelpers.AnnStorageProvisioner] == provisioner {
		return claim, nil
	}
	p := newPatch(claim).
		annotate(storagehelpers.AnnBetaStorageProvisioner, provisioner).
		annotate(storagehelpers.AnnStorageProvisioner, provisioner)
	err := boundary.Do("claim/name-provisioner", func() (err error) {
		claim, err = c.opts.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType, p.json(), metav1.PatchOptions{})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("name the provisioner of claim: %w", err)
	}
	c.claims.put(claim)
	return claim, nil
}

// provisionInTree makes a volume with a plugin and the PersistentVolume for it. It is idempotent: the volume's name
// comes from the claim's UID, so what a crash left is found again by the plugin or by the API.
func (c *Controller) provisionInTree(ctx context.Context, claim *v1.PersistentVolumeClaim, class *storagev1.StorageClass, p plugin.Provisioner) error {
	fail := func(message string, err error) error {
		c.event(claim, warning(reasonProvisioningFailed, message))
		if detail := message; !c.noted.again(keyOf(claim), detail) {
			c.opts.Trace.Record(trace.Entry{Step: trace.Provisioned, State: trace.Failed, Claim: trace.Claim(claim), Detail: detail})
		}
		return err
	}
	if claim.Spec.DataSource != nil && p.Name() != "kubernetes.io/csi" {
		msg := fmt.Sprintf("plugin %q is not a CSI plugin. Only CSI plugin can provision a claim with a datasource", p.Name())
		return fail(msg, errors.New(msg))
	}
	claim, err := c.nameProvisioner(ctx, claim, class.Provisioner)
	if err != nil {
		return err
	}
	name := "pvc-" + string(claim.UID)
	if _, err := c.opts.Client.CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{}); err == nil {
		return nil // made before
	} else if !apierrors.IsNotFound(err) {
		return fmt.Errorf("read volume %s: %w", name, err)
	}
	if len(class.MountOptions) > 0 && !p.SupportsMountOptions() {
		return fail(fmt.Sprintf("Mount options are not supported by the provisioner but StorageClass %q has mount options %v", class.Name, class.MountOptions),
			fmt.Errorf("provisioner %q doesn't support mount options", p.Name()))
	}
	r := plugin.ProvisionRequest{
		VolumeName: name, Claim: claim, Parameters: class.Parameters, MountOptions: class.MountOptions,
		ReclaimPolicy:     ptr.Deref(class.ReclaimPolicy, v1.PersistentVolumeReclaimDelete),
		AllowedTopologies: class.AllowedTopologies,
	}
	if node := claim.Annotations[storagehelpers.AnnSelectedNode]; node != "" {
		if r.SelectedNode, err = c.nodes.Get(node); err != nil {
			return fail(fmt.Sprintf("Failed to get target node: %v", err), err)
		}
	}
	c.opts.Trace.Record(trace.Entry{Step: trace.Provisioned, State: trace.Began, Claim: trace.Claim(claim), Detail: "by plugin " + p.Name()})
	var pv *v1.PersistentVolume
	err = boundary.Do("claim/provision-in-tree", func() (err error) {
		pv, err = p.Provision(ctx, r)
		return err
	})
	if err != nil {
		c.reschedule(ctx, claim)
		return fail(fmt.Sprintf("Failed to provision volume with StorageClass %q: %v", class.Name, err), err)
	}
	completeProvisioned(pv, name, claim, class, p.Name())
	if err := c.createVolume(ctx, pv); err != nil {
		return c.giveUpProvisioned(ctx, claim, pv, p, err)
	}
	c.event(claim, normal(reasonProvisioningSucceeded, fmt.Sprintf("Successfully provisioned volume %s using %s", pv.Name, p.Name())))
	c.opts.Trace.Record(trace.Entry{Step: trace.Provisioned, State: trace.Done, Claim: trace.Claim(claim), Volume: pv.Name, Detail: "by plugin " + p.Name()})
	return nil
}

// completeProvisioned makes a plugin's volume the claim's.
func completeProvisioned(pv *v1.PersistentVolume, name string, claim *v1.PersistentVolumeClaim, class *storagev1.StorageClass, pluginName string) {
	if pv.Name == "" {
		pv.Name = name
	}
	pv.Spec.ClaimRef = &v1.ObjectReference{
		Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: claim.Namespace, Name: claim.Name,
		UID: claim.UID, ResourceVersion: claim.ResourceVersion,
	}
	pv.Spec.StorageClassName = class.Name
	pv.Status.Phase = v1.VolumeBound // the API server starts it as Pending all the same
	metav1.SetMetaDataAnnotation(&pv.ObjectMeta, storagehelpers.AnnBoundByController, "yes")
	metav1.SetMetaDataAnnotation(&pv.ObjectMeta, storagehelpers.AnnDynamicallyProvisioned, pluginName)
	if pv.Spec.PersistentVolumeReclaimPolicy == v1.PersistentVolumeReclaimDelete {
		pv.Finalizers = []string{storagehelpers.PVDeletionInTreeProtectionFinalizer}
	}
}

// createPauses are the waits between attempts to create the PersistentVolume of a volume that exists already.
var createPauses = []time.Duration{100 * time.Millisecond, 400 * time.Millisecond, 1600 * time.Millisecond, 6400 * time.Millisecond}

func (c *Controller) createVolume(ctx context.Context, pv *v1.PersistentVolume) error {
	for try := 0; ; try++ {
		var made *v1.PersistentVolume
		err := boundary.Do("claim/create-volume", func() (err error) {
			made, err = c.opts.Client.CoreV1().PersistentVolumes().Create(ctx, pv, metav1.CreateOptions{})
			return err
		})
		if err == nil {
			c.volumes.put(made)
			c.volumeQueue.Add(made.Name)
			c.claimQueue.Add(keyOfRef(made.Spec.ClaimRef))
			return nil
		}
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		if try == len(createPauses) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(createPauses[try]):
		}
	}
}

// giveUpProvisioned deletes a volume that the API does not take, so that nothing is left that nobody knows of.
func (c *Controller) giveUpProvisioned(ctx context.Context, claim *v1.PersistentVolumeClaim, pv *v1.PersistentVolume, p plugin.Provisioner, cause error) error {
	if ctx.Err() != nil {
		return cause // stopping: the next start finds the volume by its name and tries again
	}
	c.event(claim, warning(reasonProvisioningFailed, fmt.Sprintf("Error creating provisioned PV object for claim %s: %v. Deleting the volume.", keyOf(claim), cause)))
	d, ok := p.(plugin.Deleter)
	if !ok {
		return cause
	}
	var err error
	for try := 0; try <= len(createPauses); try++ {
		if try > 0 {
			select {
			case <-ctx.Done():
				return cause
			case <-time.After(createPauses[try-1]):
			}
		}
		err = boundary.Do("claim/undo-provision", func() error { return d.Delete(ctx, pv) })
		if err == nil {
			return nil
		}
	}
	c.event(claim, warning(reasonProvisioningCleanupFailed, fmt.Sprintf("Error cleaning provisioned volume for claim %s: %v. Please delete manually.", keyOf(claim), err)))
	return nil
}

// reschedule takes the chosen node from a claim that could not be provisioned there, which asks the scheduler for
// another. It is best effort: the scheduler gives up waiting as well.
func (c *Controller) reschedule(ctx context.Context, claim *v1.PersistentVolumeClaim) {
	if _, ok := claim.Annotations[storagehelpers.AnnSelectedNode]; !ok {
		return
	}
	p := newPatch(claim).annotate(storagehelpers.AnnSelectedNode, nil)
	err := boundary.Do("claim/take-selected-node", func() (err error) {
		claim, err = c.opts.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType, p.json(), metav1.PatchOptions{})
		return err
	})
	if err != nil {
		c.opts.Log.Warn("could not ask for another node", "claim", keyOf(claim), "error", err)
		return
	}
	c.claims.put(claim)
}
