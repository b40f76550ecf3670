package try

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/node/holder"
)

// meta names an object and says whose step it is.
func meta(s *Step, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{stepLabel: s.Name}}
}

// claim makes a claim of the class that waits for a pod; change may alter it.
func (b *bench) claim(ctx context.Context, s *Step, name string, change ...func(*corev1.PersistentVolumeClaim)) error {
	class := classLate
	c := &corev1.PersistentVolumeClaim{ObjectMeta: meta(s, name), Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: &class,
		Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(b.o.size(), resource.BinarySI)}},
	}}
	for _, f := range change {
		f(c)
	}
	_, err := create(ctx, b.in.client.CoreV1().PersistentVolumeClaims(namespace).Create, c)
	return err
}

func withMode(m corev1.PersistentVolumeAccessMode) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{m} }
}

func immediate(c *corev1.PersistentVolumeClaim) {
	class := classImmediate
	c.Spec.StorageClassName = &class
}

func asBlock(c *corev1.PersistentVolumeClaim) {
	m := corev1.PersistentVolumeBlock
	c.Spec.VolumeMode = &m
}

// from makes the claim start with the content of another claim or of a snapshot.
func from(kind, name string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: kind, Name: name}
		if kind == "VolumeSnapshot" {
			group := snapv1.GroupName
			c.Spec.DataSource.APIGroup = &group
		}
	}
}

func sized(bytes int64) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.Resources.Requests[corev1.ResourceStorage] = *resource.NewQuantity(bytes, resource.BinarySI)
	}
}

// pod makes a pod that holds a claim at "data".
func (b *bench) pod(ctx context.Context, s *Step, name, claim string, change ...func(*corev1.Pod)) error {
	token, grace := false, int64(0)
	p := &corev1.Pod{ObjectMeta: meta(s, name), Spec: corev1.PodSpec{
		AutomountServiceAccountToken: &token, TerminationGracePeriodSeconds: &grace,
		Containers: []corev1.Container{{Name: "app", Image: "none", VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}}},
		Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}},
	}}
	for _, f := range change {
		f(p)
	}
	_, err := create(ctx, b.in.client.CoreV1().Pods(namespace).Create, p)
	return err
}

func readOnly(p *corev1.Pod) {
	p.Spec.Volumes[0].PersistentVolumeClaim.ReadOnly = true
}

func withDevice(p *corev1.Pod) {
	p.Spec.Containers[0].VolumeMounts = nil
	p.Spec.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: "data", DevicePath: "/dev/data"}}
}

// ready waits until the pod is Ready, and returns the path of its volume "data".
func (b *bench) ready(ctx context.Context, name string) (string, error) {
	p, err := await(ctx, b.in.client.CoreV1().Pods(namespace), "pod", name, podReady)
	if err != nil {
		return "", err
	}
	return dataPath(p)
}

func podReady(p *corev1.Pod, found bool) (bool, string) {
	if !found {
		return false, "not there"
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return true, ""
		}
	}
	return false, podState(p)
}

// podState is what a user sees of a pod that is not Ready.
func podState(p *corev1.Pod) string {
	texts := []string{string(p.Status.Phase)}
	add := func(text string) {
		if text != "" && !slices.ContainsFunc(texts, func(have string) bool { return strings.HasSuffix(have, text) || strings.HasSuffix(text, have) }) {
			texts = append(texts, text)
		}
	}
	for _, c := range p.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil {
			add(w.Message)
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Status != corev1.ConditionTrue {
			add(c.Message)
		}
	}
	return strings.Join(texts, "; ")
}

func dataPath(p *corev1.Pod) (string, error) {
	paths := holder.Paths(p)
	if paths["data"] == "" {
		return "", fmt.Errorf("pod %s is Ready, and its volume has no path", p.Name)
	}
	return paths["data"], nil
}

// mounted is claim, pod and ready in one.
func (b *bench) mounted(ctx context.Context, s *Step, name string, change ...func(*corev1.PersistentVolumeClaim)) (string, error) {
	if err := errors.Join(b.claim(ctx, s, name, change...), b.pod(ctx, s, name, name)); err != nil {
		return "", err
	}
	return b.ready(ctx, name)
}

