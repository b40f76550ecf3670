package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
)

const (
	// holderLabel is on the pods that hold a volume for callers.
	holderLabel = "storage.berth.io/holder-of"
	holderValue = "volume"
	// pathsAnnotation is where the node agent says where a pod's volumes are on the host.
	pathsAnnotation = "storage.berth.io/paths"
	// inPod is the volume's name in its holder pod.
	inPod = "data"
)

const (
	// mountWithin is a little less than the two minutes that Docker waits for a mount, so that the reason reaches it.
	mountWithin = 100 * time.Second
	// reasonAfter is when a mount that meets an error gives up and tells it: Podman waits five seconds, then tells none.
	// Errors of the first moments (capacity not published yet) mend themselves.
	reasonAfter = 3500 * time.Millisecond
	// unmountWithin is less than the minute that Docker waits for an unmount.
	unmountWithin = 45 * time.Second
	// undoWithin bounds the undoing of what was not finished, when the caller or the instance has gone.
	undoWithin = 4 * time.Second
)

// Hold mounts a volume for caller, unless it is mounted already, and returns its path on the host. The same caller
// counts once. When it fails, the caller does not count.
func (s *Service) Hold(ctx context.Context, namespace, name string, caller Caller) (path string, err error) {
	if err := caller.validate(); err != nil {
		return "", err
	}
	c, err := s.claim(ctx, namespace, name)
	if err != nil {
		return "", err
	}
	if c.DeletionTimestamp != nil {
		return "", refuse("volume %s is being deleted", name)
	}
	if c.Spec.VolumeMode != nil && *c.Spec.VolumeMode == corev1.PersistentVolumeBlock {
		return "", refuse("volume %s is a raw device (volumeMode Block): it has no files to show in a directory", name)
	}
	limited, cancel := context.WithTimeout(ctx, mountWithin)
	defer cancel()
	end, err := s.mounting.begin(limited, namespace+"/"+c.Name)
	if err != nil {
		return "", fmt.Errorf("mount volume %s: it is being unmounted by force: %w", name, err)
	}
	defer func() {
		if err == nil && caller.By == Engine {
			end(caller.ID)
		} else {
			end("")
		}
	}()
	pod, added, err := s.join(limited, c, caller)
	if err == nil {
		path, err = s.mounted(limited, pod)
	}
	if err == nil {
		return path, nil
	}
	if added {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWithin)
		defer cancel()
		if _, undone := s.leave(undo, namespace, c.Name, caller.is); undone != nil {
			s.log.Warn("a caller that got no mount still counts", "volume", name, "caller", caller, "error", undone)
		}
	}
	return "", fmt.Errorf("mount volume %s: %w", name, err)
}

// join counts caller on the volume's holder pod, which is made when there is none; added says that it did not count before.
func (s *Service) join(ctx context.Context, c *corev1.PersistentVolumeClaim, caller Caller) (pod *corev1.Pod, added bool, err error) {
	caller.Since, caller.Boot = time.Now().UTC().Truncate(time.Second), s.boot
	pods := s.client.CoreV1().Pods(c.Namespace)
	for {
		err = boundary.Do("volume/create-holder", func() error {
			pod, err = s.client.CoreV1().Pods(c.Namespace).Create(ctx, holderPod(c, caller), metav1.CreateOptions{})
			return err
		})
		if err == nil {
			return pod, true, nil
		}
		if noAccount(err) {
			if err := s.accountIn(ctx, c.Namespace); err != nil {
				return nil, false, err
			}
			continue
		}
		if !apierrors.IsAlreadyExists(err) {
			return nil, stopped(err), err
		}
		// The pod of a former mount may be on its way out.
		pod, err = await(ctx, pods, c.Name, nil, nil, func(p *corev1.Pod) (bool, error) {
			return p == nil || p.DeletionTimestamp == nil, nil
		})
		if err != nil {
			return nil, false, s.unfinished(ctx, c.Namespace, c.Name, "the former mount is still being taken down", err)
		}
		if pod == nil {
			continue
		}
		if pod.Labels[holderLabel] != holderValue {
			return nil, false, refuse("pod %s/%s has the name that the volume's holder needs; delete it, or mount the volume by that pod", pod.Namespace, pod.Name)
		}
		if _, counts := pod.Annotations[caller.key()]; counts {
			return pod, false, nil
		}
		err = boundary.Do("volume/add-caller", func() error {
			pod, err = s.client.CoreV1().Pods(c.Namespace).Patch(ctx, c.Name, types.MergePatchType, callerPatch(pod, map[string]any{caller.key(): caller.value()}), metav1.PatchOptions{})
			return err
		})
		switch {
		case err == nil && pod.DeletionTimestamp == nil:
			return pod, true, nil
		case err == nil, apierrors.IsNotFound(err), apierrors.IsConflict(err): // gone or going meanwhile: with the next one
		default:
			return nil, stopped(err), err
		}
	}
}

