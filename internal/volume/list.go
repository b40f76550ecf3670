package volume

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/boundary"
)

// Volume is a volume as the API shows it.
type Volume struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Claim     string `json:"claim"` // the claim's name, by which kubectl and `berth why` know it
	Size      string `json:"size"`  // asked for
	Capacity  string `json:"capacity,omitempty"`
	Class     string `json:"class,omitempty"`
	Phase     string `json:"phase"`
	Deleting  bool   `json:"deleting,omitempty"`
	// Path is where it is mounted on this host, for a container engine to bind.
	Path    string    `json:"path,omitempty"`
	Callers []Caller  `json:"callers,omitempty"`
	Pods    []string  `json:"pods,omitempty"` // others that use it
	Created time.Time `json:"created"`
}

// UsedBy says in words who uses the volume; empty when nobody does.
func (v Volume) UsedBy() string {
	parts := []string{}
	if len(v.Callers) > 0 {
		parts = append(parts, callersInWords(v.Callers))
	}
	for _, p := range v.Pods {
		parts = append(parts, "pod "+p)
	}
	return strings.Join(parts, ", ")
}

// Get returns one volume; ErrNotFound when there is none.
func (s *Service) Get(ctx context.Context, namespace, name string) (Volume, error) {
	c, err := s.claim(ctx, namespace, name)
	if err != nil {
		return Volume{}, err
	}
	v := show(c)
	pod, err := s.client.CoreV1().Pods(namespace).Get(ctx, c.Name, metav1.GetOptions{})
	if err == nil {
		s.add(&v, pod)
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return v, fmt.Errorf("volume %s: %w", name, err)
	}
	return v, nil
}

// List returns the volumes of a namespace, or of all of them when it is empty, by namespace and name.
func (s *Service) List(ctx context.Context, namespace string) ([]Volume, error) {
	claims, err := s.client.CoreV1().PersistentVolumeClaims(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	pods, err := s.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	volumes := make([]Volume, 0, len(claims.Items))
	for i := range claims.Items {
		v := show(&claims.Items[i])
		for k := range pods.Items {
			s.add(&v, &pods.Items[k])
		}
		volumes = append(volumes, v)
	}
	slices.SortFunc(volumes, func(a, b Volume) int {
		return strings.Compare(a.Namespace+"\x00"+a.Name, b.Namespace+"\x00"+b.Name)
	})
	return volumes, nil
}

func show(c *corev1.PersistentVolumeClaim) Volume {
	v := Volume{Namespace: c.Namespace, Name: NameOf(c), Claim: c.Name, Phase: string(c.Status.Phase), Deleting: c.DeletionTimestamp != nil,
		Size: c.Spec.Resources.Requests.Storage().String(), Created: c.CreationTimestamp.UTC()}
	if have, ok := c.Status.Capacity[corev1.ResourceStorage]; ok {
		v.Capacity = have.String()
	}
	if c.Spec.StorageClassName != nil {
		v.Class = *c.Spec.StorageClassName
	}
	return v
}

// add notes what a pod has to do with the volume.
func (s *Service) add(v *Volume, p *corev1.Pod) {
	if p.Namespace != v.Namespace || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return
	}
	if p.Name == v.Claim && p.Labels[holderLabel] == holderValue {
		if p.DeletionTimestamp != nil {
			return // the last caller has left
		}
		v.Callers = callersOf(p)
		v.Path, _ = s.where(p)
		return
	}
	for i := range p.Spec.Volumes {
		if c := p.Spec.Volumes[i].PersistentVolumeClaim; c != nil && c.ClaimName == v.Claim {
			v.Pods = append(v.Pods, p.Name)
			return
		}
	}
}

// whoUses says who uses a claim, for an error.
func (s *Service) whoUses(ctx context.Context, c *corev1.PersistentVolumeClaim) string {
	v := show(c)
	pods, err := s.client.CoreV1().Pods(c.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	for i := range pods.Items {
		s.add(&v, &pods.Items[i])
	}
	if by := v.UsedBy(); by != "" {
		return "in use by " + by
	}
	return fmt.Sprintf("`berth why -n %s pvc/%s` tells more", c.Namespace, c.Name)
}

// Remove deletes a volume that nobody uses, with its data where its class says so, and waits until its claim is gone.
func (s *Service) Remove(ctx context.Context, namespace, name string) error {
	c, err := s.claim(ctx, namespace, name)
	if err != nil {
		return err
	}
	v := show(c)
	pods, err := s.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	for i := range pods.Items {
		s.add(&v, &pods.Items[i])
	}
	if by := v.UsedBy(); by != "" {
		return refuse("volume %s is in use by %s", name, by)
	}
	err = boundary.Do("volume/delete-claim", func() error {
		return s.client.CoreV1().PersistentVolumeClaims(namespace).Delete(ctx, c.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &c.UID}})
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	limited, cancel := context.WithTimeout(ctx, unmountWithin)
	defer cancel()
	_, err = await(limited, s.client.CoreV1().PersistentVolumeClaims(namespace), c.Name, nil, nil, func(now *corev1.PersistentVolumeClaim) (bool, error) {
		return now == nil || now.UID != c.UID, nil
	})
	if err != nil {
		return fmt.Errorf("volume %s is being deleted and not gone yet: %s: %w", name, s.whoUses(context.WithoutCancel(ctx), c), err)
	}
	return nil
}
