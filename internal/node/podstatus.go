package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/mount"
	"berth.io/berth/internal/plugin"
)

const (
	// holderCondition on a pod says that its containers are not run, and what that means for this pod.
	holderCondition v1.PodConditionType = "storage.berth.io/Holder"

	holderReason   = "Holder"
	deadlineReason = "DeadlineExceeded"
	jobMessage     = "Job pods need a container runtime; this node only holds volumes"
)

// holderStatus is the status of a holder whose volumes are as vols says: pure, so that its tests are tables. It keeps
// from the old status what others have written (conditions, qosClass, resize).
func holderStatus(pod *v1.Pod, vols mount.PodStatus, hostIPs []v1.HostIP, now metav1.Time) v1.PodStatus {
	s := *pod.Status.DeepCopy()
	s.ObservedGeneration = pod.Generation
	if s.StartTime == nil {
		s.StartTime = &now
	}
	setAddresses(&s, pod, hostIPs)
	// A pod that runs does not go back to Pending: it is not ready, and says why.
	runs := vols.AllMounted || s.Phase == v1.PodRunning
	s.Phase = v1.PodPending
	if runs {
		s.Phase = v1.PodRunning
	}
	c := containers{pod: pod, ready: vols.AllMounted, runs: runs, waiting: waitingFor(vols), now: now}
	s.InitContainerStatuses = c.initStatuses(s.InitContainerStatuses)
	s.ContainerStatuses = c.statuses(pod.Spec.Containers, s.ContainerStatuses)
	s.EphemeralContainerStatuses = c.ephemeralStatuses(s.EphemeralContainerStatuses)
	setHolderConditions(&s, pod, vols.AllMounted, runs, waitingFor(vols), now)
	return s
}

func setAddresses(s *v1.PodStatus, pod *v1.Pod, hostIPs []v1.HostIP) {
	if len(hostIPs) == 0 {
		return
	}
	s.HostIP, s.HostIPs = hostIPs[0].IP, hostIPs
	if pod.Spec.HostNetwork { // any other pod has no network of its own here, and no address
		s.PodIP = s.HostIP
		s.PodIPs = nil
		for _, ip := range hostIPs {
			s.PodIPs = append(s.PodIPs, v1.PodIP(ip))
		}
	}
}

// waitingFor names the volumes that are not mounted and why; empty when all are.
func waitingFor(vols mount.PodStatus) string {
	if vols.AllMounted {
		return ""
	}
	var parts []string
	for _, v := range vols.Volumes {
		if v.Mounted {
			continue
		}
		part := fmt.Sprintf("volume %q", v.Name)
		var notServed *plugin.ErrNotServed
		switch {
		case errors.As(v.Err, &notServed):
			part = fmt.Sprintf("a node that serves volumes of type %q (%s)", notServed.Type, part)
		case v.Err != nil && strings.HasPrefix(v.Err.Error(), part):
			part = v.Err.Error()
		case v.Err != nil:
			part += ": " + v.Err.Error()
		case v.Waiting != "":
			part += ": " + v.Waiting
		}
		parts = append(parts, part)
	}
	if len(parts) == 0 {
		return "waiting for its volumes"
	}
	return "waiting for " + strings.Join(parts, "; ")
}

// containers makes the statuses of a pod's containers.
type containers struct {
	pod         *v1.Pod
	ready, runs bool
	waiting     string
	now         metav1.Time
}

// statuses of the app containers: running, in the sense that the pod holds its volumes.
func (c containers) statuses(spec []v1.Container, old []v1.ContainerStatus) []v1.ContainerStatus {
	list := make([]v1.ContainerStatus, 0, len(spec))
	for i := range spec {
		list = append(list, c.running(&spec[i], statusNamed(old, spec[i].Name)))
	}
	return list
}

func (c containers) running(spec *v1.Container, old *v1.ContainerStatus) v1.ContainerStatus {
	started := c.runs
	s := v1.ContainerStatus{Name: spec.Name, Image: spec.Image, Ready: c.ready, Started: &started}
	if !c.runs {
		s.State.Waiting = &v1.ContainerStateWaiting{Reason: "ContainerCreating", Message: c.waiting}
		return s
	}
	s.ContainerID = "berth://holder/" + string(c.pod.UID) + "/" + spec.Name
	since := c.now
	if old != nil && old.State.Running != nil {
		since = old.State.Running.StartedAt
	}
	s.State.Running = &v1.ContainerStateRunning{StartedAt: since}
	return s
}

