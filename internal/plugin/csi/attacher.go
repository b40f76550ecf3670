package csi

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin"
)

// attachmentName is the name of the VolumeAttachment (upstream getAttachmentName).
func attachmentName(handle, driver, node string) string {
	return fmt.Sprintf("csi-%x", sha256.Sum256([]byte(handle+driver+node)))
}

// Attachable is CSIDriver.spec.attachRequired, and false for inline volumes.
func (p *Plugin) Attachable(v *plugin.Volume) (bool, error) {
	src := persistent(v)
	if src == nil {
		return false, nil
	}
	object, err := p.csiDriver(src.Driver)
	if err != nil {
		return false, err
	}
	return attachRequired(object), nil
}

// Attach makes the VolumeAttachment and reports what its status says. The caller asks again when the object changes.
func (p *Plugin) Attach(ctx context.Context, v *plugin.Volume, node types.NodeName) (plugin.Attachment, error) {
	src := persistent(v)
	if src == nil {
		return plugin.Attachment{}, fmt.Errorf("attach %s: it has no PersistentVolume with a csi source", v.SpecName())
	}
	name := attachmentName(src.VolumeHandle, src.Driver, string(node))
	va, err := p.attachments.Get(name)
	if err != nil && !apierrors.IsNotFound(err) {
		return plugin.Attachment{}, fmt.Errorf("look up VolumeAttachment %s: %w", name, err)
	}
	if err != nil || p.detach.isGone(va) {
		if va, err = p.createAttachment(ctx, name, src.Driver, v.PV.Name, node); err != nil {
			return plugin.Attachment{}, err
		}
	}
	switch {
	case va.DeletionTimestamp != nil:
		return plugin.Attachment{Pending: "the detach that is under way: VolumeAttachment " + name + " is being deleted"}, nil
	case va.Status.Attached:
		return plugin.Attachment{}, nil
	case va.Status.AttachError != nil:
		return plugin.Attachment{}, fmt.Errorf("driver %s could not attach the volume: %s", src.Driver, va.Status.AttachError.Message)
	}
	return plugin.Attachment{Pending: "driver " + src.Driver + " to attach the volume (VolumeAttachment " + name + ")"}, nil
}

func (p *Plugin) createAttachment(ctx context.Context, name, driver, pv string, node types.NodeName) (*storagev1.VolumeAttachment, error) {
	var va *storagev1.VolumeAttachment
	meta := metav1.ObjectMeta{Name: name}
	if p.marks != nil {
		meta.Finalizers, meta.Annotations = p.marks(driver, string(node))
	}
	err := boundary.Do("csi/create-volume-attachment", func() error {
		var err error
		va, err = p.client.StorageV1().VolumeAttachments().Create(ctx, &storagev1.VolumeAttachment{
			ObjectMeta: meta,
			Spec: storagev1.VolumeAttachmentSpec{
				NodeName: string(node),
				Attacher: driver,
				Source:   storagev1.VolumeAttachmentSource{PersistentVolumeName: &pv},
			},
		}, metav1.CreateOptions{})
		return err
	})
	if apierrors.IsAlreadyExists(err) {
		// Made by an earlier call that the informer does not show yet.
		va, err = p.client.StorageV1().VolumeAttachments().Get(ctx, name, metav1.GetOptions{})
	}
	if err != nil {
		return nil, fmt.Errorf("create VolumeAttachment %s: %w", name, err)
	}
	p.detach.attachedAgain(name)
	return va, nil
}

