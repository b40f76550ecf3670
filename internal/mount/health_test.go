package mount

import (
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"berth.io/berth/internal/plugin"
)

// round asks all drivers once.
func (r *rig) round() {
	r.t.Helper()
	r.manager.inspectAll(r.t.Context())
	r.until("the drivers' answers", func() bool {
		r.manager.mu.Lock()
		defer r.manager.mu.Unlock()
		return len(r.manager.inspecting) == 0
	})
}

// gauge reads the one figure of that name, which must be that of claim-1.
func gauge(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name && len(f.Metric) == 1 && f.Metric[0].Label[1].GetValue() == "claim-1" {
			return f.Metric[0].GetGauge().GetValue()
		}
	}
	t.Errorf("no figure %s", name)
	return 0
}

// A volume falls ill, stays so, and recovers: one event for each change, on the pod, and figures by claim.
func TestHealthAndUsageAreTold(t *testing.T) {
	metrics := prometheus.NewRegistry()
	r := newRig(t, volumes(1), func(_ *rig, o *Options) { o.Metrics = metrics })
	r.manager.PodsComplete()
	r.attach("pv-1")
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.untilMounted("pod-1")
	if e := <-r.events.Events; !strings.Contains(e, "SuccessfulMountVolume") {
		t.Fatal(e)
	}
	say := func(problems ...plugin.Problem) {
		r.plugin.mu.Lock()
		r.plugin.seen["pv-1"] = plugin.Inspection{Bytes: &plugin.Usage{Total: 100, Used: 60, Available: 40}, Health: true, Problems: problems}
		r.plugin.mu.Unlock()
		r.round()
		r.round() // the same again is no news
	}
	say()
	if got := r.manager.Unwell(); len(got) != 0 {
		t.Errorf("a volume that is well: %+v", got)
	}
	say(plugin.Problem{Kind: "DEGRADED", Reason: "OnePath", Message: "one path is left"})
	if got := r.manager.Unwell(); len(got) != 1 || got[0].PV != "pv-1" || got[0].Claim.Name != "claim-1" || got[0].Pod.Name != "pod-1" ||
		!slices.Equal(got[0].Problems, []string{"DEGRADED (OnePath): one path is left"}) || got[0].Since.IsZero() {
		t.Errorf("a volume that is not: %+v", got)
	}
	for name, want := range map[string]float64{
		"kubelet_volume_stats_capacity_bytes": 100, "kubelet_volume_stats_used_bytes": 60, "kubelet_volume_stats_available_bytes": 40,
		"kubelet_volume_stats_health_status_abnormal": 1,
	} {
		if got := gauge(t, metrics, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	// A driver that can't be asked has said nothing: the problem is not over.
	r.plugin.mu.Lock()
	r.plugin.seen["pv-1"] = plugin.Inspection{}
	r.plugin.mu.Unlock()
	r.plugin.fail("inspect pv-1", plugin.ErrDriverMissing)
	r.round()
	say()
	if got := r.manager.Unwell(); len(got) != 0 {
		t.Errorf("a volume that has recovered: %+v", got)
	}
	for _, want := range []string{
		"Warning VolumeConditionAbnormal Volume vol-claim-1: DEGRADED (OnePath): one path is left",
		"Normal VolumeConditionNormal Volume vol-claim-1: its driver reports no problem any more",
	} {
		if got := <-r.events.Events; got != want {
			t.Errorf("event %q, want %q", got, want)
		}
	}
	select {
	case e := <-r.events.Events:
		t.Errorf("one more event: %q", e)
	default:
	}
}

// A driver that hangs is asked once, and what it says of a volume that has gone meanwhile is dropped.
func TestAHangingInspectionIsNotRepeated(t *testing.T) {
	r := newRig(t, volumes(1))
	r.manager.PodsComplete()
	r.attach("pv-1")
	r.manager.SetPod(pod("pod-1", "claim-1"))
	r.untilMounted("pod-1")
	r.plugin.mu.Lock()
	r.plugin.seen["pv-1"] = plugin.Inspection{Health: true, Problems: []plugin.Problem{{Kind: "INACCESSIBLE"}}}
	r.plugin.mu.Unlock()
	release := r.plugin.hang("inspect pv-1")
	for range 3 {
		r.manager.inspectAll(t.Context())
		r.until("the question", func() bool { return slices.Contains(r.plugin.called(), "inspect pv-1") })
	}
	r.manager.ReleasePod("pod-1")
	r.untilUnmounted("pod-1")
	release()
	r.until("the answer", func() bool {
		r.manager.mu.Lock()
		defer r.manager.mu.Unlock()
		return len(r.manager.inspecting) == 0
	})
	asked := 0
	for _, call := range r.plugin.called() {
		if call == "inspect pv-1" {
			asked++
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	for len(r.events.Events) > 0 {
		if e := <-r.events.Events; strings.Contains(e, "VolumeCondition") {
			t.Errorf("event of a volume that has gone: %q", e)
		}
	}
}
