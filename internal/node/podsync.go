package node

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/mount"
	"berth.io/berth/internal/node/holder"
	"berth.io/berth/internal/node/holderexec"
	"berth.io/berth/internal/trace"
)

const (
	// patience is how long an unfinished mount stays unreported: most are done by then, and a write of "Pending" on the
	// way to "Running" would only delay it. In a burst these were 1.6 writes for each pod.
	patience = time.Second
	// patienceReady is the same for a pod that was Ready before this process started.
	patienceReady = 2 * time.Second
	// waitingPause spaces the reports of a pod whose reasons to wait keep changing.
	waitingPause = time.Second
)

// sync takes the pod one step on. It waits for nothing: the mount room, the informer or a timer calls it again.
func (p *pods) sync(ctx context.Context, uid types.UID) error {
	s := p.state(uid)
	if s == nil {
		return p.clear(uid) // on the disk only
	}
	pod, gone := s.current()
	switch {
	case gone:
		return p.bury(s, uid)
	case pod.DeletionTimestamp != nil:
		return p.finish(ctx, s, pod)
	case ended(pod):
		return p.retire(s, pod)
	}
	if left, ok := deadlineIn(pod); ok && left <= 0 {
		return p.expire(ctx, s, pod)
	}
	p.set(s, pod)
	if err := p.report(ctx, s, pod); err != nil {
		return err
	}
	// The first report brings the start time.
	pod, _ = s.current()
	if left, ok := deadlineIn(pod); ok {
		p.queue.AddAfter(uid, max(left, 0))
	}
	return nil
}

func ended(pod *v1.Pod) bool {
	return pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed
}

// releases says whether an ended pod gives its volumes back: unless the node keeps those of terminated pods.
func (p *pods) releases(pod *v1.Pod) bool {
	if !ended(pod) {
		return false
	}
	node := p.node.get()
	return node == nil || node.Annotations[keepTerminatedAnnotation] != "true"
}

// set makes the pod's volumes desired; again when something that a volume can show has changed.
func (p *pods) set(s *podState, pod *v1.Pod) {
	if old := s.set; old != nil && (!showsMetadata(pod) || maps.Equal(old.Labels, pod.Labels) && maps.Equal(old.Annotations, pod.Annotations)) {
		return
	}
	s.set, s.released = pod, false
	if err := holderexec.Reopen(p.opts.DataDir, pod.UID); err != nil {
		p.opts.Log.Warn("commands with the pod's volumes", "pod", pod.Namespace+"/"+pod.Name, "err", err)
	}
	if p.opts.Volumes != nil {
		p.opts.Volumes.SetPod(pod)
	}
	p.opts.Mount.SetPod(pod)
}

// showsMetadata: a downwardAPI volume follows the pod's labels and annotations. Nothing else of a pod that volumes
// depend on can change.
func showsMetadata(pod *v1.Pod) bool {
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.DownwardAPI != nil {
			return true
		}
		if v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s v1.VolumeProjection) bool { return s.DownwardAPI != nil }) {
			return true
		}
	}
	return false
}

// report writes the status when it differs from what the API has.
func (p *pods) report(ctx context.Context, s *podState, pod *v1.Pod) error {
	vols := p.opts.Mount.Status(pod.UID)
	waiting := waitingFor(vols)
	if waiting != "" {
		if pause := p.pauseBefore(s, waiting); pause > 0 {
			p.queue.AddAfter(pod.UID, pause)
			return nil
		}
	}
	status := holderStatus(pod, vols, p.hostIPs(), metav1.Now())
	paths := pod.Annotations[holder.PathsAnnotation]
	if vols.AllMounted && (len(vols.Volumes) > 0 || paths != "") {
		paths = pathsOf(vols)
	}
	written, err := p.write(ctx, s, pod, status, paths)
	if err != nil || !written {
		return err
	}
	p.tell(s, pod, vols, waiting)
	return nil
}

