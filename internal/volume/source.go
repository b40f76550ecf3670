package volume

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const snapshotGroup = "snapshot.storage.k8s.io"

// source is what a new volume comes from; its zero value is nothing.
type source struct {
	what      string // in words
	reference *corev1.TypedLocalObjectReference
	least     *resource.Quantity // the source's own size
	class     string             // the source volume's
	driver    string             // who can read the source, when it is known
}

// size is what was asked for, or what there is to be held.
func (f source) size(asked *resource.Quantity) (resource.Quantity, error) {
	switch {
	case asked == nil && f.least != nil:
		return *f.least, nil
	case asked == nil:
		return resource.MustParse(DefaultSize), nil
	case f.least != nil && asked.Cmp(*f.least) < 0:
		return resource.Quantity{}, refuse("size %s is less than %s has (%s)", asked, f.what, f.least)
	}
	return *asked, nil
}

func (s *Service) source(ctx context.Context, namespace string, r Request) (source, error) {
	switch {
	case r.Snapshot != "":
		return s.snapshotSource(ctx, namespace, r.Snapshot)
	case r.Clone != "":
		return s.cloneSource(ctx, namespace, r.Clone)
	}
	return source{}, nil
}

func (s *Service) snapshotSource(ctx context.Context, namespace, name string) (source, error) {
	from := source{what: "snapshot " + name}
	snap, err := s.snapshots.SnapshotV1().VolumeSnapshots(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return from, refuse("there is no snapshot %s in namespace %s", name, namespace)
	case err != nil:
		return from, err
	case snap.DeletionTimestamp != nil:
		return from, refuse("snapshot %s is being deleted", name)
	}
	group := snapshotGroup
	from.reference = &corev1.TypedLocalObjectReference{APIGroup: &group, Kind: "VolumeSnapshot", Name: name}
	if snap.Status != nil {
		from.least = snap.Status.RestoreSize
		if e := snap.Status.Error; e != nil && e.Message != nil && (snap.Status.ReadyToUse == nil || !*snap.Status.ReadyToUse) {
			return from, refuse("snapshot %s is not usable: %s", name, *e.Message)
		}
	}
	if class := snap.Spec.VolumeSnapshotClassName; class != nil {
		if c, err := s.snapshots.SnapshotV1().VolumeSnapshotClasses().Get(ctx, *class, metav1.GetOptions{}); err == nil {
			from.driver = c.Driver
		}
	}
	if claim := snap.Spec.Source.PersistentVolumeClaimName; claim != nil {
		if c, err := s.client.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, *claim, metav1.GetOptions{}); err == nil {
			from.class = s.classOf(ctx, c)
			if from.least == nil {
				from.least = c.Spec.Resources.Requests.Storage()
			}
		}
	}
	return from, nil
}

func (s *Service) cloneSource(ctx context.Context, namespace, name string) (source, error) {
	from := source{what: "volume " + name}
	c, err := s.claim(ctx, namespace, name)
	switch {
	case errors.Is(err, ErrNotFound):
		return from, refuse("there is no volume %s to clone in namespace %s", name, namespace)
	case err != nil:
		return from, err
	case c.DeletionTimestamp != nil:
		return from, refuse("volume %s is being deleted", name)
	case c.Status.Phase != corev1.ClaimBound:
		return from, refuse("volume %s has no storage yet, as nobody has mounted it: there is nothing to clone", name)
	}
	from.reference = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: c.Name}
	from.least = c.Spec.Resources.Requests.Storage()
	if have, ok := c.Status.Capacity[corev1.ResourceStorage]; ok && have.Cmp(*from.least) > 0 {
		from.least = &have
	}
	from.class = s.classOf(ctx, c)
	if from.class != "" {
		if class, err := s.class(ctx, from.class); err == nil {
			from.driver = class.Provisioner
		}
	}
	return from, nil
}

// classOf names the class that made a claim's volume, when it is still there.
func (s *Service) classOf(ctx context.Context, c *corev1.PersistentVolumeClaim) string {
	if c.Spec.StorageClassName == nil || *c.Spec.StorageClassName == "" {
		return ""
	}
	if _, err := s.client.StorageV1().StorageClasses().Get(ctx, *c.Spec.StorageClassName, metav1.GetOptions{}); err != nil {
		return ""
	}
	return *c.Spec.StorageClassName
}

// Snapshots names the snapshots of a namespace, for completion; none when the API cannot say.
func (s *Service) Snapshots(ctx context.Context, namespace string) (names []string) {
	list, err := s.snapshots.SnapshotV1().VolumeSnapshots(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil
	}
	for i := range list.Items {
		names = append(names, list.Items[i].Name)
	}
	return names
}
