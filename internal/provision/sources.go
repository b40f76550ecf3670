package provision

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"berth.io/berth/internal/boundary"
)

// What a claim can be made from, besides nothing.
const (
	snapshotKind = "VolumeSnapshot"
	claimKind    = "PersistentVolumeClaim"
)

// bySource is the index of claims that wait for their volume, by what it is to be made from.
const bySource = "berth.io/provision/source"

func sourceKey(kind, namespace, name string) string { return kind + "/" + namespace + "/" + name }

// sourceOf is what the claim's volume is made from; "" for an empty one and for what a populator of its own makes.
// The API keeps dataSource and dataSourceRef the same, but for a reference into another namespace, which is refused.
func sourceOf(c *v1.PersistentVolumeClaim) (kind, name string) {
	s := c.Spec.DataSource
	if s == nil {
		return "", ""
	}
	group := ""
	if s.APIGroup != nil {
		group = *s.APIGroup
	}
	if s.Kind == snapshotKind && group == snapv1.GroupName || s.Kind == claimKind && group == "" {
		return s.Kind, s.Name
	}
	return "", ""
}

func indexBySource(o any) ([]string, error) {
	c, ok := o.(*v1.PersistentVolumeClaim)
	if !ok || c.Status.Phase != v1.ClaimPending && c.Status.Phase != "" {
		return nil, nil
	}
	if kind, name := sourceOf(c); kind != "" {
		return []string{sourceKey(kind, c.Namespace, name)}, nil
	}
	return nil, nil
}

// madeFrom lists the claims that wait for a volume made from an object.
func (m *Manager) madeFrom(kind, namespace, name string) []*v1.PersistentVolumeClaim {
	found, _ := m.claimIndex.ByIndex(bySource, sourceKey(kind, namespace, name))
	out := make([]*v1.PersistentVolumeClaim, 0, len(found))
	for _, o := range found {
		if c, ok := o.(*v1.PersistentVolumeClaim); ok {
			out = append(out, c)
		}
	}
	return out
}

// provisionAgain makes the library look at claims at once that it has put off.
func (m *Manager) provisionAgain(claims []*v1.PersistentVolumeClaim) {
	for _, c := range claims {
		if r := m.role(provisionerOf(c)); r != nil && r.ready() && r.claims != nil {
			r.claims.OnUpdate(c, c)
		}
	}
}

// cloneEnded lets external-provisioner's clone controller look at the source of a clone that is made, or given up: a
// deleted claim stays until then. The library would ask again with a growing delay.
func (m *Manager) cloneEnded(clone *v1.PersistentVolumeClaim, source string) {
	c, err := m.claims.PersistentVolumeClaims(clone.Namespace).Get(source)
	if err != nil || c.DeletionTimestamp == nil {
		return
	}
	if r := m.role(provisionerOf(clone)); r != nil && r.ready() && r.clones != nil {
		r.clones.Add(c.Namespace + "/" + source)
	}
}

// sourceFinalizer is put on a VolumeSnapshot by external-provisioner before CreateVolume, and taken off after it. What a
// crash or a claim's deletion in between leaves is taken off here, when the snapshot is deleted; upstream sweeps by the clock.
const sourceFinalizer = "provisioner.storage.kubernetes.io/volumesnapshot-as-source-protection"

// snapshotSources frees snapshots from sourceFinalizer. A key is a snapshot.
type snapshotSources struct {
	m     *Manager
	queue workqueue.TypedRateLimitingInterface[string]
}

func (s *snapshotSources) seen(o *snapv1.VolumeSnapshot) {
	if o.DeletionTimestamp != nil && slices.Contains(o.Finalizers, sourceFinalizer) {
		s.queue.Add(o.Namespace + "/" + o.Name)
	}
}

func (s *snapshotSources) settle(ctx context.Context, key string) error {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return nil
	}
	o, err := s.m.opts.SnapInformers.Snapshot().V1().VolumeSnapshots().Lister().VolumeSnapshots(namespace).Get(name)
	if err != nil || o.DeletionTimestamp == nil || !slices.Contains(o.Finalizers, sourceFinalizer) {
		return nil
	}
	if len(s.m.madeFrom(snapshotKind, namespace, name)) > 0 {
		return nil // the claim's end wakes us
	}
	left := slices.DeleteFunc(slices.Clone(o.Finalizers), func(f string) bool { return f == sourceFinalizer })
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": o.UID, "resourceVersion": o.ResourceVersion, "finalizers": left}})
	if err != nil {
		return err
	}
	err = boundary.Do("provision/release-snapshot-source", func() error {
		_, err := s.m.opts.Snap.SnapshotV1().VolumeSnapshots(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("let snapshot %s go: %w", key, err)
	}
	return nil
}