// pauseBefore is how long the report of an unready pod can wait for better news.
func (p *pods) pauseBefore(s *podState, waiting string) time.Duration {
	limit := patience
	if s.wasReady {
		limit = patienceReady
	}
	pause := limit - time.Since(s.firstSeen)
	if !s.lastWrite.IsZero() && waiting != s.lastWaiting {
		pause = max(pause, waitingPause-time.Since(s.lastWrite))
	}
	return pause
}

// tell puts the news of a written status into the trace, the metrics, and once per pod into an event.
func (p *pods) tell(s *podState, pod *v1.Pod, vols mount.PodStatus, waiting string) {
	entry := trace.Entry{Step: trace.Running, State: trace.Waiting, Detail: waiting, Pod: trace.Pod(pod), Node: p.opts.Node}
	if waiting == "" {
		entry.State, entry.Detail = trace.Done, fmt.Sprintf("all %d volumes are mounted; %s", len(vols.Volumes), holderMessage(pod))
	}
	switch {
	case waiting == "" && !s.wasReady:
		s.wasReady = true
		p.metrics.ready.Observe(time.Since(s.firstSeen).Seconds())
		p.opts.Trace.Record(entry)
	case waiting != "" && waiting != s.lastWaiting:
		s.wasReady = false
		p.opts.Trace.Record(entry)
	}
	s.lastWaiting = waiting
	if waiting == "" && !s.told && pod.Spec.RestartPolicy != v1.RestartPolicyAlways && pod.Spec.RestartPolicy != "" {
		s.told = true
		p.opts.Events.Event(pod, v1.EventTypeWarning, "NoContainerRuntime", jobMessage)
	}
}

func (p *pods) hostIPs() []v1.HostIP {
	node := p.node.get()
	if node == nil {
		return nil
	}
	var ips []v1.HostIP
	for _, a := range node.Status.Addresses {
		if a.Type == v1.NodeInternalIP {
			ips = append(ips, v1.HostIP{IP: a.Address})
		}
	}
	return ips
}

// write brings status and paths to the API in one request: the status subresource of a pod takes annotations too, so
// nobody can see a Ready pod without its paths. The patch names the UID: a pod of the same name made meanwhile is not hit.
func (p *pods) write(ctx context.Context, s *podState, pod *v1.Pod, status v1.PodStatus, paths string) (bool, error) {
	if equality.Semantic.DeepEqual(pod.Status, status) && pod.Annotations[holder.PathsAnnotation] == paths {
		return false, nil
	}
	patch, err := podPatch(pod, status, paths)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	var now *v1.Pod
	err = boundary.Do("node/write-pod-status", func() error {
		now, err = p.opts.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		return err
	})
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err): // gone, or another pod has its name: the informer says which
		return false, nil
	case err != nil:
		return false, fmt.Errorf("write the status of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	s.lastWrite = time.Now()
	s.wrote(now)
	return true, nil
}

