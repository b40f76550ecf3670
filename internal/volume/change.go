package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
)

// changeWithin bounds the wait for a snapshot or a growth.
const changeWithin = 90 * time.Second

// Resize asks for a larger volume and returns in words how far it came: the filesystem of a volume that is not mounted
// grows with its next mount.
func (s *Service) Resize(ctx context.Context, namespace, name string, size resource.Quantity) (string, error) {
	c, err := s.claim(ctx, namespace, name)
	if err != nil {
		return "", err
	}
	asked := c.Spec.Resources.Requests.Storage()
	if size.Cmp(*asked) < 0 {
		return "", refuse("volume %s has %s; it cannot shrink to %s", name, asked, &size)
	}
	if class := s.classOf(ctx, c); class != "" {
		if k, err := s.class(ctx, class); err == nil && (k.AllowVolumeExpansion == nil || !*k.AllowVolumeExpansion) {
			return "", refuse("volumes of class %s cannot grow (allowVolumeExpansion is not set)", class)
		}
	}
	if c.Status.Phase != corev1.ClaimBound {
		return "", refuse("volume %s has no storage yet, as nobody has mounted it; remove it and create it with %s", name, &size)
	}
	if size.Cmp(*asked) > 0 {
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": c.UID},
			"spec": map[string]any{"resources": map[string]any{"requests": map[string]any{"storage": size.String()}}}})
		if err != nil {
			return "", err
		}
		err = boundary.Do("volume/resize-claim", func() error {
			c, err = s.client.CoreV1().PersistentVolumeClaims(namespace).Patch(ctx, c.Name, types.MergePatchType, patch, metav1.PatchOptions{})
			return err
		})
		if err != nil {
			return "", fmt.Errorf("resize volume %s: %w", name, err)
		}
	}
	limited, cancel := context.WithTimeout(ctx, changeWithin)
	defer cancel()
	c, err = await(limited, s.client.CoreV1().PersistentVolumeClaims(namespace), c.Name, c, nil, func(c *corev1.PersistentVolumeClaim) (bool, error) {
		if c == nil {
			return false, errors.New("it was deleted meanwhile")
		}
		return grown(c, size) || condition(c, corev1.PersistentVolumeClaimFileSystemResizePending) != nil, nil
	})
	if err != nil {
		return "", fmt.Errorf("volume %s was asked to grow to %s and has not yet; `berth why -n %s pvc/%s` tells why: %w", name, &size, namespace, ClaimName(name), err)
	}
	if !grown(c, size) {
		return fmt.Sprintf("volume %s has %s; its filesystem grows with the next mount", name, &size), nil
	}
	return fmt.Sprintf("volume %s has %s", name, &size), nil
}

func grown(c *corev1.PersistentVolumeClaim, size resource.Quantity) bool {
	have, ok := c.Status.Capacity[corev1.ResourceStorage]
	return ok && have.Cmp(size) >= 0
}

func condition(c *corev1.PersistentVolumeClaim, kind corev1.PersistentVolumeClaimConditionType) *corev1.PersistentVolumeClaimCondition {
	for i := range c.Status.Conditions {
		if k := &c.Status.Conditions[i]; k.Type == kind && k.Status == corev1.ConditionTrue {
			return k
		}
	}
	return nil
}

// Snapshot takes a snapshot of a volume under a name and waits until it can be used. A snapshot of that name and volume
// is there already: it is waited for.
func (s *Service) Snapshot(ctx context.Context, namespace, name, snapshot, class string) error {
	c, err := s.claim(ctx, namespace, name)
	if err != nil {
		return err
	}
	switch {
	case c.DeletionTimestamp != nil:
		return refuse("volume %s is being deleted", name)
	case c.Status.Phase != corev1.ClaimBound:
		return refuse("volume %s has no storage yet, as nobody has mounted it: there is nothing to take a snapshot of", name)
	}
	limited, cancel := context.WithTimeout(ctx, changeWithin)
	defer cancel()
	wanted := &snapv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: snapshot, Labels: map[string]string{managedBy: "berth"}},
		Spec:       snapv1.VolumeSnapshotSpec{Source: snapv1.VolumeSnapshotSource{PersistentVolumeClaimName: &c.Name}},
	}
	if class != "" {
		wanted.Spec.VolumeSnapshotClassName = &class
	}
	made, err := s.snapshots.SnapshotV1().VolumeSnapshots(namespace).Get(limited, snapshot, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		err = s.checkSnapshotClass(limited, c, name, class)
	}
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", snapshot, err)
	}
	err = boundary.Do("volume/create-snapshot", func() error {
		made, err = s.snapshots.SnapshotV1().VolumeSnapshots(namespace).Create(limited, wanted, metav1.CreateOptions{})
		return err
	})
	if apierrors.IsAlreadyExists(err) {
		made, err = s.snapshots.SnapshotV1().VolumeSnapshots(namespace).Get(limited, snapshot, metav1.GetOptions{})
		if err == nil && (made.Spec.Source.PersistentVolumeClaimName == nil || *made.Spec.Source.PersistentVolumeClaimName != c.Name) {
			return refuse("snapshot %s is there and is not of volume %s", snapshot, name)
		}
	}
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", snapshot, err)
	}
	uid := made.UID
	last := ""
	_, err = await(limited, s.snapshots.SnapshotV1().VolumeSnapshots(namespace), snapshot, made, nil, func(v *snapv1.VolumeSnapshot) (bool, error) {
		if v == nil || v.UID != uid {
			return false, errors.New("it was deleted meanwhile")
		}
		if v.Status == nil {
			return false, nil
		}
		if e := v.Status.Error; e != nil && e.Message != nil {
			last = *e.Message
		}
		return v.Status.ReadyToUse != nil && *v.Status.ReadyToUse, nil
	})
	if err != nil && last != "" {
		return fmt.Errorf("snapshot %s is not ready: %s: %w", snapshot, last, err)
	}
	if err != nil {
		return fmt.Errorf("snapshot %s is not ready: %w", snapshot, err)
	}
	return nil
}

// defaultSnapshotClass is upstream's annotation (external-snapshotter pkg/utils).
const defaultSnapshotClass = "snapshot.storage.kubernetes.io/is-default-class"

// checkSnapshotClass refuses a class by which no snapshot of the claim's volume can be taken: the snapshot controller would say
// so in an event, or not at all, while the caller waits. No name means the default class of the volume's driver.
func (s *Service) checkSnapshotClass(ctx context.Context, c *corev1.PersistentVolumeClaim, volume, name string) error {
	pv, err := s.client.CoreV1().PersistentVolumes().Get(ctx, c.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if pv.Spec.CSI == nil {
		return refuse("volume %s is of no CSI driver: nothing can take a snapshot of it", volume)
	}
	driver := pv.Spec.CSI.Driver
	classes := s.snapshots.SnapshotV1().VolumeSnapshotClasses()
	if name != "" {
		class, err := classes.Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return refuse("there is no snapshot class %s; `berth kubectl get volumesnapshotclass` lists them", name)
		case err != nil:
			return err
		case class.Driver != driver:
			return refuse("snapshot class %s is of driver %s, and volume %s of %s; name a class of that driver", name, class.Driver, volume, driver)
		}
		return nil
	}
	list, err := classes.List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range list.Items {
		if list.Items[i].Driver == driver && list.Items[i].Annotations[defaultSnapshotClass] == "true" {
			return nil
		}
	}
	return refuse("no snapshot class is the default one for driver %s; name one of `berth kubectl get volumesnapshotclass` with --class", driver)
}