// noAccount: the namespace is so new that it has no service account yet.
func noAccount(err error) bool {
	var status apierrors.APIStatus
	return apierrors.IsForbidden(err) && errors.As(err, &status) && status.Status().Details != nil && strings.Contains(err.Error(), "service account")
}

// callerPatch changes annotations of just this pod, not of another that has its name.
func callerPatch(pod *corev1.Pod, annotations map[string]any) []byte {
	b, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID, "annotations": annotations}})
	if err != nil {
		return nil // strings and nil only: cannot be
	}
	return b
}

// holderPod holds the volume of a claim by the ordinary flow. Its grace period is not zero: with zero the API forgets the
// pod at once, and nobody could see when its volume is unmounted. The node agent does not wait for it.
func holderPod(c *corev1.PersistentVolumeClaim, first Caller) *corev1.Pod {
	no, grace := false, int64(1)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: c.Namespace, Name: c.Name,
			Labels:      map[string]string{managedBy: "berth", holderLabel: holderValue},
			Annotations: map[string]string{first.key(): first.value()},
		},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken:  &no,
			EnableServiceLinks:            &no,
			TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{Name: "holder", Image: "berth.io/holder",
				VolumeMounts: []corev1.VolumeMount{{Name: inPod, MountPath: "/" + inPod}}}},
			Volumes: []corev1.Volume{{Name: inPod, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c.Name}}}},
		},
	}
}

// mounted waits until the pod's volume is mounted, and returns its path.
func (s *Service) mounted(ctx context.Context, pod *corev1.Pod) (string, error) {
	began, uid, path := time.Now(), pod.UID, ""
	woken, end := s.waiting.add(uid, reasonAfter)
	defer end()
	_, err := await(ctx, s.client.CoreV1().Pods(pod.Namespace), pod.Name, pod, woken, func(p *corev1.Pod) (is bool, err error) {
		if p == nil || p.UID != uid || p.DeletionTimestamp != nil {
			return false, errors.New("its holder pod was deleted meanwhile")
		}
		path, is = s.where(p)
		switch {
		case is:
			return true, nil
		case time.Since(began) < reasonAfter:
			return false, nil
		}
		if why := s.problem(ctx, p.Namespace, p.Name); why != "" {
			return false, refuse("%s", why)
		}
		return false, nil
	})
	if err != nil {
		return "", s.unfinished(ctx, pod.Namespace, pod.Name, "it is not mounted yet", err)
	}
	return path, nil
}

// unfinished adds the reason to a wait that ended too early.
func (s *Service) unfinished(ctx context.Context, namespace, pod, what string, err error) error {
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWithin)
	defer cancel()
	if why := s.problem(ask, namespace, pod); why != "" {
		return fmt.Errorf("%s: %s", what, why)
	}
	return fmt.Errorf("%s; `berth why -n %s pod/%s` tells what it waits for: %w", what, namespace, pod, err)
}