func podPatch(pod *v1.Pod, status v1.PodStatus, paths string) ([]byte, error) {
	old := v1.Pod{Status: pod.Status}
	now := v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: pod.UID}, Status: status}
	if was, ok := pod.Annotations[holder.PathsAnnotation]; ok {
		old.Annotations = map[string]string{holder.PathsAnnotation: was}
	}
	if paths != "" {
		now.Annotations = map[string]string{holder.PathsAnnotation: paths}
	}
	before, err := json.Marshal(old)
	if err != nil {
		return nil, err
	}
	after, err := json.Marshal(now)
	if err != nil {
		return nil, err
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, v1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("compare the status of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return patch, nil
}

// deadlineIn is how long the pod may still be here; ok is false for a pod without activeDeadlineSeconds, or without a
// start yet.
func deadlineIn(pod *v1.Pod) (left time.Duration, ok bool) {
	limit, start := pod.Spec.ActiveDeadlineSeconds, pod.Status.StartTime
	if limit == nil || start == nil {
		return 0, false
	}
	return time.Until(start.Add(time.Duration(*limit) * time.Second)), true
}

// expire ends a pod that has been here longer than its activeDeadlineSeconds.
func (p *pods) expire(ctx context.Context, s *podState, pod *v1.Pod) error {
	message := "Pod was active on the node longer than the specified deadline"
	if _, err := p.write(ctx, s, pod, endedStatus(pod, v1.PodFailed, deadlineReason, message, metav1.Now()), pod.Annotations[holder.PathsAnnotation]); err != nil {
		return err
	}
	p.opts.Events.Event(pod, v1.EventTypeNormal, deadlineReason, message)
	p.queue.Add(pod.UID)
	return nil
}

// retire gives back the volumes of a pod that has ended, and keeps the pod.
func (p *pods) retire(s *podState, pod *v1.Pod) error {
	if !p.releases(pod) {
		return nil
	}
	p.release(s, pod.UID)
	return nil
}

// release makes the pod's volumes undesired; true when nothing of it is mounted any more. A command of `berth exec`
// ends first, as a container would: its namespace keeps the filesystems busy.
func (p *pods) release(s *podState, uid types.UID) bool {
	if !s.released { // once: the mount room answers each release with a change
		s.released, s.set = true, nil
		if err := holderexec.KillAll(p.opts.DataDir, uid); err != nil {
			p.opts.Log.Warn("commands of a pod", "uid", uid, "err", err)
		}
		p.opts.Mount.ReleasePod(uid)
	}
	if !p.opts.Mount.Status(uid).AllUnmounted {
		return false // the mount room calls changed
	}
	if p.opts.Volumes != nil {
		p.opts.Volumes.ReleasePod(uid)
	}
	return true
}

// clear removes the directory of a pod that only the disk remembers; begin has released it.
func (p *pods) clear(uid types.UID) error {
	if !p.opts.Mount.Status(uid).AllUnmounted {
		return nil
	}
	return removePodDir(filepath.Join(p.opts.DataDir, "pods"), uid)
}

// bury ends the agent's part of a pod that the API no longer has.
func (p *pods) bury(s *podState, uid types.UID) error {
	if !p.release(s, uid) {
		return nil
	}
	if err := removePodDir(filepath.Join(p.opts.DataDir, "pods"), uid); err != nil {
		return err
	}
	if !s.deletedSeen.IsZero() {
		p.metrics.gone.Observe(time.Since(s.deletedSeen).Seconds())
	}
	p.forget(uid)
	return nil
}

// finish takes down a pod that is being deleted: unmount, remove the directory, and only then let the API forget it. A
// holder has nothing to stop, so no grace period is waited for.
func (p *pods) finish(ctx context.Context, s *podState, pod *v1.Pod) error {
	if s.deletedSeen.IsZero() {
		s.deletedSeen = time.Now()
	}
	if !p.release(s, pod.UID) {
		return nil
	}
	if err := removePodDir(filepath.Join(p.opts.DataDir, "pods"), pod.UID); err != nil {
		return err
	}
	if s.finished {
		return nil // finalizers hold it
	}
	if err := p.finalStatus(ctx, s, pod); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	now := int64(0)
	uid := pod.UID
	err := boundary.Do("node/delete-pod", func() error {
		return p.opts.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
			GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &uid},
		})
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	s.finished = true
	return nil
}

// finalStatus ends the pod before its deletion where somebody waits for that: a finalizer's owner (the Job controller
// counts a pod only when it has ended). Otherwise the write would only delay the deletion.
func (p *pods) finalStatus(ctx context.Context, s *podState, pod *v1.Pod) error {
	if ended(pod) || len(pod.Finalizers) == 0 {
		return nil
	}
	phase := v1.PodSucceeded
	if pod.Spec.RestartPolicy != v1.RestartPolicyAlways {
		phase = v1.PodFailed // its command never ran
	}
	_, err := p.write(ctx, s, pod, endedStatus(pod, phase, holderReason, "deleted; the pod held volumes and ran nothing", metav1.Now()), pod.Annotations[holder.PathsAnnotation])
	return err
}