// endPod deletes a pod and waits until it is gone, which it is when its volumes are unmounted.
func (b *bench) endPod(ctx context.Context, name string) error {
	if err := remove(ctx, b.in.client.CoreV1().Pods(namespace).Delete, name); err != nil {
		return err
	}
	_, err := await(ctx, b.in.client.CoreV1().Pods(namespace), "pod", name, gone[*corev1.Pod])
	return err
}

// detached waits until no VolumeAttachment tells of the claim's volume.
func (b *bench) detached(ctx context.Context, claim string) error {
	c, err := b.in.client.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, claim, metav1.GetOptions{})
	if err != nil {
		return err
	}
	list, err := b.in.client.StorageV1().VolumeAttachments().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, a := range list.Items {
		if pv := a.Spec.Source.PersistentVolumeName; pv != nil && *pv == c.Spec.VolumeName {
			if _, err := await(ctx, b.in.client.StorageV1().VolumeAttachments(), "attachment", a.Name, gone); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) bound(ctx context.Context, name string) (*corev1.PersistentVolumeClaim, error) {
	return await(ctx, b.in.client.CoreV1().PersistentVolumeClaims(namespace), "claim", name, func(c *corev1.PersistentVolumeClaim, found bool) (bool, string) {
		return found && c.Status.Phase == corev1.ClaimBound, string(c.Status.Phase)
	})
}

// snapshot makes a snapshot of a claim and waits until it can be used.
func (b *bench) snapshot(ctx context.Context, s *Step, name, claim string) error {
	class := classLate
	o := &snapv1.VolumeSnapshot{ObjectMeta: meta(s, name), Spec: snapv1.VolumeSnapshotSpec{
		VolumeSnapshotClassName: &class, Source: snapv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim}}}
	api := b.in.snap.SnapshotV1().VolumeSnapshots(namespace)
	if _, err := create(ctx, api.Create, o); err != nil {
		return err
	}
	_, err := await(ctx, api, "snapshot", name, snapshotReady)
	return err
}

func snapshotReady(v *snapv1.VolumeSnapshot, found bool) (bool, string) {
	switch {
	case !found || v.Status == nil:
		return false, "no status yet"
	case v.Status.Error != nil && v.Status.Error.Message != nil:
		return false, *v.Status.Error.Message
	}
	return v.Status.ReadyToUse != nil && *v.Status.ReadyToUse, "not ready to use"
}

// sweepWithin bounds what follows a step.
const sweepWithin = 45 * time.Second

// sweepObjects deletes what a step made, in the order in which users do, and waits until the driver's volumes are gone.
func (b *bench) sweepObjects(ctx context.Context, step string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, sweepWithin, fmt.Errorf("not gone within %s", sweepWithin))
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	b.mu.Lock()
	b.giveUp, b.refused = giveUp, map[string]int{}
	b.mu.Unlock()
	api := b.in.client
	of := metav1.ListOptions{LabelSelector: stepLabel + "=" + step}
	pods, err := api.CoreV1().Pods(namespace).List(ctx, of)
	if err != nil {
		return err
	}
	errs := []error{
		each(pods.Items, func(p corev1.Pod) error { return remove(ctx, api.CoreV1().Pods(namespace).Delete, p.Name) }),
		each(pods.Items, func(p corev1.Pod) error {
			_, err := await(ctx, api.CoreV1().Pods(namespace), "pod", p.Name, gone[*corev1.Pod])
			return err
		}),
		b.sweepSnapshots(ctx, of),
	}
	claims, err := api.CoreV1().PersistentVolumeClaims(namespace).List(ctx, of)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	errs = append(errs,
		each(claims.Items, func(c corev1.PersistentVolumeClaim) error {
			return remove(ctx, api.CoreV1().PersistentVolumeClaims(namespace).Delete, c.Name)
		}),
		each(claims.Items, func(c corev1.PersistentVolumeClaim) error {
			_, err := await(ctx, api.CoreV1().PersistentVolumeClaims(namespace), "claim", c.Name, gone[*corev1.PersistentVolumeClaim])
			if c.Spec.VolumeName == "" {
				return err
			}
			_, left := await(ctx, api.CoreV1().PersistentVolumes(), "the volume of claim "+c.Name+":", c.Spec.VolumeName, volumeGone)
			return errors.Join(err, left)
		}))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}

