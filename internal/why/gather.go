package why

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-helpers/storage/ephemeral"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

type collector struct {
	ctx    context.Context
	client kubernetes.Interface
	facts  *facts
}

// gather collects what the API knows about the target. found is false when the target itself is not there.
func gather(ctx context.Context, client kubernetes.Interface, t Target) (f *facts, found bool, err error) {
	c := collector{ctx: ctx, client: client, facts: &facts{}}
	switch t.Kind {
	case Pod:
		found, err = c.pod(t.Namespace, t.Name)
	case PVC:
		found, err = c.claim(t.Namespace, t.Name)
	case PV:
		found, err = c.volume(t.Name)
	default:
		err = fmt.Errorf("unknown kind %q", t.Kind)
	}
	if err != nil {
		return nil, false, err
	}
	if err := c.surroundings(); err != nil {
		return nil, false, err
	}
	return c.facts, found, nil
}

// absent turns "not found" into no error; forbidden is noted and tolerated, as the rest of the answer is still good.
func (c *collector) absent(kind string, err error) error {
	switch {
	case err == nil || apierrors.IsNotFound(err):
		return nil
	case apierrors.IsForbidden(err):
		if !slices.Contains(c.facts.unreadable, kind) {
			c.facts.unreadable = append(c.facts.unreadable, kind)
		}
		return nil
	}
	return fmt.Errorf("read %s: %w", kind, err)
}

func (c *collector) pod(namespace, name string) (bool, error) {
	pod, err := c.client.CoreV1().Pods(namespace).Get(c.ctx, name, metav1.GetOptions{})
	if err != nil {
		return false, c.absent("pods", err)
	}
	c.facts.pod = pod
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		vf := volumeFacts{name: v.Name, namespace: namespace}
		switch {
		case v.PersistentVolumeClaim != nil:
			vf.claimName = v.PersistentVolumeClaim.ClaimName
		case v.Ephemeral != nil:
			vf.claimName = ephemeral.VolumeClaimName(pod, v)
		default:
			vf.source = v
		}
		if vf.claimName != "" {
			if err := c.fillClaim(&vf); err != nil {
				return false, err
			}
			if err := c.findUsers(&vf); err != nil {
				return false, err
			}
		}
		c.facts.volumes = append(c.facts.volumes, vf)
	}
	return true, nil
}

func (c *collector) claim(namespace, name string) (bool, error) {
	vf := volumeFacts{namespace: namespace, claimName: name}
	if err := c.fillClaim(&vf); err != nil {
		return false, err
	}
	found := vf.claim != nil
	if err := c.findUsers(&vf); err != nil {
		return false, err
	}
	c.facts.volumes = []volumeFacts{vf}
	return found, nil
}

func (c *collector) volume(name string) (bool, error) {
	pv, err := c.client.CoreV1().PersistentVolumes().Get(c.ctx, name, metav1.GetOptions{})
	if err != nil {
		c.facts.volumes = []volumeFacts{{pvName: name}}
		return false, c.absent("persistentvolumes", err)
	}
	vf := volumeFacts{pvName: name, pv: pv}
	if r := pv.Spec.ClaimRef; r != nil {
		vf.namespace, vf.claimName = r.Namespace, r.Name
		if err := c.fillClaim(&vf); err != nil {
			return false, err
		}
		if vf.claim != nil && r.UID != "" && vf.claim.UID != r.UID {
			vf.claim = nil // a later claim of the same name
		}
		if err := c.findUsers(&vf); err != nil {
			return false, err
		}
	}
	vf.pvName, vf.pv = name, pv
	c.facts.volumes = []volumeFacts{vf}
	return true, nil
}

func (c *collector) fillClaim(vf *volumeFacts) error {
	claim, err := c.client.CoreV1().PersistentVolumeClaims(vf.namespace).Get(c.ctx, vf.claimName, metav1.GetOptions{})
	if err != nil {
		return c.absent("persistentvolumeclaims", err)
	}
	vf.claim = claim
	vf.className = storagehelpers.GetPersistentVolumeClaimClass(claim)
	if vf.pvName = claim.Spec.VolumeName; vf.pvName != "" {
		pv, err := c.client.CoreV1().PersistentVolumes().Get(c.ctx, vf.pvName, metav1.GetOptions{})
		if err != nil {
			return c.absent("persistentvolumes", err)
		}
		vf.pv = pv
	}
	return nil
}