// initStatuses: a sidecar runs like the others; a plain init container is over without having run, and says so.
func (c containers) initStatuses(old []v1.ContainerStatus) []v1.ContainerStatus {
	var list []v1.ContainerStatus
	for i := range c.pod.Spec.InitContainers {
		spec := &c.pod.Spec.InitContainers[i]
		was := statusNamed(old, spec.Name)
		if spec.RestartPolicy != nil && *spec.RestartPolicy == v1.ContainerRestartPolicyAlways {
			list = append(list, c.running(spec, was))
			continue
		}
		started := false
		s := v1.ContainerStatus{Name: spec.Name, Image: spec.Image, Ready: c.runs, Started: &started}
		switch {
		case !c.runs:
			s.State.Waiting = &v1.ContainerStateWaiting{Reason: "PodInitializing", Message: c.waiting}
		case was != nil && was.State.Terminated != nil:
			s.State, s.ContainerID = was.State, was.ContainerID
		default:
			s.ContainerID = "berth://holder/" + string(c.pod.UID) + "/" + spec.Name
			s.State.Terminated = &v1.ContainerStateTerminated{
				Reason: holderReason, Message: "not run: this node has no container runtime",
				StartedAt: c.now, FinishedAt: c.now, ContainerID: s.ContainerID,
			}
		}
		list = append(list, s)
	}
	return list
}

func (c containers) ephemeralStatuses(old []v1.ContainerStatus) []v1.ContainerStatus {
	var list []v1.ContainerStatus
	for i := range c.pod.Spec.EphemeralContainers {
		spec := &c.pod.Spec.EphemeralContainers[i]
		s := v1.ContainerStatus{Name: spec.Name, Image: spec.Image}
		if was := statusNamed(old, spec.Name); was != nil {
			s = *was
		} else {
			s.State.Waiting = &v1.ContainerStateWaiting{Reason: holderReason, Message: "not run: this node has no container runtime; use `berth exec`"}
		}
		list = append(list, s)
	}
	return list
}

func statusNamed(list []v1.ContainerStatus, name string) *v1.ContainerStatus {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

// setHolderConditions writes the kubelet's conditions and the holder's own.
func setHolderConditions(s *v1.PodStatus, pod *v1.Pod, ready, runs bool, waiting string, now metav1.Time) {
	set := func(kind v1.PodConditionType, ok bool, reason, message string) {
		c := v1.PodCondition{Type: kind, Status: v1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: pod.Generation}
		if ok {
			c.Status = v1.ConditionTrue
			if kind != holderCondition {
				c.Reason, c.Message = "", ""
			}
		}
		setPodCondition(s, c, now)
	}
	unready := "containers with unready status: [" + strings.Join(containerNames(pod.Spec.Containers), " ") + "]"
	if waiting != "" {
		unready += "; " + waiting
	}
	set(v1.PodReadyToStartContainers, ready || runs, "VolumesNotMounted", waiting)
	set(v1.PodInitialized, runs || len(pod.Spec.InitContainers) == 0, "ContainersNotInitialized",
		"containers with incomplete status: ["+strings.Join(containerNames(pod.Spec.InitContainers), " ")+"]")
	gates := gatesMissing(s, pod)
	switch {
	case !ready:
		set(v1.PodReady, false, "ContainersNotReady", unready)
	case gates != "":
		set(v1.PodReady, false, "ReadinessGatesNotReady", gates)
	default:
		set(v1.PodReady, true, "", "")
	}
	set(v1.ContainersReady, ready, "ContainersNotReady", unready)
	set(v1.PodScheduled, true, "", "")
	set(holderCondition, true, "NoContainerRuntime", holderMessage(pod))
}

// gatesMissing is the kubelet's message about readiness gates that are not met.
func gatesMissing(s *v1.PodStatus, pod *v1.Pod) string {
	var missing []string
	for _, gate := range pod.Spec.ReadinessGates {
		c := conditionOf(s, gate.ConditionType)
		switch {
		case c == nil:
			missing = append(missing, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.ConditionType))
		case c.Status != v1.ConditionTrue:
			missing = append(missing, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", gate.ConditionType, c.Status))
		}
	}
	return strings.Join(missing, ", ")
}

// holderMessage says what is not done for this pod.
func holderMessage(pod *v1.Pod) string {
	message := "the pod holds its volumes; its containers' commands are not run (use `berth exec`)"
	if pod.Spec.RestartPolicy != v1.RestartPolicyAlways && pod.Spec.RestartPolicy != "" {
		message += "; " + jobMessage
	}
	if hasProbes(pod) {
		message += "; probes are not run: Ready means that all volumes are mounted"
	}
	return message
}

func hasProbes(pod *v1.Pod) bool {
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		if c.LivenessProbe != nil || c.ReadinessProbe != nil || c.StartupProbe != nil {
			return true
		}
	}
	return false
}

