package mount

import (
	"errors"
	"fmt"
	"regexp"

	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/trace"
)

// Reasons of events, as the kubelet's.
const (
	eventFailedMount       = "FailedMount"
	eventFailedMap         = "FailedMapVolume"
	eventFailedAttach      = "FailedAttachVolume"
	eventSuccessfulMount   = "SuccessfulMountVolume"
	eventResizeSuccessful  = "VolumeResizeSuccessful"
	eventResizeFailed      = "VolumeResizeFailed"
	eventFSResizeSucceeded = "FileSystemResizeSuccessful"
	eventFSResizeFailed    = "FileSystemResizeFailed"
)

// mounted tells of a volume's first publish in a pod. The pod's own sources (configMaps and the like) would only be noise.
func (m *Manager) mounted(u *use) {
	if u.resolved.PV == nil {
		return
	}
	operation := "MountVolume.SetUp"
	if u.mode == v1.PersistentVolumeBlock {
		operation = "MapVolume.MapPodDevice"
	}
	m.opts.Events.Eventf(u.resolved.Pod, v1.EventTypeNormal, eventSuccessfulMount, "%s succeeded for volume %q", operation, u.specName)
}

// loopNumber is different at each try: events whose texts differ in nothing else would not be counted as one.
var loopNumber = regexp.MustCompile(`/dev/loop[0-9]+`)

// stable is the text of an error for an event; the log keeps the exact one.
func stable(err error) string { return loopNumber.ReplaceAllString(err.Error(), "/dev/loop*") }

// mountFailed tells of a failed step towards a pod's volume. The operations are named as the kubelet names them.
func (m *Manager) mountFailed(u *use, onFilesystem, onBlock string, err error) {
	if errors.Is(err, errStopping) {
		return
	}
	if errors.Is(err, plugin.ErrDriverMissing) && u.back.failures+u.volume.back.failures <= 1 {
		m.changed(u.pod)
		return // a driver that starts together with us is there in a moment: only a second failure is worth an event
	}
	reason, operation := eventFailedMount, onFilesystem
	if u.mode == v1.PersistentVolumeBlock {
		reason, operation = eventFailedMap, onBlock
	}
	m.opts.Events.Eventf(u.resolved.Pod, v1.EventTypeWarning, reason, "%s failed for volume %q : %s", operation, u.specName, stable(err))
	m.log.Warn("mount", "operation", operation, "volume", u.specName, "pod", podName(u), "err", err)
	m.changed(u.pod)
}

func (m *Manager) unmountFailed(v *volume, u *use, operation string, err error) {
	if errors.Is(err, errStopping) {
		return
	}
	args := []any{"volume", v.specName, "err", err}
	if u != nil {
		args = append(args, "pod", podName(u))
	}
	m.log.Warn(operation, args...)
}

func (m *Manager) attachFailed(v *volume, err error) {
	if errors.Is(err, errStopping) {
		return
	}
	m.log.Warn("attach", "volume", v.specName, "err", err)
	for _, u := range v.uses {
		if u.desired && u.resolved != nil {
			m.opts.Events.Eventf(u.resolved.Pod, v1.EventTypeWarning, eventFailedAttach, "AttachVolume.Attach failed for volume %q : %s", v.specName, stable(err))
			m.changed(u.pod)
		}
	}
}

// refused tells of a volume that can't be mounted as the pod asks for it.
func (m *Manager) refused(pod *v1.Pod, source *v1.Volume, err error) {
	m.opts.Events.Eventf(pod, v1.EventTypeWarning, eventFailedMount, "volume %q can't be mounted: %s", source.Name, stable(err))
	m.log.Warn("volume refused", "pod", pod.Namespace+"/"+pod.Name, "volume", source.Name, "err", err)
	m.opts.Trace.Record(trace.Entry{
		Step: trace.Published, State: trace.Failed, Detail: fmt.Sprintf("volume %q: %v", source.Name, err),
		Claim: claimRef(pod, claimName(pod, source)), Pod: trace.Pod(pod), Node: m.opts.Node,
	})
}

func (m *Manager) traceWaiting(s trace.Step, pod *v1.Pod, claim, pv, reason string) {
	m.opts.Trace.Record(trace.Entry{
		Step: s, State: trace.Waiting, Detail: reason,
		Claim: claimRef(pod, claim), Pod: trace.Pod(pod), Volume: pv, Node: m.opts.Node,
	})
}

func claimRef(pod *v1.Pod, claim string) trace.ObjectRef {
	if claim == "" {
		return trace.ObjectRef{}
	}
	return trace.ObjectRef{Namespace: pod.Namespace, Name: claim}
}

// traceStep records a step of a volume's journey. Sources of the pod's own (secrets, configMaps) have none, unless they fail.
func (m *Manager) traceStep(v *volume, u *use, s trace.Step, state trace.State, detail string) {
	if state != trace.Failed && v.lane == v.plugin.Name() && pvName(v) == "" {
		return
	}
	if u != nil && u.state == present && s == trace.Published && state != trace.Failed {
		return // a refresh
	}
	e := trace.Entry{Step: s, State: state, Detail: detail, Claim: v.claim, Volume: pvName(v), Node: m.opts.Node}
	if e.Volume == "" && v.claim.Name == "" && v.latest == nil {
		e.Volume = v.specName // found on the disk only: a PersistentVolume, as far as can be told
	}
	if u != nil {
		if e.Volume == "" && v.claim.Name == "" {
			e.Volume = string(v.name) // a volume of the pod's own: no PersistentVolume has a name with a slash
		}
		e.Pod = u.ref
		if e.Pod.UID == "" {
			e.Pod.UID = u.pod
		}
	}
	m.opts.Trace.Record(e)
}
