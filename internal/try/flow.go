package try

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"berth.io/berth/internal/try/spec"
)

// needMount: most of the flow is about volumes with a directory.
func (b *bench) needMount() error {
	if err := b.needCreate(); err != nil {
		return err
	}
	if b.access.mount != "" {
		return skipf("%s", b.access.mount)
	}
	return nil
}

func (b *bench) stepProvision(ctx context.Context, s *Step) error {
	if err := b.needCreate(); err != nil {
		return err
	}
	if err := b.claim(ctx, s, s.Name, immediate); err != nil {
		return err
	}
	c, err := b.bound(ctx, s.Name)
	if err != nil {
		return err
	}
	if have, want := c.Status.Capacity[corev1.ResourceStorage], c.Spec.Resources.Requests[corev1.ResourceStorage]; have.Cmp(want) < 0 {
		return fmt.Errorf("the claim asked for %s and has %s", want.String(), have.String())
	}
	return nil
}

func (b *bench) stepMount(ctx context.Context, s *Step) error {
	if err := b.needMount(); err != nil {
		return err
	}
	path, err := b.mounted(ctx, s, s.Name)
	if err != nil {
		return err
	}
	sum, err := writeData(path, "data", 1)
	if err != nil {
		return err
	}
	return checkData(path, "data", sum)
}

func (b *bench) stepRemount(ctx context.Context, s *Step) error {
	if err := b.needMount(); err != nil {
		return err
	}
	path, err := b.mounted(ctx, s, s.Name)
	if err != nil {
		return err
	}
	sum, err := writeData(path, "data", 2)
	if err != nil {
		return err
	}
	if err := b.again(ctx, s, s.Name); err != nil {
		return err
	}
	return b.still(ctx, s, s.Name, sum, "the volume was unmounted, detached and mounted again")
}

// again ends a pod, waits until its volume is detached, and starts the pod again.
func (b *bench) again(ctx context.Context, s *Step, name string) error {
	if err := b.endPod(ctx, name); err != nil {
		return err
	}
	if err := b.detached(ctx, name); err != nil {
		return err
	}
	return b.pod(ctx, s, name, name)
}

// still waits for a pod and looks for what was written before.
func (b *bench) still(ctx context.Context, s *Step, pod, sum, after string) error {
	path, err := b.ready(ctx, pod)
	if err != nil {
		return err
	}
	if err := checkData(path, "data", sum); err != nil {
		b.violate(s, dataLost(after, err))
	}
	return nil
}

// stepRestart ends the driver and the node agent under a mounted volume, both without a word.
func (b *bench) stepRestart(ctx context.Context, s *Step) error {
	if err := b.needMount(); err != nil {
		return err
	}
	path, err := b.mounted(ctx, s, s.Name)
	if err != nil {
		return err
	}
	sum, err := writeData(path, "data", 3)
	if err != nil {
		return err
	}
	if b.ownDrivers() {
		if err := b.restartDrivers(ctx); err != nil {
			return err
		}
	} else {
		s.Notes = append(s.Notes, "the driver was not restarted: it is not the bench's process")
	}
	if err := checkData(path, "data", sum); err != nil {
		b.violate(s, dataLost("the driver was restarted under the mounted volume", err))
	}
	b.in.kill()
	if err := b.in.start(ctx); err != nil {
		return err
	}
	if err := b.still(ctx, s, s.Name, sum, "the node agent was restarted under the mounted volume"); err != nil {
		return err
	}
	if err := b.again(ctx, s, s.Name); err != nil {
		return err
	}
	return b.still(ctx, s, s.Name, sum, "a restart and a remount")
}

// ownDrivers: the bench runs every process of the driver.
func (b *bench) ownDrivers() bool {
	return !slices.ContainsFunc(b.drivers(), func(d *driver) bool { return !d.ours() })
}

func (b *bench) restartDrivers(ctx context.Context) error {
	for _, d := range b.drivers() {
		d.kill()
		if err := d.start(); err != nil {
			return err
		}
	}
	for _, d := range b.drivers() {
		if _, err := d.ready(ctx, readyWithin); err != nil {
			return fmt.Errorf("after a restart: %w", err)
		}
	}
	return nil
}

