package provision

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/kubernetes-csi/external-resizer/v2/pkg/modifier"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers/storage"
	storageinformers "k8s.io/client-go/informers/storage/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/trace"
)

// byWantedAttributes is the index of claims by a VolumeAttributesClass that they want and do not have.
const byWantedAttributes = "berth.io/provision/wanted-attributes"

// wantedAttributes is the VolumeAttributesClass that a claim wants and does not have; "" when there is none.
func wantedAttributes(c *v1.PersistentVolumeClaim) string {
	want, have := "", ""
	if c.Spec.VolumeAttributesClassName != nil {
		want = *c.Spec.VolumeAttributesClassName
	}
	if c.Status.CurrentVolumeAttributesClassName != nil {
		have = *c.Status.CurrentVolumeAttributesClassName
	}
	if want == have {
		return ""
	}
	return want
}

func indexByWantedAttributes(o any) ([]string, error) {
	if c, ok := o.(*v1.PersistentVolumeClaim); ok && wantedAttributes(c) != "" {
		return []string{wantedAttributes(c)}, nil
	}
	return nil, nil
}

// attributes says, as a condition and an event, why a bound claim does not get the VolumeAttributesClass that it asks for,
// where external-resizer says nothing: the class is not there, the driver changes no volumes or is not here. And it
// wakes the libraries when the class comes. A key is a claim.
type attributes struct {
	m       *Manager
	classes storagelisters.VolumeAttributesClassLister
	queue   workqueue.TypedRateLimitingInterface[string]
}

func newAttributes(m *Manager) (*attributes, error) {
	classes := m.opts.Informers.Storage().V1().VolumeAttributesClasses()
	a := &attributes{m: m, classes: classes.Lister(), queue: newQueue("provision-attributes")}
	if _, err := classes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(o any) {
		if c, ok := o.(*storagev1.VolumeAttributesClass); ok {
			a.classCame(c)
		}
	}}); err != nil {
		return nil, err
	}
	seen := func(o any) {
		if c, ok := o.(*v1.PersistentVolumeClaim); ok && c.Status.Phase == v1.ClaimBound && (wantedAttributes(c) != "" || refusal(c) != nil) {
			a.queue.Add(c.Namespace + "/" + c.Name)
		}
	}
	_, err := m.opts.Informers.Core().V1().PersistentVolumeClaims().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: seen, UpdateFunc: func(_, o any) { seen(o) }})
	return a, err
}

// classCame looks again at the claims that want the class: one to be made with it, or one to be changed.
func (a *attributes) classCame(class *storagev1.VolumeAttributesClass) {
	found, _ := a.m.claimIndex.ByIndex(byWantedAttributes, class.Name)
	for _, o := range found {
		c, ok := o.(*v1.PersistentVolumeClaim)
		if !ok {
			continue
		}
		if c.Status.Phase != v1.ClaimBound {
			a.m.provisionAgain([]*v1.PersistentVolumeClaim{c})
			continue
		}
		a.queue.Add(c.Namespace + "/" + c.Name)
		if r := a.m.role(a.driverOf(c)); r != nil && r.ready() && r.modified != nil { // of the volume: the class may be another's
			r.modified.OnAdd(c, false)
		}
	}
}

// driverOf is the CSI driver of the claim's volume, "" where there is none.
func (a *attributes) driverOf(c *v1.PersistentVolumeClaim) string {
	if pv, err := a.m.volumes.Get(c.Spec.VolumeName); err == nil && pv.Spec.CSI != nil {
		return pv.Spec.CSI.Driver
	}
	return ""
}

// driverCame looks again at the claims on a driver's volumes that want another class.
func (a *attributes) driverCame() {
	if a == nil {
		return
	}
	for _, name := range a.m.claimIndex.ListIndexFuncValues(byWantedAttributes) {
		found, _ := a.m.claimIndex.IndexKeys(byWantedAttributes, name)
		for _, key := range found {
			a.queue.Add(key)
		}
	}
}

// Reasons of the condition ModifyVolumeError that are written here; external-resizer's are names of gRPC codes.
const (
	reasonNoClass     = "ClassNotFound"
	reasonOtherDriver = "ClassOfAnotherDriver"
	reasonCannot      = "DriverCannotModify"
)

// refusal is the condition that was written here; nil when there is none.
func refusal(c *v1.PersistentVolumeClaim) *v1.PersistentVolumeClaimCondition {
	for i := range c.Status.Conditions {
		p := &c.Status.Conditions[i]
		if p.Type == v1.PersistentVolumeClaimVolumeModifyVolumeError && slices.Contains([]string{reasonNoClass, reasonOtherDriver, reasonCannot}, p.Reason) {
			return p
		}
	}
	return nil
}

// attributesProblem is why a bound claim cannot get the class that it wants; empty when the libraries are at it. class is
// nil when there is none, driver empty for a volume of no CSI driver.
func attributesProblem(want string, class *storagev1.VolumeAttributesClass, driver string, registered, modifies bool) (reason, message string) {
	switch {
	case want == "":
		return "", ""
	case driver == "":
		return reasonCannot, "the volume belongs to no CSI driver: it has no attributes to change; set spec.volumeAttributesClassName back"
	case class == nil:
		return reasonNoClass, fmt.Sprintf("VolumeAttributesClass %q does not exist: make it, or name one of driver %s", want, driver)
	case class.DriverName != driver && !modifies: // the library says it, where there is one
		return reasonOtherDriver, ofAnotherDriver(class, driver)
	case registered && !modifies:
		return reasonCannot, fmt.Sprintf("driver %s cannot change a volume's attributes (it has no MODIFY_VOLUME); set spec.volumeAttributesClassName back", driver)
	}
	return "", ""
}

