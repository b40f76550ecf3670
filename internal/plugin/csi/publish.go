package csi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/plugin/fsgroup"
)

// Publish calls NodePublishVolume, and applies the pod's fsGroup where the driver leaves that to the node.
func (p *Plugin) Publish(ctx context.Context, r plugin.PublishRequest) (plugin.Published, error) {
	v := r.Volume
	if v.Pod == nil {
		return plugin.Published{}, fmt.Errorf("publish %s: no pod", v.SpecName())
	}
	q, err := p.preparePublish(ctx, r)
	if err != nil {
		return plugin.Published{}, err
	}
	if v.Mode() == v1.PersistentVolumeBlock {
		return p.publishBlock(ctx, r, q)
	}
	target := p.paths.target(v.Pod.UID, v.SpecName())
	if err := q.data.save(filepath.Dir(target)); err != nil {
		return plugin.Published{}, err
	}
	q.request.TargetPath = target
	if err := q.send(ctx); err != nil {
		if !r.Again && !errors.Is(err, plugin.ErrUncertain) {
			if cleanErr := removeMountDir(target); cleanErr != nil {
				p.log.Warn("what a failed NodePublishVolume left can't be removed", "path", target, "err", cleanErr)
			}
		}
		return plugin.Published{}, err
	}
	if !q.caps.mountGroup && p.appliesFSGroup(v, q, r.FSGroup) {
		if err := applyFSGroup(ctx, target, *r.FSGroup, fsgroup.Policy(v.Pod)); err != nil {
			// It is mounted, and useless to the pod: it must be unmounted in the end.
			return plugin.Published{}, fmt.Errorf("give %s to group %d: %w: %w", target, *r.FSGroup, err, plugin.ErrUncertain)
		}
	}
	return plugin.Published{Path: target}, nil
}

// publishCall is a NodePublishVolume with all that had to be looked up for it.
type publishCall struct {
	driver   *driver
	caps     capabilities
	fsType   string
	fsPolicy storagev1.FSGroupPolicy
	data     volumeData
	request  *csipb.NodePublishVolumeRequest
}

func (q *publishCall) send(ctx context.Context) error {
	return boundary.Do("csi/node-publish-volume", func() error {
		return q.driver.call(ctx, "NodePublishVolume", func(ctx context.Context) error {
			_, err := q.driver.node.NodePublishVolume(ctx, q.request)
			return err
		})
	})
}

func (p *Plugin) preparePublish(ctx context.Context, r plugin.PublishRequest) (*publishCall, error) {
	v := r.Volume
	name := p.Driver(v)
	d, err := p.drivers.get(name)
	if err != nil {
		return nil, err
	}
	object, err := p.csiDriver(name)
	if err != nil {
		return nil, err
	}
	if err := supportsLifecycle(object, name, lifecycle(v)); err != nil {
		return nil, err
	}
	caps, err := d.capabilities(ctx)
	if err != nil {
		return nil, err
	}
	q := &publishCall{driver: d, caps: caps, data: p.volumeData(v), fsPolicy: storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy}
	q.request = &csipb.NodePublishVolumeRequest{VolumeId: handleOf(v), Readonly: v.ReadOnly}
	if object != nil && object.Spec.FSGroupPolicy != nil && *object.Spec.FSGroupPolicy != "" {
		q.fsPolicy = *object.Spec.FSGroupPolicy
	}

	var (
		attributes map[string]string
		options    []string
		secretRef  *v1.SecretReference
	)
	if src := persistent(v); src != nil {
		q.fsType, attributes, options, secretRef = src.FSType, src.VolumeAttributes, v.PV.Spec.MountOptions, src.NodePublishSecretRef
		if caps.stage {
			q.request.StagingTargetPath = p.GlobalPath(v)
		}
		if q.request.PublishContext, err = p.publishContext(ctx, src.Driver, src.VolumeHandle, false); err != nil {
			return nil, err
		}
	} else {
		src := inline(v)
		if src.FSType != nil {
			q.fsType = *src.FSType
		}
		attributes = src.VolumeAttributes
		if src.NodePublishSecretRef != nil {
			secretRef = &v1.SecretReference{Name: src.NodePublishSecretRef.Name, Namespace: v.Pod.Namespace}
		}
	}

	if q.request.Secrets, err = p.secret(ctx, "nodePublishSecretRef", secretRef); err != nil {
		return nil, err
	}
	if object != nil && object.Spec.PodInfoOnMount != nil && *object.Spec.PodInfoOnMount {
		attributes = merge(attributes, podInfo(v))
	}
	tokens, err := p.serviceAccountTokens(ctx, object, v.Pod)
	if err != nil {
		return nil, err
	}
	if object != nil && object.Spec.ServiceAccountTokenInSecrets != nil && *object.Spec.ServiceAccountTokenInSecrets {
		q.request.Secrets = merge(q.request.Secrets, tokens)
	} else {
		attributes = merge(attributes, tokens)
	}
	q.request.VolumeContext = attributes

	var fsGroup *int64
	if v.Mode() != v1.PersistentVolumeBlock {
		if options, q.data.SELinuxMountContext, err = p.seLinuxOptions(v, options); err != nil {
			return nil, err
		}
		if caps.mountGroup {
			fsGroup = r.FSGroup
		}
	}
	q.request.VolumeCapability = capability(caps, v, q.fsType, options, fsGroup)
	return q, nil
}