// volumeGone tells of a volume that its driver does not delete.
func volumeGone(v *corev1.PersistentVolume, found bool) (bool, string) {
	if !found {
		return true, ""
	}
	return false, strings.TrimSpace(string(v.Status.Phase) + " " + v.Status.Message)
}

// sweepSnapshots deletes group snapshots and snapshots, and waits for both.
func (b *bench) sweepSnapshots(ctx context.Context, of metav1.ListOptions) error {
	var errs []error
	if b.caps.HasPlugin("GROUP_CONTROLLER_SERVICE") {
		api := b.in.snap.GroupsnapshotV1().VolumeGroupSnapshots(namespace)
		list, err := api.List(ctx, of)
		if err != nil {
			return err
		}
		for _, o := range list.Items {
			errs = append(errs, remove(ctx, api.Delete, o.Name))
			_, err := await(ctx, api, "group snapshot", o.Name, gone[*groupv1.VolumeGroupSnapshot])
			errs = append(errs, err)
		}
	}
	if !b.caps.HasController("CREATE_DELETE_SNAPSHOT") {
		return errors.Join(errs...)
	}
	api := b.in.snap.SnapshotV1().VolumeSnapshots(namespace)
	list, err := api.List(ctx, of)
	if err != nil {
		return err
	}
	for _, o := range list.Items {
		errs = append(errs, remove(ctx, api.Delete, o.Name))
		_, err := await(ctx, api, "snapshot", o.Name, gone[*snapv1.VolumeSnapshot])
		errs = append(errs, err)
		if o.Status != nil && o.Status.BoundVolumeSnapshotContentName != nil {
			_, err := await(ctx, b.in.snap.SnapshotV1().VolumeSnapshotContents(), "the content of snapshot "+o.Name+":", *o.Status.BoundVolumeSnapshotContentName, gone[*snapv1.VolumeSnapshotContent])
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// shown collects what Kubernetes has shown during the step: events, and, when it failed, what is not as it should be.
func (b *bench) shown(ctx context.Context, s *Step, failed bool) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if failed {
		time.Sleep(200 * time.Millisecond) // events are written a moment after what they tell of
	}
	events, err := b.in.client.CoreV1().Events("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return
	}
	for _, e := range events.Items {
		key := fmt.Sprint(e.UID, e.Count)
		if b.told[key] {
			continue
		}
		b.told[key] = true
		times := ""
		if e.Count > 1 {
			times = fmt.Sprintf(" (%d times)", e.Count)
		}
		s.Shown = append(s.Shown, fmt.Sprintf("%s %s %s/%s: %s%s", e.Type, e.Reason, strings.ToLower(e.InvolvedObject.Kind), e.InvolvedObject.Name, e.Message, times))
	}
	slices.Sort(s.Shown)
	if !failed {
		return
	}
	of := metav1.ListOptions{LabelSelector: stepLabel + "=" + s.Name}
	if pods, err := b.in.client.CoreV1().Pods(namespace).List(ctx, of); err == nil {
		for _, p := range pods.Items {
			if ok, state := podReady(&p, true); !ok {
				s.Shown = append(s.Shown, "pod/"+p.Name+": "+state)
			}
		}
	}
	if claims, err := b.in.client.CoreV1().PersistentVolumeClaims(namespace).List(ctx, of); err == nil {
		for _, c := range claims.Items {
			if c.Status.Phase != corev1.ClaimBound {
				s.Shown = append(s.Shown, "claim/"+c.Name+": "+string(c.Status.Phase))
			}
			for _, cond := range c.Status.Conditions {
				s.Shown = append(s.Shown, fmt.Sprintf("claim/%s: %s=%s %s", c.Name, cond.Type, cond.Status, cond.Message))
			}
		}
	}
}
