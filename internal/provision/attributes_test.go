package provision

import (
	"context"
	"maps"
	"strings"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/ptr"
)

// modifying is tiny with changes of attributes; it notes what it is asked for.
type modifying struct {
	*tiny
	asked sync.Map // by the parameter "tier"
	last  func(map[string]string)
}

func (d *modifying) ControllerModifyVolume(_ context.Context, q *csi.ControllerModifyVolumeRequest) (*csi.ControllerModifyVolumeResponse, error) {
	d.asked.Store(q.MutableParameters["tier"], true)
	if d.last != nil {
		d.last(q.MutableParameters)
	}
	return &csi.ControllerModifyVolumeResponse{}, nil
}

func newModifying() *modifying {
	return &modifying{tiny: &tiny{name: "d", caps: append([]csi.ControllerServiceCapability_RPC_Type{csi.ControllerServiceCapability_RPC_MODIFY_VOLUME}, createDelete...)}}
}

// numbered is an API that refuses patches of an older claim, as external-resizer expects it: it takes the answer to a patch of its own for what it
// has just written.
func numbered(objects ...runtime.Object) *fake.Clientset {
	api := fake.NewClientset(objects...)
	versions(api, func(*v1.PersistentVolumeClaim, func(*v1.PersistentVolumeClaim) error) {})
	return api
}

func attributesClass(name, driver string) *storagev1.VolumeAttributesClass {
	return &storagev1.VolumeAttributesClass{ObjectMeta: metav1.ObjectMeta{Name: name}, DriverName: driver, Parameters: map[string]string{"tier": name}}
}

func wanting(class string) func(*v1.PersistentVolumeClaim) {
	return func(c *v1.PersistentVolumeClaim) { c.Spec.VolumeAttributesClassName = &class }
}

// infeasible says whether the claim tells, as external-resizer does, that the class cannot be had, with words in the condition.
func infeasible(c *v1.PersistentVolumeClaim, class, words string) bool {
	m := c.Status.ModifyVolumeStatus
	if m == nil || m.Status != v1.PersistentVolumeClaimModifyVolumeInfeasible || m.TargetVolumeAttributesClassName != class {
		return false
	}
	for _, p := range c.Status.Conditions {
		if p.Type == v1.PersistentVolumeClaimVolumeModifyVolumeError && p.Reason == "InvalidArgument" && strings.Contains(p.Message, words) {
			return true
		}
	}
	return false
}

// A class of another driver cannot be had, whether it is there before the claim wants it or comes later. The driver is never
// given another's parameters, and the claim gets a class of its own driver after that.
func TestClassOfAnotherDriverIsInfeasible(t *testing.T) {
	for name, late := range map[string]bool{"there before": false, "comes later": true} {
		t.Run(name, func(t *testing.T) {
			a := claim("a", "d", boundTo("d"), wanting("alien"), func(c *v1.PersistentVolumeClaim) { c.ResourceVersion = "1" })
			w := startOn(t, numbered(class("d"), a, volumeFor(a, "d"), attributesClass("gold", "d")))
			classes := w.api.StorageV1().VolumeAttributesClasses()
			alien := func() {
				if _, err := classes.Create(t.Context(), attributesClass("alien", "e"), metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			if !late {
				alien()
			}
			d := newModifying()
			w.m.AddDriver(t.Context(), d.serveAs(t, d))
			if late {
				w.eventually("the missing class", func() bool {
					m := w.claim("a").Status.ModifyVolumeStatus
					return m != nil && m.Status == v1.PersistentVolumeClaimModifyVolumePending
				})
				alien()
			}
			w.eventually("the claim to be infeasible", func() bool { return infeasible(w.claim("a"), "alien", "is of driver e") })

			change := w.claim("a")
			change.Spec.VolumeAttributesClassName = ptr.To("gold")
			if _, err := w.api.CoreV1().PersistentVolumeClaims("ns").Update(t.Context(), change, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			w.eventually("the driver's own class", func() bool {
				s := w.claim("a").Status
				return ptr.Deref(s.CurrentVolumeAttributesClassName, "") == "gold" && s.ModifyVolumeStatus == nil && len(s.Conditions) == 0
			})
			if _, asked := d.asked.Load("gold"); !asked {
				t.Error("the driver was not asked for its own class")
			}
			if _, asked := d.asked.Load("alien"); asked {
				t.Error("the driver was given another's parameters")
			}
		})
	}
}

// The option tells the driver whose volume it changes.
func TestModifyWithTheNamesOfClaimAndVolume(t *testing.T) {
	a := claim("a", "d", boundTo("d"), wanting("gold"), func(c *v1.PersistentVolumeClaim) { c.ResourceVersion = "1" })
	w := run(t, numbered(class("d"), a, volumeFor(a, "d"), attributesClass("gold", "d")), func(o *Options) { o.ExtraModifyMetadata = true })
	d := newModifying()
	got := make(chan map[string]string, 16)
	d.last = func(p map[string]string) { got <- p }
	w.m.AddDriver(t.Context(), d.serveAs(t, d))
	w.eventually("the change", func() bool { return ptr.Deref(w.claim("a").Status.CurrentVolumeAttributesClassName, "") == "gold" })
	want := map[string]string{"tier": "gold", "csi.storage.k8s.io/pvc/name": "a", "csi.storage.k8s.io/pvc/namespace": "ns", "csi.storage.k8s.io/pv/name": "pv"}
	if p := <-got; !maps.Equal(p, want) {
		t.Errorf("the driver was given %v", p)
	}
}