func ready(p *corev1.Pod) bool {
	for i := range p.Status.Conditions {
		if c := &p.Status.Conditions[i]; c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// pathIn reads where the volume of a ready holder pod is.
func pathIn(p *corev1.Pod) (string, error) {
	paths := map[string]string{}
	if err := json.Unmarshal([]byte(p.Annotations[pathsAnnotation]), &paths); err != nil || paths[inPod] == "" {
		return "", fmt.Errorf("pod %s/%s does not say where its volume is (annotation %s: %q)", p.Namespace, p.Name, pathsAnnotation, p.Annotations[pathsAnnotation])
	}
	return paths[inPod], nil
}

// Release ends the mount of a caller; the last one unmounts the volume. A caller that does not count is success.
func (s *Service) Release(ctx context.Context, namespace, name string, caller Caller) error {
	if err := ValidateName(name); err != nil {
		return err
	}
	err := s.release(ctx, namespace, name, caller.is)
	if err == nil && caller.By == Engine {
		s.mounting.released(namespace+"/"+ClaimName(name), caller.ID)
	}
	return err
}

// is tells a caller from others.
func (c Caller) is(other Caller) bool { return c.By == other.By && c.ID == other.ID }

// release ends the mounts of the callers that goes names, and waits until the volume is unmounted when none is left.
func (s *Service) release(ctx context.Context, namespace, name string, goes func(Caller) bool) error {
	limited, cancel := context.WithTimeout(ctx, unmountWithin)
	defer cancel()
	leaving, err := s.leave(limited, namespace, ClaimName(name), goes)
	if err == nil && leaving != nil {
		err = s.gone(limited, leaving)
	}
	if err != nil {
		return fmt.Errorf("unmount volume %s: %w", name, err)
	}
	return nil
}

// gone waits until a holder pod that was deleted has given up its volume.
func (s *Service) gone(ctx context.Context, pod *corev1.Pod) error {
	const still = "it is still mounted, and is unmounted as soon as nothing is in the way"
	soon, end := s.waiting.add(pod.UID, reasonAfter)
	defer end()
	began := time.Now()
	_, err := await(ctx, s.client.CoreV1().Pods(pod.Namespace), pod.Name, pod, soon, func(p *corev1.Pod) (bool, error) {
		switch {
		case p == nil, p.UID != pod.UID:
			return true, nil
		case time.Since(began) < reasonAfter:
			return false, nil
		}
		if why := s.problem(ctx, p.Namespace, p.Name); why != "" {
			return false, refuse("%s: %s", still, why)
		}
		return false, nil
	})
	if err != nil {
		return s.unfinished(ctx, pod.Namespace, pod.Name, still, err)
	}
	return nil
}

// leave takes callers off the holder pod and deletes it with the last of them; then it returns the pod that is going.
func (s *Service) leave(ctx context.Context, namespace, claim string, goes func(Caller) bool) (leaving *corev1.Pod, err error) {
	for {
		pod, err := s.client.CoreV1().Pods(namespace).Get(ctx, claim, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil, nil
		case err != nil:
			return nil, err
		case pod.Labels[holderLabel] != holderValue:
			return nil, nil
		case pod.DeletionTimestamp != nil:
			return pod, nil
		}
		drop, left := map[string]any{}, 0
		for _, c := range callersOf(pod) {
			if goes(c) {
				drop[keyOn(pod, c)] = nil
			} else {
				left++
			}
		}
		switch {
		case left > 0 && len(drop) == 0:
			return nil, nil
		case left > 0:
			err = boundary.Do("volume/drop-caller", func() error {
				_, err := s.client.CoreV1().Pods(namespace).Patch(ctx, claim, types.MergePatchType, callerPatch(pod, drop), metav1.PatchOptions{})
				return err
			})
		default:
			// With the version that was read: a caller that joined since then keeps the pod.
			err = boundary.Do("volume/delete-holder", func() error {
				return s.client.CoreV1().Pods(namespace).Delete(ctx, claim, metav1.DeleteOptions{
					Preconditions: &metav1.Preconditions{UID: &pod.UID, ResourceVersion: &pod.ResourceVersion}})
			})
			if err == nil {
				return pod, nil
			}
		}
		if err == nil || !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			return nil, err
		}
	}
}

// keyOn is the annotation by which a caller is on the pod: its own, or the unreadable one that stands for it.
func keyOn(pod *corev1.Pod, c Caller) string {
	if _, own := pod.Annotations[c.key()]; own {
		return c.key()
	}
	return callerPrefix + c.ID
}
