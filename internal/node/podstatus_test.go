package node

import (
	"errors"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/mount"
	"berth.io/berth/internal/plugin"
)

func TestHolderStatus(t *testing.T) {
	now := metav1.NewTime(time.Unix(2000, 0))
	before := metav1.NewTime(time.Unix(1000, 0))
	mounted := mount.PodStatus{AllMounted: true}
	unmounted := mount.PodStatus{Volumes: []mount.VolumeStatus{
		{Name: "ok", Mounted: true}, {Name: "slow", Waiting: "attach"}, {Name: "bad", Err: errors.New("no such thing")},
	}}
	always := v1.ContainerRestartPolicyAlways
	for _, c := range []struct {
		name  string
		edit  func(*v1.Pod)
		vols  mount.PodStatus
		phase v1.PodPhase
		ready bool
		check func(v1.PodStatus) bool
	}{
		{name: "mounted", vols: mounted, phase: v1.PodRunning, ready: true, check: func(s v1.PodStatus) bool {
			c := s.ContainerStatuses[0]
			return c.State.Running.StartedAt == now && *c.Started && c.ContainerID == "berth://holder/uid-p/c" && c.ImageID == ""
		}},
		{name: "not mounted: says what it waits for", vols: unmounted, phase: v1.PodPending, check: func(s v1.PodStatus) bool {
			return s.ContainerStatuses[0].State.Waiting.Message == `waiting for volume "slow": attach; volume "bad": no such thing`
		}},
		{name: "a running pod whose volume went stays Running", vols: unmounted, phase: v1.PodRunning,
			edit: func(p *v1.Pod) {
				p.Status.Phase = v1.PodRunning
				p.Status.ContainerStatuses = []v1.ContainerStatus{{Name: "c", State: v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: before}}}}
			},
			check: func(s v1.PodStatus) bool {
				return s.ContainerStatuses[0].State.Running.StartedAt == before && strings.Contains(conditionOf(&s, v1.PodReady).Message, "slow")
			}},
		{name: "init containers are over, sidecars run", vols: mounted, phase: v1.PodRunning, ready: true,
			edit: func(p *v1.Pod) {
				p.Spec.InitContainers = []v1.Container{{Name: "i"}, {Name: "s", RestartPolicy: &always}}
			},
			check: func(s v1.PodStatus) bool {
				i, side := s.InitContainerStatuses[0], s.InitContainerStatuses[1]
				return i.State.Terminated != nil && i.State.Terminated.Reason == holderReason && side.State.Running != nil
			}},
		{name: "init containers wait", vols: unmounted, phase: v1.PodPending,
			edit: func(p *v1.Pod) { p.Spec.InitContainers = []v1.Container{{Name: "i"}} },
			check: func(s v1.PodStatus) bool {
				return s.InitContainerStatuses[0].State.Waiting.Reason == "PodInitializing" && conditionOf(&s, v1.PodInitialized).Status == v1.ConditionFalse
			}},
		{name: "readiness gate", vols: mounted, phase: v1.PodRunning, ready: false,
			edit: func(p *v1.Pod) { p.Spec.ReadinessGates = []v1.PodReadinessGate{{ConditionType: "example.com/gate"}} },
			check: func(s v1.PodStatus) bool {
				return conditionOf(&s, v1.ContainersReady).Status == v1.ConditionTrue && conditionOf(&s, v1.PodReady).Reason == "ReadinessGatesNotReady"
			}},
		{name: "conditions and times of others stay", vols: mounted, phase: v1.PodRunning, ready: true,
			edit: func(p *v1.Pod) {
				p.Status.StartTime = &before
				p.Status.Conditions = []v1.PodCondition{
					{Type: "example.com/x", Status: v1.ConditionTrue},
					{Type: v1.PodScheduled, Status: v1.ConditionTrue, LastTransitionTime: before},
				}
			},
			check: func(s v1.PodStatus) bool {
				return conditionOf(&s, "example.com/x") != nil && conditionOf(&s, v1.PodScheduled).LastTransitionTime == before && *s.StartTime == before
			}},
		{name: "Jobs and probes are told", vols: mounted, phase: v1.PodRunning, ready: true,
			edit: func(p *v1.Pod) {
				p.Spec.RestartPolicy = v1.RestartPolicyNever
				p.Spec.Containers[0].ReadinessProbe = &v1.Probe{}
			},
			check: func(s v1.PodStatus) bool {
				m := conditionOf(&s, holderCondition).Message
				return strings.Contains(m, jobMessage) && strings.Contains(m, "probes are not run")
			}},
		{name: "host network has the node's address", vols: mounted, phase: v1.PodRunning, ready: true,
			edit:  func(p *v1.Pod) { p.Spec.HostNetwork = true },
			check: func(s v1.PodStatus) bool { return s.PodIP == "192.0.2.1" && s.HostIP == "192.0.2.1" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := testPod("p")
			if c.edit != nil {
				c.edit(pod)
			}
			s := holderStatus(pod, c.vols, []v1.HostIP{{IP: "192.0.2.1"}}, now)
			if s.Phase != c.phase || (conditionOf(&s, v1.PodReady).Status == v1.ConditionTrue) != c.ready || !c.check(s) {
				t.Errorf("status %+v", s)
			}
			// The status of an unchanged pod is not written again, however late it is.
			pod.Status = s
			again := holderStatus(pod, c.vols, []v1.HostIP{{IP: "192.0.2.1"}}, metav1.NewTime(time.Unix(3000, 0)))
			if patch, err := podPatch(pod, again, ""); err != nil || string(patch) != `{"metadata":{"uid":"uid-p"}}` {
				t.Errorf("patch of an unchanged pod: %s, %v", patch, err)
			}
		})
	}
}

func TestWhatAPodWaitsFor(t *testing.T) {
	for want, one := range map[string]mount.VolumeStatus{
		`waiting for volume "a"`:                   {Name: "a"},
		`waiting for volume "a": its claim`:        {Name: "a", Waiting: "its claim"},
		`waiting for volume "a": no disk`:          {Name: "a", Err: errors.New("no disk")},
		`waiting for volume "a" has a name of its`: {Name: "a", Err: errors.New(`volume "a" has a name of its`)},
		`waiting for a node that serves volumes of type "nfs" (volume "a")`: {Name: "a",
			Err: &plugin.ErrNotServed{Volume: "a", Type: "nfs"}},
	} {
		if got := waitingFor(mount.PodStatus{Volumes: []mount.VolumeStatus{one}}); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
