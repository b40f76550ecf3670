package why

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/component-helpers/storage/ephemeral"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

type collector struct {
	*reader
	facts *facts
}

// gather collects what the API knows about the target. found is false when the target itself is not there.
func gather(r *reader, t Target, s *Sources) (f *facts, found bool, err error) {
	c := collector{reader: r, facts: &facts{now: s.Now, elsewhere: s.elsewhere()}}
	switch t.Kind {
	case Pod:
		found, err = c.ofPod(t.Namespace, t.Name)
	case PVC:
		found, err = c.ofClaim(t.Namespace, t.Name)
	case PV:
		found, err = c.ofVolume(t.Name)
	default:
		err = fmt.Errorf("unknown kind %q", t.Kind)
	}
	if err != nil {
		return nil, false, err
	}
	if err := c.surroundings(); err != nil {
		return nil, false, err
	}
	c.facts.unreadable = r.unreadable
	return c.facts, found, nil
}

func (c *collector) ofPod(namespace, name string) (bool, error) {
	pod, err := c.pod(namespace, name)
	if pod == nil || err != nil {
		return false, err
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

func (c *collector) ofClaim(namespace, name string) (bool, error) {
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

func (c *collector) ofVolume(name string) (bool, error) {
	pv, err := c.volume(name)
	if pv == nil || err != nil {
		c.facts.volumes = []volumeFacts{{pvName: name}}
		return false, err
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
	claim, err := c.claim(vf.namespace, vf.claimName)
	if claim == nil || err != nil {
		return err
	}
	vf.claim = claim
	vf.className = storagehelpers.GetPersistentVolumeClaimClass(claim)
	if vf.pvName = claim.Spec.VolumeName; vf.pvName != "" {
		if vf.pv, err = c.volume(vf.pvName); err != nil {
			return err
		}
	}
	return nil
}

// findUsers finds the pods that use the claim. Without a pod that was asked about, the one that matters most becomes
// the journey's: not finished, on a node, the youngest.
func (c *collector) findUsers(vf *volumeFacts) error {
	var err error
	if vf.users, err = c.usersOf(vf.namespace, vf.claimName); err != nil {
		return err
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
	f := c.facts
	var err error
	if f.classes, err = c.classes(); err != nil {
		return err
	}
	if f.drivers, err = c.drivers(); err != nil {
		return err
	}
	if f.csiNodes, err = c.csiNodes(); err != nil {
		return err
	}
	if f.attachments, err = c.attachments(); err != nil {
		return err
	}
	if f.capacities, err = c.capacities(); err != nil {
		return err
	}
	if f.elsewhere {
		f.leases = c.leases()
		if slices.ContainsFunc(f.volumes, func(vf volumeFacts) bool { return handed(&vf) }) {
			had := slices.Clone(c.unreadable)
			if f.claims, err = c.claims(metav1.NamespaceAll); err != nil {
				return err
			}
			c.unreadable = had // only the length of a queue is told from them
		}
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
			events, err := c.events(metav1.NamespaceDefault, "PersistentVolume", vf.pvName, since(vf.pv))
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
		f.nodes, err = c.nodes()
		return err
	}
	if f.node, err = c.node(f.pod.Spec.NodeName); err != nil {
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

// events lists the events of an object, oldest first; those of an earlier object of the same name are left out. Events of objects
// without a namespace are in "default" (client-go's recorder).
func (r *reader) events(namespace, kind, name string, created time.Time) ([]v1.Event, error) {
	all, err := r.eventsNaming(namespace, kind, name)
	if err != nil {
		return nil, err
	}
	var events []v1.Event
	for _, e := range all {
		if e.InvolvedObject.Kind == kind && e.InvolvedObject.Name == name && !eventTime(&e).Before(created) {
			events = append(events, e)
		}
	}
	slices.SortStableFunc(events, func(a, b v1.Event) int { return eventTime(&a).Compare(eventTime(&b)) })
	return events, nil
}

func (r *reader) eventsNaming(namespace, kind, name string) ([]v1.Event, error) {
	if r.whole {
		return r.eventsIndexed(namespace, kind+"/"+name)
	}
	selector := fields.Set{"involvedObject.kind": kind, "involvedObject.name": name}.AsSelector().String()
	list, err := r.client.CoreV1().Events(namespace).List(r.ctx, metav1.ListOptions{FieldSelector: selector})
	if err != nil {
		return nil, r.absent("events", err)
	}
	return list.Items, nil
}
