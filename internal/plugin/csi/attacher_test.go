package csi

import (
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/plugin"
)

// An attach makes the object and reports what its status says; a detach deletes it and is done when it has gone.
func TestAttachDetach(t *testing.T) {
	v := testVolume()
	p, client := newPlugin(t, nil, DriversOptions{}, v.PV)
	ctx := t.Context()
	attachments := client.StorageV1().VolumeAttachments()
	name := attachmentName("handle/1", testDriver, testNode)
	seen := func(cond func(*storagev1.VolumeAttachment) bool) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			va, err := p.attachments.Get(name)
			if apierrors.IsNotFound(err) {
				va = nil
			}
			if cond(va) {
				return
			}
		}
		t.Fatal("the informer does not show it")
	}

	for range 2 { // the second finds the object of the first
		a, err := p.Attach(ctx, v, testNode)
		if err != nil || !strings.Contains(a.Pending, testDriver) {
			t.Fatalf("attach: %+v, %v", a, err)
		}
	}
	va, err := attachments.Get(ctx, name, metav1.GetOptions{})
	if err != nil || va.Spec.Attacher != testDriver || va.Spec.NodeName != testNode || *va.Spec.Source.PersistentVolumeName != "pv-1" {
		t.Fatalf("object %+v, %v", va, err)
	}
	va.Status.AttachError = &storagev1.VolumeError{Message: "no room"}
	if va, err = attachments.UpdateStatus(ctx, va, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	seen(func(va *storagev1.VolumeAttachment) bool { return va != nil && va.Status.AttachError != nil })
	if _, err := p.Attach(ctx, v, testNode); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("attach error: %v", err)
	}
	va.Status = storagev1.VolumeAttachmentStatus{Attached: true}
	if _, err = attachments.UpdateStatus(ctx, va, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	seen(func(va *storagev1.VolumeAttachment) bool { return va != nil && va.Status.Attached })
	if a, err := p.Attach(ctx, v, testNode); err != nil || a.Pending != "" {
		t.Errorf("attached: %+v, %v", a, err)
	}

	unique, _ := p.UniqueName(v)
	all, err := p.Attached(ctx)
	if err != nil || len(all) != 1 || all[0].Name != unique || all[0].Node != testNode || all[0].Uncertain || all[0].Volume.PV.Name != "pv-1" {
		t.Errorf("attached: %+v, %v", all, err)
	}

	at := plugin.AttachedVolume{Name: unique}
	if done, err := p.Detach(ctx, at, testNode); err != nil || done {
		t.Errorf("detach: %v, %v", done, err)
	}
	seen(func(va *storagev1.VolumeAttachment) bool { return va == nil })
	deletes := len(client.Actions())
	if done, err := p.Detach(ctx, at, testNode); err != nil || !done {
		t.Errorf("detach: %v, %v", done, err)
	}
	if n := len(client.Actions()); n != deletes {
		t.Error("the API was asked although the watch had shown it")
	}
	if done, err := p.Detach(ctx, at, testNode); err != nil || !done {
		t.Errorf("detach of what is not attached: %v, %v", done, err)
	}
}

func TestAttachable(t *testing.T) {
	yes := true
	for name, c := range map[string]struct {
		object *storagev1.CSIDriver
		change func(*plugin.Volume)
		want   bool
	}{
		"required":     {csiDriver(func(d *storagev1.CSIDriverSpec) { d.AttachRequired = &yes }), nil, true},
		"not required": {csiDriver(), nil, false},
		"no object":    {nil, nil, true},
		"inline": {nil, func(v *plugin.Volume) {
			v.PV, v.Source = nil, &v1.Volume{Name: "x", VolumeSource: v1.VolumeSource{CSI: &v1.CSIVolumeSource{Driver: testDriver}}}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			p, client := newPlugin(t, nil, DriversOptions{})
			if c.object != nil {
				if _, err := client.StorageV1().CSIDrivers().Create(t.Context(), c.object, metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
				for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
					if d, _ := p.csiDriver(testDriver); d != nil {
						break
					}
				}
			}
			v := testVolume()
			if c.change != nil {
				c.change(v)
			}
			if got, err := p.Attachable(v); err != nil || got != c.want {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}