// Unpublish calls NodeUnpublishVolume and removes the target with its directory. It needs the disk alone.
func (p *Plugin) Unpublish(ctx context.Context, r plugin.UnpublishRequest) error {
	if r.Mode == v1.PersistentVolumeBlock {
		return p.unpublishBlock(ctx, r)
	}
	defer p.tokens.forget(r.PodUID) // another volume of the pod asks for new ones
	target := p.paths.target(r.PodUID, r.SpecName)
	data, err := loadVolumeData(filepath.Dir(target))
	if errors.Is(err, os.ErrNotExist) {
		return removeMountDir(target) // never published, or all done but the directories
	}
	if err != nil {
		return err
	}
	if err := p.nodeUnpublish(ctx, data, target); err != nil {
		return err
	}
	if err := removeMountDir(target); err != nil {
		return fmt.Errorf("driver %s says that it has unpublished, but: %w", data.DriverName, err)
	}
	return nil
}

func (p *Plugin) nodeUnpublish(ctx context.Context, data volumeData, target string) error {
	d, err := p.drivers.get(data.DriverName)
	if err != nil {
		return err
	}
	return boundary.Do("csi/node-unpublish-volume", func() error {
		return d.call(ctx, "NodeUnpublishVolume", func(ctx context.Context) error {
			_, err := d.node.NodeUnpublishVolume(ctx, &csipb.NodeUnpublishVolumeRequest{
				VolumeId:   data.VolumeHandle,
				TargetPath: target,
			})
			return err
		})
	})
}

// supportsLifecycle: without a CSIDriver object only persistent volumes are known to work.
func supportsLifecycle(object *storagev1.CSIDriver, name string, mode storagev1.VolumeLifecycleMode) error {
	switch {
	case object == nil && mode == storagev1.VolumeLifecyclePersistent:
		return nil
	case object == nil:
		return fmt.Errorf("driver %s has no CSIDriver object, so it can't serve inline volumes of pods", name)
	case slices.Contains(object.Spec.VolumeLifecycleModes, mode):
		return nil
	}
	return fmt.Errorf("driver %s does not serve %s volumes: its CSIDriver object lists only %v", name, mode, object.Spec.VolumeLifecycleModes)
}

// podInfo is what podInfoOnMount adds to the volume's attributes.
func podInfo(v *plugin.Volume) map[string]string {
	return map[string]string{
		"csi.storage.k8s.io/pod.name":            v.Pod.Name,
		"csi.storage.k8s.io/pod.namespace":       v.Pod.Namespace,
		"csi.storage.k8s.io/pod.uid":             string(v.Pod.UID),
		"csi.storage.k8s.io/serviceAccount.name": v.Pod.Spec.ServiceAccountName,
		"csi.storage.k8s.io/ephemeral":           strconv.FormatBool(lifecycle(v) == storagev1.VolumeLifecycleEphemeral),
	}
}

// merge never writes into its arguments: they may be an informer's objects.
func merge(first, second map[string]string) map[string]string {
	if len(second) == 0 {
		return first
	}
	out := maps.Clone(first)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, second)
	return out
}