// Detach deletes the VolumeAttachment; it is done when the object has gone, which its finalizer delays until the driver has detached.
func (p *Plugin) Detach(ctx context.Context, a plugin.AttachedVolume, node types.NodeName) (bool, error) {
	driver, handle, ok := splitUniqueName(a.Name)
	if !ok {
		return false, fmt.Errorf("detach %s: the name is not that of a CSI volume", a.Name)
	}
	name := attachmentName(handle, driver, string(node))
	va, err := p.attachments.Get(name)
	switch {
	case apierrors.IsNotFound(err):
		if p.detach.seenGone(name) {
			return true, nil // we have deleted it, and the watch has shown it go
		}
	case err != nil:
		return false, fmt.Errorf("look up VolumeAttachment %s: %w", name, err)
	case p.detach.isGone(va):
		return true, nil
	case va.DeletionTimestamp != nil && va.Status.DetachError != nil:
		return false, fmt.Errorf("driver %s could not detach the volume: %s", driver, va.Status.DetachError.Message)
	case va.DeletionTimestamp != nil:
		return false, nil
	}
	err = boundary.Do("csi/delete-volume-attachment", func() error {
		return p.client.StorageV1().VolumeAttachments().Delete(ctx, name, metav1.DeleteOptions{})
	})
	if apierrors.IsNotFound(err) {
		if va != nil {
			p.detach.gone(va) // the informer is behind
		}
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("delete VolumeAttachment %s: %w", name, err)
	}
	p.detach.deleted(name)
	return false, nil
}

// Attached lists the VolumeAttachments of all nodes.
func (p *Plugin) Attached(context.Context) ([]plugin.AttachedVolume, error) {
	all, err := p.attachments.List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("list VolumeAttachments: %w", err)
	}
	var out []plugin.AttachedVolume
	var errs []error
	for _, va := range all {
		v, err := p.attachedVolume(va)
		if err != nil {
			errs = append(errs, fmt.Errorf("VolumeAttachment %s: %w", va.Name, err))
			continue
		}
		if v == nil {
			continue // of another kind of volume
		}
		out = append(out, plugin.AttachedVolume{
			Name:      uniqueName(v.PV.Spec.CSI.Driver, v.PV.Spec.CSI.VolumeHandle),
			Node:      types.NodeName(va.Spec.NodeName),
			Volume:    v,
			Uncertain: !va.Status.Attached || va.DeletionTimestamp != nil,
		})
	}
	return out, errors.Join(errs...)
}

// attachedVolume resolves the source of an attachment. A PV that is gone leaves nothing to name the volume by; the attacher's finalizer
// on the PV prevents it.
func (p *Plugin) attachedVolume(va *storagev1.VolumeAttachment) (*plugin.Volume, error) {
	var pv *v1.PersistentVolume
	switch src := va.Spec.Source; {
	case src.PersistentVolumeName != nil:
		var err error
		if pv, err = p.volumes.Get(*src.PersistentVolumeName); err != nil {
			return nil, err
		}
	case src.InlineVolumeSpec != nil:
		pv = &v1.PersistentVolume{Spec: *src.InlineVolumeSpec}
	default:
		return nil, errors.New("it names no volume")
	}
	if pv.Spec.CSI == nil {
		return nil, nil
	}
	return &plugin.Volume{PV: pv}, nil
}

// detachMemory bridges the time in which the informer has not seen our own deletes, so that a detach is done on the
// watch's word with no further call, and an attach is never believed on the word of an object that has gone.
type detachMemory struct {
	mu      sync.Mutex
	pending map[string]bool      // names that we have deleted and not yet seen gone
	stale   map[string]types.UID // objects that are gone though the informer still shows them
}

func (m *detachMemory) deleted(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pending == nil {
		m.pending = map[string]bool{}
	}
	m.pending[name] = true
}

// attachedAgain: a detach to come must not take the old object's disappearance for that of the new one.
func (m *detachMemory) attachedAgain(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pending, name)
}

func (m *detachMemory) seenGone(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.pending[name]
	delete(m.pending, name)
	delete(m.stale, name)
	return was
}

func (m *detachMemory) gone(va *storagev1.VolumeAttachment) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stale == nil {
		m.stale = map[string]types.UID{}
	}
	m.stale[va.Name] = va.UID
	delete(m.pending, va.Name)
}

// shownGone: the informer is not behind any more.
func (m *detachMemory) shownGone(va *storagev1.VolumeAttachment) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stale[va.Name] == va.UID {
		delete(m.stale, va.Name)
	}
}

func (m *detachMemory) isGone(va *storagev1.VolumeAttachment) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	uid, ok := m.stale[va.Name]
	if ok && uid != va.UID {
		delete(m.stale, va.Name)
		return false
	}
	return ok
}
