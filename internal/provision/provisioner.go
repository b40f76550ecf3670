package provision

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"slices"

	attctl "github.com/kubernetes-csi/external-attacher/v4/pkg/controller"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	libprov "sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/trace"
)

// provisioner stands between sig-storage-lib's controller and external-provisioner's CSI calls: it writes the intent,
// records the journey, and decides on claims and volumes that are being deleted.
type provisioner struct {
	libprov.Provisioner
	r *role
}

var (
	_ libprov.Qualifier        = &provisioner{}
	_ libprov.DeletionGuard    = &provisioner{}
	_ libprov.BlockProvisioner = &provisioner{}
)

// ShouldProvision leaves out claims that are being deleted, which upstream would still provision for, except where a
// volume may exist already that nothing tells of.
func (p *provisioner) ShouldProvision(ctx context.Context, c *v1.PersistentVolumeClaim) bool {
	if c.DeletionTimestamp != nil && !p.r.m.intents.mustFinish(c) {
		return false
	}
	if a, ok := p.r.m.intents.attemptOf(c.UID); ok && a.outcome == created {
		return false // its PersistentVolume is stored, or about to be, and not in the cache yet
	}
	q, ok := p.Provisioner.(libprov.Qualifier)
	return !ok || q.ShouldProvision(ctx, c)
}

func (p *provisioner) SupportsBlock(ctx context.Context) bool {
	b, ok := p.Provisioner.(libprov.BlockProvisioner)
	return ok && b.SupportsBlock(ctx)
}

func (p *provisioner) Provision(ctx context.Context, o libprov.ProvisionOptions) (pv *v1.PersistentVolume, state libprov.ProvisioningState, err error) {
	m, c := p.r.m, o.PVC
	before, tried := m.intents.attemptOf(c.UID)
	if !tried {
		before.outcome = failed // a first attempt that ends before the RPC has made nothing
		if slices.Contains(c.Finalizers, Finalizer) {
			before.outcome = uncertain // an earlier process may have asked
		}
		m.opts.Trace.Record(trace.Entry{Step: trace.Provisioned, State: trace.Began, Detail: "asking driver " + p.r.driver.Name, Claim: trace.Claim(c), Volume: o.PVName})
	}
	if err := m.intents.begin(ctx, p.r, c); err != nil {
		return nil, libprov.ProvisioningNoChange, err
	}
	var a asked
	defer func() {
		if crash := recover(); crash != nil {
			m.opts.Log.Error("provisioner crashed on a claim", "driver", p.r.driver.Name, "claim", c.Namespace+"/"+c.Name, "crash", crash, "stack", string(debug.Stack()))
			pv, state, err = nil, libprov.ProvisioningInBackground, fmt.Errorf("driver %s: its answer could not be used: %v", p.r.driver.Name, crash)
		}
		p.outcome(o, a, before.outcome, state, err)
	}()
	pv, state, err = p.Provisioner.Provision(context.WithValue(ctx, askedKey{}, &a), o)
	if err == nil && p.r.publishes && p.r.m.has(Attach) {
		// The attacher puts this finalizer on before its first ControllerPublishVolume; from the start it costs no
		// write of its own.
		pv.Finalizers = append(pv.Finalizers, attctl.GetFinalizerName(p.r.driver.Name))
	}
	return pv, state, err
}

func (p *provisioner) outcome(o libprov.ProvisionOptions, a asked, before outcome, state libprov.ProvisioningState, err error) {
	m, c := p.r.m, o.PVC
	e := trace.Entry{Step: trace.Provisioned, State: trace.Done, Claim: trace.Claim(c), Volume: o.PVName}
	if err != nil {
		e.State, e.Detail = trace.Failed, words(err)
	}
	if m.intents.end(c, outcomeOf(err, state, a, before), e.Detail) {
		m.opts.Trace.Record(e)
	}
	if a.create {
		p.r.capacity.changed()
	}
}

