package provision

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A driver that hangs with one attach and one creation: both lanes say so, the others are empty; the metrics agree.
func TestLoadOfALaneThatHangs(t *testing.T) {
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	va := attachment("va", "d", "pv")
	va.CreationTimestamp = metav1.NewTime(time.Now().Add(-time.Minute))
	w := start(t, class("d"), claim("a", "d"), csiVolume("pv", "d"), va,
		&storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{Name: "d", NodeID: "id-n"}}}})
	d := &tiny{name: "d", caps: append([]csi.ControllerServiceCapability_RPC_Type{csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME}, createDelete...)}
	d.create = func(ctx context.Context, _ *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
		select {
		case <-hang:
		case <-ctx.Done():
		}
		return nil, ctx.Err()
	}
	d.publish = func(ctx context.Context, _ *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
		select {
		case <-hang:
		case <-ctx.Done():
		}
		return nil, ctx.Err()
	}
	w.m.AddDriver(t.Context(), d.serve(t))
	load := func() map[string]Load {
		by := map[string]Load{}
		for _, l := range w.m.Load() {
			by[l.Lane] = l
		}
		return by
	}
	w.eventually("both calls to run", func() bool { l := load(); return l[LaneAttach].Running == 1 && l[LaneProvision].Running == 1 })
	l := load()
	if a := l[LaneAttach]; a.Items != 1 || a.Oldest != "va" || time.Since(a.Since) < 50*time.Second || a.Workers != 4 {
		t.Errorf("attach: %+v", a)
	}
	if p := l[LaneProvision]; p.Items != 1 || p.Oldest != "ns/a" {
		t.Errorf("provision: %+v", p)
	}
	if l[LaneDetach].Items+l[LaneDelete].Items != 0 || len(l) != 4 {
		t.Errorf("the others: %+v", l)
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(loads{w.m})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]float64{}
	for _, f := range families {
		for _, s := range f.Metric {
			labels := map[string]string{}
			for _, l := range s.Label {
				labels[l.GetName()] = l.GetValue()
			}
			name := f.GetName() + "/" + labels["lane"]
			if f.GetName() == "berth_lane_oldest_info" {
				name = fmt.Sprintf("oldest/%s/%s/%s/%s/%s", labels["lane"], labels["claim_namespace"], labels["claim"], labels["volume"], labels["target_node"])
			}
			shown[name] = s.GetGauge().GetValue()
		}
	}
	if shown["oldest/attach///pv/n"] != 1 || shown["oldest/provision/ns/a//"] != 1 {
		t.Errorf("the oldest: %v", shown)
	}
	if shown["berth_lane_items/attach"] != 1 || shown["berth_lane_items/detach"] != 0 || shown["berth_lane_running/attach"] != 1 || shown["berth_lane_oldest_seconds/attach"] < 50 || len(shown) != 14 {
		t.Errorf("metrics: %v", shown)
	}
}

// A user who waits is told by an event on the volume: that the driver has been asked, or how many are before.
func TestLaneWaitIsTold(t *testing.T) {
	old := metav1.NewTime(time.Now().Add(-time.Minute))
	first, second := attachment("first", "d", "pv1"), attachment("second", "d", "pv2")
	first.CreationTimestamp, second.CreationTimestamp = old, metav1.Now()
	w := start(t, csiVolume("pv1", "d"), csiVolume("pv2", "d"), first, second)
	d := &tiny{name: "d", caps: []csi.ControllerServiceCapability_RPC_Type{csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME}}
	w.m.AddDriver(t.Context(), d.serve(t)) // without a CSINode nothing is attached
	w.eventually("the driver to be served", func() bool { return w.m.attaches("d") })
	done := w.m.holders.begin("d", "ControllerPublishVolume", "h-pv1")
	defer done()
	for name, want := range map[string]*regexp.Regexp{
		"first": regexp.MustCompile("driver d has been asked to attach the volume at node n"),
		// What an object has of its time is whole seconds.
		"second": regexp.MustCompile("1 before it in the attach lane of driver d, the oldest for 1m[0-9]+s; 1 of 4 workers are calling the driver"),
	} {
		va, err := w.m.attachments.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		pv, err := w.m.volumes.Get(*va.Spec.Source.PersistentVolumeName)
		if err != nil {
			t.Fatal(err)
		}
		lane, since := laneOfAttachment(va)
		if got, _ := w.m.laneWaits.text(va, lane, since, pv); !want.MatchString(got) {
			t.Errorf("%s: %q; want %q in it", name, got, want)
		}
	}
}

// Roles that another process has are not taken up.
func TestRolesThatAreNotChosen(t *testing.T) {
	w := startWith(t, func(o *Options) { o.Without = []Role{Attach, Resize, SnapshotController} }, class("d"), claim("a", "d"), attachment("va", "d", "pv"))
	d := &tiny{name: "d", caps: append([]csi.ControllerServiceCapability_RPC_Type{csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME}, createDelete...)}
	w.m.AddDriver(t.Context(), d.serve(t))
	w.eventually("the volume", func() bool { return w.volume("pvc-uid-a") != nil })
	if roles := strings.Join(w.m.Status()[0].Roles, ","); roles != "provision" {
		t.Errorf("roles: %s", roles)
	}
	if pv := w.volume("pvc-uid-a"); strings.Contains(strings.Join(pv.Finalizers, ","), "external-attacher") {
		t.Errorf("the attacher's finalizer: %q", pv.Finalizers)
	}
	if f, _ := w.m.NewAttachment("d", "n"); f != nil {
		t.Errorf("finalizers for a new attachment: %q", f)
	}
	if w.attached("va") {
		t.Error("attached")
	}
	if _, err := New(Options{Client: w.api, Informers: w.m.opts.Informers, Without: []Role{"atach"}}); err == nil || !strings.Contains(err.Error(), `"atach"`) {
		t.Errorf("an unknown role: %v", err)
	}
}

// Nothing that changes something is asked of a driver when this process may not act.
func TestNothingIsAskedWithoutLeave(t *testing.T) {
	w := startWith(t, func(o *Options) { o.MayAct = func() error { return context.Canceled } }, class("d"), claim("a", "d"))
	d := &tiny{name: "d", caps: createDelete}
	w.m.AddDriver(t.Context(), d.serve(t))
	w.eventually("the refusal", func() bool {
		a, ok := w.m.intents.attemptOf("uid-a")
		return ok && a.outcome != running
	})
	if n, _ := d.calls(); n != 0 {
		t.Errorf("asked %d times", n)
	}
}
