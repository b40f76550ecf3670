package csi

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// publishContext is what the attach handed to the node, and the VolumeAttachment that it came from.
type publishContext struct {
	uid      types.UID
	metadata map[string]string
}

// publishContext returns status.attachmentMetadata of the volume's attachment to this node; nil for drivers that need no attach.
//
// The attachment is read live (fresh) when the volume is staged: a volume that was detached and attached again has an object of the
// same name and perhaps another device in it, and our informer may still show the old one. Later publishes of
// the same attachment use what was read.
func (p *Plugin) publishContext(ctx context.Context, driver, handle string, fresh bool) (map[string]string, error) {
	object, err := p.csiDriver(driver)
	if err != nil {
		return nil, err
	}
	if !attachRequired(object) || p.client == nil {
		return nil, nil
	}
	name := attachmentName(handle, driver, p.node)
	if !fresh && p.attachments != nil {
		p.mu.Lock()
		read, ok := p.contexts[name]
		p.mu.Unlock()
		if va, err := p.attachments.Get(name); ok && err == nil && va.UID == read.uid && va.Status.Attached {
			return read.metadata, nil
		}
	}
	va, err := p.client.StorageV1().VolumeAttachments().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read the volume's attachment: %w", err)
	}
	if !va.Status.Attached || va.DeletionTimestamp != nil {
		return nil, fmt.Errorf("the volume is not attached to this node: VolumeAttachment %s says so", name)
	}
	p.mu.Lock()
	p.contexts[name] = publishContext{uid: va.UID, metadata: va.Status.AttachmentMetadata}
	p.mu.Unlock()
	return va.Status.AttachmentMetadata, nil
}

// attachmentGone forgets what was remembered of an attachment that is there no more: of drivers that do not stage nothing else
// tells that its context was read for the last time.
func (p *Plugin) attachmentGone(obj any) {
	if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = last.Obj
	}
	va, ok := obj.(*storagev1.VolumeAttachment)
	if !ok {
		return
	}
	p.mu.Lock()
	if p.contexts[va.Name].uid == va.UID {
		delete(p.contexts, va.Name)
	}
	p.mu.Unlock()
	p.detach.shownGone(va)
}

// attachRequired as upstream's skipAttach: a driver without a CSIDriver object is attached.
func attachRequired(object *storagev1.CSIDriver) bool {
	return object == nil || object.Spec.AttachRequired == nil || *object.Spec.AttachRequired
}

// secret reads a secret live, so that a rotated one is used at once. field names the reference, for the error.
func (p *Plugin) secret(ctx context.Context, field string, ref *v1.SecretReference) (map[string]string, error) {
	if ref == nil {
		return nil, nil
	}
	if p.client == nil {
		return nil, fmt.Errorf("%s %s/%s can't be read without the API", field, ref.Namespace, ref.Name)
	}
	s, err := p.client.CoreV1().Secrets(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read %s %s/%s: %w", field, ref.Namespace, ref.Name, err)
	}
	out := make(map[string]string, len(s.Data))
	for k, v := range s.Data {
		out[k] = string(v)
	}
	return out, nil
}