// ShouldDelete holds a volume back while a VolumeAttachment of it exists; the attachment's deletion wakes the library
// again (Manager.attachmentGone), so that nothing fails and backs off meanwhile.
func (p *provisioner) ShouldDelete(_ context.Context, pv *v1.PersistentVolume) bool {
	if pv.Status.Phase != v1.VolumeReleased || pv.Spec.PersistentVolumeReclaimPolicy != v1.PersistentVolumeReclaimDelete {
		return true // the library says no itself
	}
	if p.r.deleted.is(string(pv.UID)) {
		return false // the library removes the object just now; looked at again when it is still there
	}
	node := p.r.m.attachedTo(pv.Name)
	if node == "" {
		return true
	}
	if p.r.waiting.Add(pv.Name, node) {
		p.r.m.opts.Trace.Record(trace.Entry{Step: trace.Deleted, State: trace.Waiting, Detail: "still attached to node " + node, Claim: trace.ClaimOf(pv), Volume: pv.Name, Node: node})
	}
	return false
}

func (p *provisioner) Delete(ctx context.Context, pv *v1.PersistentVolume) (err error) {
	m := p.r.m
	if err := p.stillDeletable(ctx, pv); err != nil {
		return err
	}
	e := trace.Entry{Step: trace.Deleted, State: trace.Began, Detail: "asking driver " + p.r.driver.Name, Claim: trace.ClaimOf(pv), Volume: pv.Name}
	if p.r.began.Add(pv.Name, "") {
		m.opts.Trace.Record(e)
	}
	defer func() {
		if crash := recover(); crash != nil {
			err = fmt.Errorf("driver %s: its answer could not be used: %v", p.r.driver.Name, crash)
		}
		if err != nil {
			if e.State, e.Detail = trace.Failed, words(err); p.r.waiting.Add(pv.Name, e.Detail) {
				m.opts.Trace.Record(e)
			}
			return
		}
		p.r.deleted.mark(string(pv.UID), func() { p.r.look(pv.Name) })
		p.r.waiting.Remove(pv.Name)
		p.r.began.Remove(pv.Name)
		e.State, e.Detail = trace.Done, ""
		m.opts.Trace.Record(e)
		p.r.capacity.changed()
	}()
	if err := p.Provisioner.Delete(ctx, pv); err != nil {
		return err
	}
	p.letGo(ctx, pv)
	return nil
}

const (
	pvProtection = "kubernetes.io/pv-protection"                         // keeps a volume while it is Bound
	libFinalizer = "external-provisioner.volume.kubernetes.io/finalizer" // sig-storage-lib's
)

// letGo takes from a PersistentVolume whose volume is no more the finalizers that guarded the volume, in one write before
// the library deletes the object. Otherwise their three holders take them off at the same moment after the deletion, and
// each of the writes waits for the one before.
//
// Nothing rests on it: on an error the holders do it, and after a crash DeleteVolume is asked again.
func (p *provisioner) letGo(ctx context.Context, pv *v1.PersistentVolume) {
	ctx, cancel := context.WithTimeout(ctx, p.r.m.opts.RPCTimeout)
	defer cancel()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pv.UID,
		"$deleteFromPrimitiveList/finalizers": []string{pvProtection, attctl.GetFinalizerName(p.r.driver.Name), libFinalizer}}})
	if err == nil {
		err = boundary.Do("provision/let-volume-go", func() error {
			_, err := p.r.m.opts.Client.CoreV1().PersistentVolumes().Patch(ctx, pv.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
			return err
		})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		p.r.m.opts.Log.Warn("cannot take the finalizers from a deleted volume in one write", "volume", pv.Name, "err", err)
	}
}

// stillDeletable reads the volume once more, right before its data is destroyed: the cache that the library decided from may be
// behind a user who has just changed the policy to Retain, while the volume waited for its detach or for a retry.
func (p *provisioner) stillDeletable(ctx context.Context, pv *v1.PersistentVolume) error {
	live, err := p.r.m.opts.Client.CoreV1().PersistentVolumes().Get(ctx, pv.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return &libprov.IgnoredError{Reason: "its PersistentVolume is gone"}
	case err != nil:
		return fmt.Errorf("read volume %s before its deletion: %w", pv.Name, err)
	case live.UID != pv.UID, live.Status.Phase != v1.VolumeReleased, live.Spec.PersistentVolumeReclaimPolicy != v1.PersistentVolumeReclaimDelete:
		return &libprov.IgnoredError{Reason: "its PersistentVolume has changed meanwhile"}
	}
	return nil
}

// words are an error's text for a user, without the wire's "rpc error: code = …".
func words(err error) string {
	if s, ok := status.FromError(err); ok {
		return fmt.Sprintf("%s (%s)", s.Message(), s.Code())
	}
	return err.Error()
}
