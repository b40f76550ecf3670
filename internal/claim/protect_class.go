package claim

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"

	"berth.io/berth/internal/boundary"
)

// byAttributesClass is the index of claims and volumes by the VolumeAttributesClasses that they refer to.
const byAttributesClass = "berth-volume-attributes-class"

// attributesClassProtector keeps a VolumeAttributesClass that is being deleted while a claim or a volume refers to it
// (upstream's vacprotection). As upstream it trusts the caches.
type attributesClassProtector struct {
	c           *Controller
	queue       queue
	claims, pvs cache.Indexer
	classes     func(name string) (*storagev1.VolumeAttributesClass, error)
}

func (c *Controller) addAttributesClassProtection() error {
	vacs := c.opts.Informers.Storage().V1().VolumeAttributesClasses()
	pvcInf := c.opts.Informers.Core().V1().PersistentVolumeClaims().Informer()
	pvInf := c.opts.Informers.Core().V1().PersistentVolumes().Informer()
	for _, inf := range []cache.SharedIndexInformer{pvcInf, pvInf} {
		if _, ok := inf.GetIndexer().GetIndexers()[byAttributesClass]; ok {
			continue
		}
		if err := inf.AddIndexers(cache.Indexers{byAttributesClass: func(o any) ([]string, error) { return sets.List(attributesClassesOf(o)), nil }}); err != nil {
			return fmt.Errorf("index by VolumeAttributesClass: %w", err)
		}
	}
	p := &attributesClassProtector{c: c, queue: newQueue(), claims: pvcInf.GetIndexer(), pvs: pvInf.GetIndexer(), classes: vacs.Lister().Get}
	c.parts = append(c.parts, part{"attributes class protection", p.queue, 1, p.sync})

	if err := handle(c, vacs.Informer(), func(_, now *storagev1.VolumeAttributesClass) {
		if protectionOf(now, vacProtection) != protected {
			p.queue.Add(now.Name)
		}
	}, nil); err != nil {
		return err
	}
	// Who stops to refer to a class may have been the last.
	c.onClaim = append(c.onClaim, func(old, now *v1.PersistentVolumeClaim) { p.left(attributesClassesOf(old), attributesClassesOf(now)) })
	c.onClaimGone = append(c.onClaimGone, func(last *v1.PersistentVolumeClaim) { p.left(attributesClassesOf(last), nil) })
	c.onVolume = append(c.onVolume, func(old, now *v1.PersistentVolume) { p.left(attributesClassesOf(old), attributesClassesOf(now)) })
	c.onVolumeGone = append(c.onVolumeGone, func(last *v1.PersistentVolume) { p.left(attributesClassesOf(last), nil) })
	return nil
}

func (p *attributesClassProtector) left(before, now sets.Set[string]) {
	for name := range before.Difference(now) {
		p.queue.Add(name)
	}
}

func (p *attributesClassProtector) sync(ctx context.Context, name string) error {
	class, err := p.classes(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	switch protectionOf(class, vacProtection) {
	case unguarded:
		err := boundary.Do("claim/protect-attributes-class", func() error {
			_, err := p.c.opts.Client.StorageV1().VolumeAttributesClasses().Patch(ctx, name, types.StrategicMergePatchType, addFinalizer(class, vacProtection).json(), metav1.PatchOptions{})
			return err
		})
		return ignoreGone(err, "protect VolumeAttributesClass")
	case leaving:
		for _, users := range []cache.Indexer{p.claims, p.pvs} {
			if found, err := users.ByIndex(byAttributesClass, name); err != nil || len(found) > 0 {
				return err
			}
		}
		err := boundary.Do("claim/unprotect-attributes-class", func() error {
			_, err := p.c.opts.Client.StorageV1().VolumeAttributesClasses().Patch(ctx, name, types.StrategicMergePatchType, dropFinalizer(class, vacProtection).json(), metav1.PatchOptions{})
			return err
		})
		return ignoreGone(err, "let VolumeAttributesClass go")
	}
	return nil
}

// attributesClassesOf names the VolumeAttributesClasses that a claim or a volume refers to: wanted, current, target.
func attributesClassesOf(o any) sets.Set[string] {
	names := sets.New[string]()
	switch o := o.(type) {
	case *v1.PersistentVolumeClaim:
		if o == nil {
			return names
		}
		names.Insert(ptr.Deref(o.Spec.VolumeAttributesClassName, ""), ptr.Deref(o.Status.CurrentVolumeAttributesClassName, ""))
		if m := o.Status.ModifyVolumeStatus; m != nil {
			names.Insert(m.TargetVolumeAttributesClassName)
		}
	case *v1.PersistentVolume:
		if o == nil {
			return names
		}
		names.Insert(ptr.Deref(o.Spec.VolumeAttributesClassName, ""))
	}
	return names.Delete("")
}