// findUsers finds the pods that use the claim. Without a pod that was asked about, the one that matters most becomes
// the journey's: not finished, on a node, the youngest.
func (c *collector) findUsers(vf *volumeFacts) error {
	list, err := c.client.CoreV1().Pods(vf.namespace).List(c.ctx, metav1.ListOptions{})
	if err != nil {
		return c.absent("pods", err)
	}
	for i := range list.Items {
		if _, uses := usesClaim(&list.Items[i], vf.claimName); uses {
			vf.users = append(vf.users, list.Items[i])
		}
	}
	rank := func(p *v1.Pod) int {
		switch {
		case finished(p):
			return 2
		case p.Spec.NodeName == "":
			return 1
		}
		return 0
	}
	slices.SortStableFunc(vf.users, func(a, b v1.Pod) int {
		return cmp.Or(rank(&a)-rank(&b), b.CreationTimestamp.Compare(a.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	if c.facts.pod == nil && len(vf.users) > 0 {
		c.facts.pod = &vf.users[0]
		vf.name, _ = usesClaim(c.facts.pod, vf.claimName)
	}
	return nil
}

// surroundings reads what the volumes and the pod refer to.
func (c *collector) surroundings() error {
	f, storage := c.facts, c.client.StorageV1()
	if classes, err := storage.StorageClasses().List(c.ctx, metav1.ListOptions{}); err == nil {
		f.classes = classes.Items
	} else if err := c.absent("storageclasses", err); err != nil {
		return err
	}
	if drivers, err := storage.CSIDrivers().List(c.ctx, metav1.ListOptions{}); err == nil {
		f.drivers = drivers.Items
	} else if err := c.absent("csidrivers", err); err != nil {
		return err
	}
	if nodes, err := storage.CSINodes().List(c.ctx, metav1.ListOptions{}); err == nil {
		f.csiNodes = nodes.Items
	} else if err := c.absent("csinodes", err); err != nil {
		return err
	}
	if attachments, err := storage.VolumeAttachments().List(c.ctx, metav1.ListOptions{}); err == nil {
		f.attachments = attachments.Items
	} else if err := c.absent("volumeattachments", err); err != nil {
		return err
	}
	if capacities, err := storage.CSIStorageCapacities("").List(c.ctx, metav1.ListOptions{}); err == nil {
		f.capacities = capacities.Items
	} else if err := c.absent("csistoragecapacities", err); err != nil {
		return err
	}
	if f.pod != nil {
		if err := c.podSurroundings(); err != nil {
			return err
		}
	}
	for i := range f.volumes {
		vf := &f.volumes[i]
		if vf.claim == nil && vf.pv != nil {
			vf.className = storagehelpers.GetPersistentVolumeClass(vf.pv)
		}
		for j := range f.classes {
			if f.classes[j].Name == vf.className {
				vf.class = &f.classes[j]
			}
		}
		if vf.claimName != "" {
			events, err := c.events(vf.namespace, "PersistentVolumeClaim", vf.claimName, since(vf.claim))
			if err != nil {
				return err
			}
			vf.events = append(vf.events, events...)
		}
		if vf.pvName != "" {
			events, err := c.events("", "PersistentVolume", vf.pvName, since(vf.pv))
			if err != nil {
				return err
			}
			vf.events = append(vf.events, events...)
		}
	}
	return nil
}

func (c *collector) podSurroundings() error {
	f := c.facts
	events, err := c.events(f.pod.Namespace, "Pod", f.pod.Name, since(f.pod))
	if err != nil {
		return err
	}
	f.podEvents = events
	if f.pod.Spec.NodeName == "" {
		return nil
	}
	node, err := c.client.CoreV1().Nodes().Get(c.ctx, f.pod.Spec.NodeName, metav1.GetOptions{})
	if err == nil {
		f.node = node
	} else if err := c.absent("nodes", err); err != nil {
		return err
	}
	for i := range f.csiNodes {
		if f.csiNodes[i].Name == f.pod.Spec.NodeName {
			f.csiNode = &f.csiNodes[i]
		}
	}
	return nil
}

// since is the creation of an object that may be nil.
func since[T interface {
	comparable
	metav1.Object
}](o T) time.Time {
	var none T
	if o == none {
		return time.Time{}
	}
	return o.GetCreationTimestamp().Time
}

// events lists the events of an object, oldest first; those of an earlier object of the same name are left out.
func (c *collector) events(namespace, kind, name string, created time.Time) ([]v1.Event, error) {
	selector := fields.Set{"involvedObject.kind": kind, "involvedObject.name": name}.AsSelector().String()
	list, err := c.client.CoreV1().Events(namespace).List(c.ctx, metav1.ListOptions{FieldSelector: selector})
	if err != nil {
		return nil, c.absent("events", err)
	}
	var events []v1.Event
	for _, e := range list.Items {
		if e.InvolvedObject.Kind == kind && e.InvolvedObject.Name == name && !eventTime(&e).Before(created) {
			events = append(events, e)
		}
	}
	slices.SortStableFunc(events, func(a, b v1.Event) int { return eventTime(&a).Compare(eventTime(&b)) })
	return events, nil
}