// stepReadOnly writes in one pod and mounts read-only in another; that the mount refuses writes is looked at in kernel.go.
func (b *bench) stepReadOnly(ctx context.Context, s *Step) error {
	if err := b.needMount(); err != nil {
		return err
	}
	path, err := b.mounted(ctx, s, s.Name)
	if err != nil {
		return err
	}
	sum, err := writeData(path, "data", 4)
	if err != nil {
		return err
	}
	if err := errors.Join(b.endPod(ctx, s.Name), b.detached(ctx, s.Name)); err != nil {
		return err
	}
	if err := b.pod(ctx, s, s.Name, s.Name, readOnly); err != nil {
		return err
	}
	if err := b.still(ctx, s, s.Name, sum, "the volume was mounted read-only"); err != nil {
		return err
	}
	path, err = b.ready(ctx, s.Name)
	if err != nil {
		return err
	}
	if f, err := os.Create(path + "/new"); err == nil {
		f.Close()
		b.violate(s, spec.Violation{Rule: "NodePublishVolume/readonly-ignored", Section: "NodePublishVolume", Text: "a file could be made in a volume that was published with readonly=true"})
	}
	return nil
}

func (b *bench) stepSnapshot(ctx context.Context, s *Step) error {
	if !b.caps.HasController("CREATE_DELETE_SNAPSHOT") {
		return skipf("the driver does not advertise CREATE_DELETE_SNAPSHOT")
	}
	if err := b.needMount(); err != nil {
		return err
	}
	path, err := b.mounted(ctx, s, s.Name)
	if err != nil {
		return err
	}
	sum, err := writeData(path, "data", 5)
	if err != nil {
		return err
	}
	if err := b.snapshot(ctx, s, s.Name, s.Name); err != nil {
		return err
	}
	after, err := writeData(path, "data", 6)
	if err != nil {
		return err
	}
	restored, err := b.mounted(ctx, s, s.Name+"-restored", from("VolumeSnapshot", s.Name))
	if err != nil {
		return err
	}
	b.copied(s, "CreateVolume/snapshot-not-restored", "a volume restored from a snapshot", restored, sum)
	if err := checkData(path, "data", after); err != nil {
		b.violate(s, dataLost("a snapshot of it was restored beside it", err))
	}
	if b.grows() {
		_, err := b.mounted(ctx, s, s.Name+"-larger", from("VolumeSnapshot", s.Name), sized(2*b.o.size()))
		return err
	}
	return nil
}

// copied looks for the source's content in a volume that was made from it.
func (b *bench) copied(s *Step, rule, what, path, sum string) {
	if err := checkData(path, "data", sum); err != nil {
		b.violate(s, spec.Violation{Rule: rule, Section: "CreateVolume", Text: fmt.Sprintf("%s does not have its source's content: %v", what, err)})
	}
}

func (b *bench) stepClone(ctx context.Context, s *Step) error {
	if !b.caps.HasController("CLONE_VOLUME") {
		return skipf("the driver does not advertise CLONE_VOLUME")
	}
	if err := b.needMount(); err != nil {
		return err
	}
	path, err := b.mounted(ctx, s, s.Name)
	if err != nil {
		return err
	}
	sum, err := writeData(path, "data", 7)
	if err != nil {
		return err
	}
	copied, err := b.mounted(ctx, s, s.Name+"-copy", from("PersistentVolumeClaim", s.Name))
	if err != nil {
		return err
	}
	b.copied(s, "CreateVolume/clone-not-copied", "a clone", copied, sum)
	return nil
}