// ofAnotherDriver is why a volume of a driver cannot have the class.
func ofAnotherDriver(class *storagev1.VolumeAttributesClass, driver string) string {
	return fmt.Sprintf("VolumeAttributesClass %q is of driver %s, and the volume is of driver %s: name a class of that driver", class.Name, class.DriverName, driver)
}

func (a *attributes) settle(ctx context.Context, key string) error {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return nil
	}
	c, err := a.m.claims.PersistentVolumeClaims(namespace).Get(name)
	if err != nil || c.Status.Phase != v1.ClaimBound || c.DeletionTimestamp != nil {
		return nil
	}
	pv, err := a.m.volumes.Get(c.Spec.VolumeName)
	if err != nil {
		return nil
	}
	want := wantedAttributes(c)
	class, _ := a.classes.Get(want)
	driver, registered, modifies := "", false, false
	if pv.Spec.CSI != nil {
		driver = pv.Spec.CSI.Driver
		if r := a.m.role(driver); r != nil && r.ready() {
			registered, modifies = true, r.modifies
		}
	}
	reason, message := attributesProblem(want, class, driver, registered, modifies)
	have := refusal(c)
	if have == nil && reason == "" || have != nil && have.Reason == reason && have.Message == message {
		return nil
	}
	change := map[string]any{"type": v1.PersistentVolumeClaimVolumeModifyVolumeError, "$patch": "delete"}
	if reason != "" {
		now := metav1.NewTime(time.Now())
		change = map[string]any{"type": v1.PersistentVolumeClaimVolumeModifyVolumeError, "status": v1.ConditionTrue, "reason": reason, "message": message,
			"lastProbeTime": now, "lastTransitionTime": now}
	}
	// Of this version only: the library writes the same condition.
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": c.UID, "resourceVersion": c.ResourceVersion}, "status": map[string]any{"conditions": []any{change}}})
	if err != nil {
		return err
	}
	err = boundary.Do("provision/report-attributes", func() error {
		_, err := a.m.opts.Client.CoreV1().PersistentVolumeClaims(namespace).Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		return err
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // gone, another claim of this name, or written meanwhile, of which an event will come
	}
	if err != nil {
		return fmt.Errorf("say on claim %s why it keeps its attributes: %w", key, err)
	}
	if reason == "" {
		return nil
	}
	a.m.opts.Trace.Record(trace.Entry{Step: trace.Modified, State: trace.Failed, Detail: message, Claim: trace.Claim(c), Volume: pv.Name})
	if a.m.opts.Events != nil {
		a.m.opts.Events.Event(c, v1.EventTypeWarning, "VolumeModifyFailed", message)
	}
	return nil
}

// tracedModifier records the journey around a change of a volume's attributes.
type tracedModifier struct {
	modifier.Modifier
	r *role
}

func (t tracedModifier) Modify(ctx context.Context, pv *v1.PersistentVolume, parameters map[string]string) error {
	e := trace.Entry{Step: trace.Modified, State: trace.Began, Detail: "asking driver " + t.r.driver.Name, Claim: trace.ClaimOf(pv), Volume: pv.Name}
	key := "modify/" + pv.Name
	if why := parameters[paramRefused]; why != "" {
		if e.State, e.Detail = trace.Failed, why; t.r.waiting.Add(key, why) {
			t.r.m.opts.Trace.Record(e)
		}
		return status.Error(codes.InvalidArgument, why) // for external-resizer: Infeasible
	}
	if t.r.began.Add(key, "") {
		t.r.m.opts.Trace.Record(e)
	}
	err := t.Modifier.Modify(ctx, pv, parameters)
	if err != nil {
		if e.State, e.Detail = trace.Failed, words(err); t.r.waiting.Add(key, e.Detail) {
			t.r.m.opts.Trace.Record(e)
		}
		return err
	}
	t.r.began.Remove(key)
	t.r.waiting.Remove(key)
	e.State, e.Detail = trace.Done, ""
	t.r.m.opts.Trace.Record(e)
	return nil
}

// storageGroup and what is below shows external-resizer another driver's VolumeAttributesClass without its parameters, which
// it would give to this driver. In their place stands why the volume cannot have the class; tracedModifier answers with that.
type storageGroup struct {
	storage.Interface
	driver string
}

func (g storageGroup) V1() storageinformers.Interface { return storageV1{g.Interface.V1(), g.driver} }

type storageV1 struct {
	storageinformers.Interface
	driver string
}

func (g storageV1) VolumeAttributesClasses() storageinformers.VolumeAttributesClassInformer {
	return ownClasses{g.Interface.VolumeAttributesClasses(), g.driver}
}

type ownClasses struct {
	storageinformers.VolumeAttributesClassInformer
	driver string
}

func (i ownClasses) Lister() storagelisters.VolumeAttributesClassLister {
	return ownClassLister{i.VolumeAttributesClassInformer.Lister(), i.driver}
}

type ownClassLister struct {
	storagelisters.VolumeAttributesClassLister
	driver string
}

// paramRefused is the parameter in which a class of another driver carries why it is refused.
const paramRefused = "berth.io/refused"

func (l ownClassLister) Get(name string) (*storagev1.VolumeAttributesClass, error) {
	c, err := l.VolumeAttributesClassLister.Get(name)
	if err == nil && c.DriverName != l.driver {
		refused := c.DeepCopy()
		refused.Parameters = map[string]string{paramRefused: ofAnotherDriver(c, l.driver)}
		return refused, nil
	}
	return c, err
}
