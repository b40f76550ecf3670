package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/filesystem"
)

const (
	// optionsAnnotation on a claim is what was asked for when it was made.
	optionsAnnotation = "storage.berth.io/volume-options"
	// derivedAnnotation on a class names the one that it is a copy of with another filesystem.
	derivedAnnotation = "storage.berth.io/class-of"
	fsTypeParameter   = "csi.storage.k8s.io/fstype"
	blockDriver       = "block.csi.berth.io"
	managedBy         = "app.kubernetes.io/managed-by"
)

// goneWithin bounds the wait for an object that is being deleted.
const goneWithin = 60 * time.Second

// Create makes the claim of a volume. A volume of the same name and options is there already: nothing is done. The
// storage behind it is made by the first mount, where the class says so (WaitForFirstConsumer).
func (s *Service) Create(ctx context.Context, namespace string, r Request) error {
	if err := r.Validate(); err != nil {
		return err
	}
	exists, err := s.created(ctx, namespace, r)
	if exists || err != nil {
		return err
	}
	c, err := s.plan(ctx, namespace, r)
	if err != nil {
		return fmt.Errorf("volume %s: %w", r.Name, err)
	}
	err = s.createClaim(ctx, c)
	if apierrors.IsNotFound(err) { // the namespace
		if err = s.EnsureNamespace(ctx, namespace); err == nil {
			err = s.createClaim(ctx, c)
		}
	}
	if apierrors.IsAlreadyExists(err) { // by another caller, a moment ago
		if exists, err = s.created(ctx, namespace, r); err == nil && !exists {
			err = errors.New("it was made and deleted meanwhile; try again")
		}
	}
	if err != nil {
		return fmt.Errorf("volume %s: %w", r.Name, err)
	}
	return nil
}

func (s *Service) createClaim(ctx context.Context, c *corev1.PersistentVolumeClaim) error {
	return boundary.Do("volume/create-claim", func() error {
		_, err := s.client.CoreV1().PersistentVolumeClaims(c.Namespace).Create(ctx, c, metav1.CreateOptions{})
		return err
	})
}

// created says whether the volume is there as asked for. One that is being deleted is waited for.
func (s *Service) created(ctx context.Context, namespace string, r Request) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, goneWithin)
	defer cancel()
	c, err := await(ctx, s.client.CoreV1().PersistentVolumeClaims(namespace), ClaimName(r.Name), nil, nil,
		func(c *corev1.PersistentVolumeClaim) (bool, error) {
			return c == nil || c.DeletionTimestamp == nil, nil
		})
	switch {
	case err != nil && c != nil && stopped(err):
		return false, refuse("volume %s is still being deleted: %s", r.Name, s.whoUses(context.WithoutCancel(ctx), c))
	case err != nil:
		return false, fmt.Errorf("volume %s: %w", r.Name, err)
	case c == nil:
		return false, nil
	case NameOf(c) != r.Name:
		return false, refuse("volume %s: its claim's name %s is taken by volume %s", r.Name, c.Name, NameOf(c))
	}
	return true, sameAs(c, r)
}

// sameAs compares a request with the one that a claim was made for, or with the claim itself when it was made otherwise.
func sameAs(c *corev1.PersistentVolumeClaim, r Request) error {
	asked := optionsText(r.given())
	had, known := c.Annotations[optionsAnnotation]
	if !known {
		have := Request{Size: c.Spec.Resources.Requests.Storage()}
		if r.Class != "" && c.Spec.StorageClassName != nil {
			have.Class = *c.Spec.StorageClassName
		}
		if r.Size == nil {
			have.Size = nil
		}
		had = optionsText(have.given())
	}
	if had == asked {
		return nil
	}
	now, grown := c.Spec.Resources.Requests.Storage(), ""
	if first, ok := sizeIn(had); ok && now.Cmp(first) != 0 {
		grown = fmt.Sprintf(", %s by now", now)
		if r.Size != nil && r.Size.Cmp(*now) == 0 {
			r.Size = &first // a resize has made it so
			if optionsText(r.given()) == had {
				return nil
			}
		}
	}
	return refuse("volume %s exists with other options (%s%s; asked for: %s); remove it first, or resize it with `berth volume resize`",
		r.Name, inWords(had), grown, inWords(asked))
}