func (b *bench) stepBlock(ctx context.Context, s *Step) error {
	if err := b.needCreate(); err != nil {
		return err
	}
	if b.access.block != "" {
		return skipf("%s", b.access.block)
	}
	if err := errors.Join(b.claim(ctx, s, s.Name, asBlock), b.pod(ctx, s, s.Name, s.Name, withDevice)); err != nil {
		return err
	}
	path, err := b.ready(ctx, s.Name)
	if err != nil {
		return err
	}
	if size, err := deviceSize(path); err != nil {
		return err
	} else if size < b.o.size() {
		b.violate(s, spec.Violation{Rule: "CreateVolume/device-too-small", Section: "CreateVolume",
			Text: fmt.Sprintf("the raw device has %d bytes where required_bytes was %d; a block volume must match the capacity_range", size, b.o.size())})
	}
	sum, err := writeDevice(path, 8)
	if err != nil {
		return err
	}
	if err := errors.Join(b.endPod(ctx, s.Name), b.detached(ctx, s.Name)); err != nil {
		return err
	}
	if err := b.pod(ctx, s, s.Name, s.Name, withDevice); err != nil {
		return err
	}
	if path, err = b.ready(ctx, s.Name); err != nil {
		return err
	}
	if err := checkDevice(path, sum); err != nil {
		b.violate(s, dataLost("the raw volume was detached and attached again", err))
	}
	return nil
}

// stepEphemeral mounts a volume that lives with its pod. No capability tells of it, only the CSIDriver object does.
func (b *bench) stepEphemeral(ctx context.Context, s *Step) error {
	if !slices.Contains(b.csiDriver.Spec.VolumeLifecycleModes, storagev1.VolumeLifecycleEphemeral) {
		return skipf("no CSIDriver with volumeLifecycleModes: [Ephemeral] was given with --csidriver")
	}
	attributes := b.parameters()
	err := b.pod(ctx, s, s.Name, "", func(p *corev1.Pod) {
		v := &corev1.CSIVolumeSource{Driver: b.name, VolumeAttributes: attributes}
		if len(b.o.Secrets) > 0 {
			v.NodePublishSecretRef = &corev1.LocalObjectReference{Name: secretName}
		}
		p.Spec.Volumes[0].VolumeSource = corev1.VolumeSource{CSI: v}
	})
	if err != nil {
		return err
	}
	path, err := b.ready(ctx, s.Name)
	if err != nil {
		return err
	}
	_, err = writeData(path, "data", 9)
	return err
}

// shared mounts one claim in two pods.
func (b *bench) shared(ctx context.Context, s *Step, change ...func(*corev1.PersistentVolumeClaim)) (string, string, error) {
	one, err := b.mounted(ctx, s, s.Name, change...)
	if err != nil {
		return "", "", err
	}
	if err := b.pod(ctx, s, s.Name+"-2", s.Name); err != nil {
		return "", "", err
	}
	two, err := b.ready(ctx, s.Name+"-2")
	return one, two, err
}

func (b *bench) stepRWX(ctx context.Context, s *Step) error {
	if err := b.needMount(); err != nil {
		return err
	}
	if b.access.rwx != "" {
		return skipf("%s", b.access.rwx)
	}
	one, two, err := b.shared(ctx, s, withMode(corev1.ReadWriteMany))
	if err != nil {
		return err
	}
	sum, err := writeData(one, "data", 10)
	if err != nil {
		return err
	}
	b.copied(s, "NodePublishVolume/not-shared", "a ReadWriteMany volume in a second pod", two, sum)
	return nil
}

func (b *bench) stepROX(ctx context.Context, s *Step) error {
	if err := b.needMount(); err != nil {
		return err
	}
	if b.access.rox != "" {
		return skipf("%s", b.access.rox)
	}
	one, two, err := b.shared(ctx, s, withMode(corev1.ReadOnlyMany))
	if err != nil {
		return err
	}
	for _, path := range []string{one, two} {
		if _, err := os.ReadDir(path); err != nil {
			return err
		}
	}
	return nil
}

// stepRWOP mounts a volume that one pod alone may have; that a second pod waits is Kubernetes' part.
func (b *bench) stepRWOP(ctx context.Context, s *Step) error {
	if err := b.needMount(); err != nil {
		return err
	}
	path, err := b.mounted(ctx, s, s.Name, withMode(corev1.ReadWriteOncePod))
	if err != nil {
		return err
	}
	_, err = writeData(path, "data", 11)
	return err
}
