package provision

import (
	"context"
	"encoding/json"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// growing is tiny with volumes that the controller alone grows.
type growing struct {
	*tiny
	mu   sync.Mutex
	asks int
}

func (d *growing) ControllerExpandVolume(_ context.Context, q *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asks++
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: q.CapacityRange.RequiredBytes}, nil
}

// versions makes a fake API keep the resourceVersions of claims, and refuse patches of an older one. after is called with each
// patch that was written, before its answer; it may write by the function that it is given, and not by the API, which is locked.
func versions(api *fake.Clientset, after func(c *v1.PersistentVolumeClaim, write func(*v1.PersistentVolumeClaim) error)) {
	last := 100
	claims := v1.SchemeGroupVersion.WithResource("persistentvolumeclaims")
	number := func(c *v1.PersistentVolumeClaim) {
		last++
		c.ResourceVersion = strconv.Itoa(last)
	}
	api.PrependReactor("update", "persistentvolumeclaims", func(a clienttesting.Action) (bool, runtime.Object, error) {
		number(a.(clienttesting.UpdateAction).GetObject().(*v1.PersistentVolumeClaim))
		return false, nil, nil
	})
	write := func(c *v1.PersistentVolumeClaim) error {
		number(c)
		return api.Tracker().Update(claims, c, c.Namespace)
	}
	patch := func(a clienttesting.PatchAction) (*v1.PersistentVolumeClaim, error) {
		o, err := api.Tracker().Get(claims, a.GetNamespace(), a.GetName())
		if err != nil {
			return nil, err
		}
		var asked metav1.PartialObjectMetadata
		if err := json.Unmarshal(a.GetPatch(), &asked); err != nil {
			return nil, err
		}
		was := o.(*v1.PersistentVolumeClaim)
		if v := asked.ResourceVersion; v != "" && v != was.ResourceVersion {
			return nil, apierrors.NewConflict(claims.GroupResource(), was.Name, nil)
		}
		before, err := json.Marshal(was)
		if err != nil {
			return nil, err
		}
		now, err := strategicpatch.StrategicMergePatch(before, a.GetPatch(), was)
		if err != nil {
			return nil, err
		}
		c := &v1.PersistentVolumeClaim{}
		if err := json.Unmarshal(now, c); err != nil {
			return nil, err
		}
		return c, write(c)
	}
	api.PrependReactor("patch", "persistentvolumeclaims", func(a clienttesting.Action) (bool, runtime.Object, error) {
		c, err := patch(a.(clienttesting.PatchAction))
		if err == nil {
			after(c, write)
		}
		return true, c, err
	})
}

// The answer to the mark of a growth comes after the events of that mark and of somebody else's next write: what the library
// then notes as the claim is old. The growth must not wait for anybody to write the claim again.
func TestGrowthWhoseMarkIsAnsweredLate(t *testing.T) {
	const label = "written-meanwhile"
	a := claim("a", "d", boundTo("d"), func(c *v1.PersistentVolumeClaim) {
		c.ResourceVersion = "1"
		c.Status.Capacity = v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}
	})
	pv := volumeFor(a, "d")
	pv.Spec.Capacity, pv.Spec.AccessModes = a.Status.Capacity.DeepCopy(), a.Spec.AccessModes
	api := fake.NewClientset(class("d"), a, pv)
	var w *world
	var once sync.Once
	versions(api, func(c *v1.PersistentVolumeClaim, write func(*v1.PersistentVolumeClaim) error) {
		once.Do(func() {
			other := c.DeepCopy()
			other.Labels = map[string]string{label: "yes"}
			if err := write(other); err != nil {
				t.Error(err)
			}
			for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
				if seen, err := w.m.claims.PersistentVolumeClaims("ns").Get("a"); err == nil && seen.Labels[label] != "" {
					break
				} else if time.Now().After(end) {
					t.Error("the informer did not see the other write")
					break
				}
			}
		})
	})
	w = startOn(t, api)
	d := &growing{tiny: &tiny{name: "d", caps: append([]csi.ControllerServiceCapability_RPC_Type{csi.ControllerServiceCapability_RPC_EXPAND_VOLUME}, createDelete...)}}
	if err := w.m.AddDriver(t.Context(), d.serveAs(t, d)); err != nil {
		t.Fatal(err)
	}
	w.eventually("the driver to be served", func() bool { return w.m.serves("d") })
	c := w.claim("a")
	c.Spec.Resources.Requests[v1.ResourceStorage] = resource.MustParse("2Gi")
	if _, err := api.CoreV1().PersistentVolumeClaims("ns").Update(t.Context(), c, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("the growth", func() bool {
		have := w.claim("a").Status.Capacity[v1.ResourceStorage]
		return have.Cmp(resource.MustParse("2Gi")) == 0
	})
}