// setPodCondition keeps the time of the last transition when the status stays.
func setPodCondition(s *v1.PodStatus, c v1.PodCondition, now metav1.Time) {
	c.LastTransitionTime = now
	if old := conditionOf(s, c.Type); old != nil {
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		c.LastProbeTime = old.LastProbeTime
		*old = c
		return
	}
	s.Conditions = append(s.Conditions, c)
}

func conditionOf(s *v1.PodStatus, kind v1.PodConditionType) *v1.PodCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == kind {
			return &s.Conditions[i]
		}
	}
	return nil
}

func containerNames(list []v1.Container) []string {
	names := make([]string, len(list))
	for i := range list {
		names[i] = list[i].Name
	}
	return names
}

// endedStatus is the status of a pod whose containers are over: killed by a deadline, or deleted.
func endedStatus(pod *v1.Pod, phase v1.PodPhase, reason, message string, now metav1.Time) v1.PodStatus {
	s := *pod.Status.DeepCopy()
	s.ObservedGeneration = pod.Generation
	s.Phase, s.Reason, s.Message = phase, reason, message
	exit := int32(0)
	if phase == v1.PodFailed {
		exit = 137
	}
	end := func(spec []v1.Container, old []v1.ContainerStatus) []v1.ContainerStatus {
		var list []v1.ContainerStatus
		for i := range spec {
			c := v1.ContainerStatus{Name: spec[i].Name, Image: spec[i].Image}
			started := now
			if was := statusNamed(old, spec[i].Name); was != nil {
				c = *was.DeepCopy()
				if c.State.Terminated != nil {
					list = append(list, c)
					continue
				}
				if c.State.Running != nil {
					started = c.State.Running.StartedAt
				}
			}
			no := false
			c.Ready, c.Started = false, &no
			c.State = v1.ContainerState{Terminated: &v1.ContainerStateTerminated{
				ExitCode: exit, Reason: holderReason, Message: "never ran: this node has no container runtime",
				StartedAt: started, FinishedAt: now, ContainerID: c.ContainerID,
			}}
			list = append(list, c)
		}
		return list
	}
	s.InitContainerStatuses = end(pod.Spec.InitContainers, s.InitContainerStatuses)
	s.ContainerStatuses = end(pod.Spec.Containers, s.ContainerStatuses)
	why := "PodFailed"
	if phase == v1.PodSucceeded {
		why = "PodCompleted"
	}
	for _, kind := range []v1.PodConditionType{v1.PodReady, v1.ContainersReady} {
		setPodCondition(&s, v1.PodCondition{Type: kind, Status: v1.ConditionFalse, Reason: why, ObservedGeneration: pod.Generation}, now)
	}
	return s
}

// pathsOf is the value of the paths annotation: all mounted volumes.
func pathsOf(vols mount.PodStatus) string {
	paths := map[string]string{}
	for _, v := range vols.Volumes {
		if v.Mounted && v.Path != "" {
			paths[v.Name] = v.Path
		}
	}
	text, err := json.Marshal(paths) // keys sorted: the same volumes give the same text
	if err != nil {
		return "{}"
	}
	return string(text)
}