// plan decides the claim of a request.
func (s *Service) plan(ctx context.Context, namespace string, r Request) (*corev1.PersistentVolumeClaim, error) {
	from, err := s.source(ctx, namespace, r)
	if err != nil {
		return nil, err
	}
	size, err := from.size(r.Size)
	if err != nil {
		return nil, err
	}
	wanted := r.Class
	if wanted == "" {
		wanted = from.class
	}
	base, err := s.class(ctx, wanted)
	if err != nil {
		return nil, err
	}
	if from.driver != "" && from.driver != base.Provisioner {
		return nil, refuse("%s is %s's; class %s is of %s, which cannot read it; name a class of %s", from.what, from.driver, base.Name, base.Provisioner, from.driver)
	}
	if err := checkFSType(base, r.FSType, size); err != nil {
		return nil, err
	}
	class, err := s.withFSType(ctx, base, r.FSType)
	if err != nil {
		return nil, err
	}
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: ClaimName(r.Name),
			Labels:      map[string]string{managedBy: "berth"},
			Annotations: map[string]string{optionsAnnotation: optionsText(r.given())},
		},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:        corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: size}},
			StorageClassName: &class,
			DataSource:       from.reference,
		},
	}
	if c.Name != r.Name {
		c.Annotations[NameAnnotation] = r.Name
	}
	return c, nil
}

// class finds a class by name, or the default one.
func (s *Service) class(ctx context.Context, name string) (*storagev1.StorageClass, error) {
	if name != "" {
		c, err := s.client.StorageV1().StorageClasses().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil, refuse("there is no class %s; `berth kubectl get storageclass` lists them", name)
		}
		return c, err
	}
	list, err := s.client.StorageV1().StorageClasses().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var found *storagev1.StorageClass
	for i := range list.Items { // the newest, as the API's admission chooses
		c := &list.Items[i]
		if c.Annotations["storageclass.kubernetes.io/is-default-class"] == "true" &&
			(found == nil || found.CreationTimestamp.Before(&c.CreationTimestamp)) {
			found = c
		}
	}
	if found == nil {
		return nil, refuse("no class is the default one; name one of `berth kubectl get storageclass`")
	}
	return found, nil
}

// checkFSType refuses in time what our driver would refuse when the volume is first mounted.
func checkFSType(c *storagev1.StorageClass, fsType string, size resource.Quantity) error {
	if c.Provisioner != blockDriver {
		return nil
	}
	if fsType == "" {
		fsType = c.Parameters[fsTypeParameter]
	}
	if fsType == "" {
		fsType = filesystem.Default
	}
	least, err := filesystem.MinimumBytes(fsType)
	switch {
	case err != nil:
		return refuse("fsType %q: this driver makes ext4, xfs and btrfs", fsType)
	case size.CmpInt64(least) < 0:
		return refuse("size %s: %s needs %s at least", size.String(), fsType, resource.NewQuantity(least, resource.BinarySI))
	}
	return nil
}

// withFSType names the class that is base with another filesystem: a claim cannot ask for one itself. The class is made
// when it is first asked for, and stays for the next volume.
func (s *Service) withFSType(ctx context.Context, base *storagev1.StorageClass, fsType string) (string, error) {
	if fsType == "" || base.Parameters[fsTypeParameter] == fsType {
		return base.Name, nil
	}
	derived := base.DeepCopy()
	derived.ObjectMeta = metav1.ObjectMeta{Name: base.Name + "-" + fsType,
		Labels: map[string]string{managedBy: "berth"}, Annotations: map[string]string{derivedAnnotation: base.Name}}
	if derived.Parameters == nil {
		derived.Parameters = map[string]string{}
	}
	derived.Parameters[fsTypeParameter] = fsType
	classes := s.client.StorageV1().StorageClasses()
	have, err := classes.Get(ctx, derived.Name, metav1.GetOptions{})
	if err == nil {
		switch {
		case have.Provisioner == base.Provisioner && maps.Equal(have.Parameters, derived.Parameters):
			return have.Name, nil
		case have.Annotations[derivedAnnotation] != base.Name:
			return "", refuse("class %s is there and is not %s with %s; name the class that is meant", have.Name, base.Name, fsType)
		}
		// The class that it was made from is another one by now. Parameters cannot be changed.
		if err = boundary.Do("volume/replace-class", func() error {
			return s.client.StorageV1().StorageClasses().Delete(ctx, have.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &have.UID}})
		}); err != nil && !apierrors.IsNotFound(err) {
			return "", err
		}
	} else if !apierrors.IsNotFound(err) {
		return "", err
	}
	err = boundary.Do("volume/create-class", func() error {
		_, err := s.client.StorageV1().StorageClasses().Create(ctx, derived, metav1.CreateOptions{})
		return err
	})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return "", fmt.Errorf("class %s: %w", derived.Name, err)
	}
	return derived.Name, nil
}
