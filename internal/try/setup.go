package try

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"time"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"berth.io/berth/internal/driver/registrar"
	"berth.io/berth/internal/try/proxy"
)

// Names of what the bench makes in its instance.
const (
	namespace      = "try"
	classImmediate = "try-immediate"
	classLate      = "try" // WaitForFirstConsumer
	secretName     = "try"
	stepLabel      = "try"
)

// beginInstance starts the instance beside the steps that do without it.
func (b *bench) beginInstance(ctx context.Context) {
	b.startingIn = make(chan error, 1)
	log, err := logFile(b.work, "instance.log")
	if err == nil {
		b.in, err = newInstance(b.work, log)
	}
	if err != nil {
		b.startingIn <- err
		return
	}
	if b.controller != b.node {
		b.in.apart = b.name + "=" + b.socket(proxy.Kubernetes, "c")
	}
	go func() {
		b.startingIn <- b.in.start(ctx)
		close(b.startingIn)
	}()
}

// announceWithin bounds the registration of the driver and the making of its classes.
const announceWithin = time.Minute

// awaitInstance returns when the driver is registered in the instance and its classes are there.
func (b *bench) awaitInstance(ctx context.Context) error {
	if b.inReady {
		return nil
	}
	select {
	case err := <-b.startingIn: // within startWithin
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, announceWithin, fmt.Errorf("the driver was not announced to the instance within %s", announceWithin))
	defer cancel()
	if err := b.register(ctx); err != nil {
		return err
	}
	if err := b.makeClasses(ctx); err != nil {
		return err
	}
	b.inReady = true
	return nil
}

// register announces the proxy as the driver, as node-driver-registrar does; it stays announced to the end.
func (b *bench) register(ctx context.Context) error {
	if err := b.makeCSIDriver(ctx); err != nil {
		return err
	}
	told := make(chan error, 16)
	r, err := registrar.New(registrar.Options{
		Driver: b.name, Endpoint: b.socket(proxy.Kubernetes, "n"), SocketPath: filepath.Join(b.in.dir, "plugins_registry", "try-reg.sock"),
		Log: slog.New(slog.DiscardHandler),
		Notified: func(err error) {
			select {
			case told <- err:
			default:
			}
		},
	})
	if err != nil {
		return err
	}
	go func() { _ = r.Run(context.WithoutCancel(ctx)) }()
	t := time.NewTimer(readyWithin)
	defer t.Stop()
	select {
	case err := <-told:
		return err
	case <-t.C:
		return fmt.Errorf("the driver did not register within %s: NodeGetInfo is asked for then; see `instance.log`", readyWithin)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// makeCSIDriver makes the object that says how Kubernetes treats the driver.
func (b *bench) makeCSIDriver(ctx context.Context) error {
	if b.csiDriver == nil {
		attach, policy := b.caps.HasController("PUBLISH_UNPUBLISH_VOLUME"), storagev1.FileFSGroupPolicy
		b.csiDriver = &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: b.name}, Spec: storagev1.CSIDriverSpec{AttachRequired: &attach, FSGroupPolicy: &policy}}
	}
	_, err := create(ctx, b.in.client.StorageV1().CSIDrivers().Create, b.csiDriver)
	return err
}

// readCSIDriver reads the manifest that the driver ships with.
func readCSIDriver(path, name string) (*storagev1.CSIDriver, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--csidriver: %w", err)
	}
	for d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096); ; {
		o := &storagev1.CSIDriver{}
		err := d.Decode(o)
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("--csidriver %s: there is no CSIDriver named %q in it, which is what the driver calls itself", path, name)
		}
		if err != nil {
			return nil, fmt.Errorf("--csidriver %s: %w", path, err)
		}
		if o.Kind == "CSIDriver" && o.Name == name {
			return o, nil
		}
	}
}

func (b *bench) makeClasses(ctx context.Context) error {
	api := b.in.client
	_, err := create(ctx, api.CoreV1().Namespaces().Create, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
	if err != nil {
		return err
	}
	params, snap := map[string]string{}, map[string]string{}
	maps.Copy(params, b.o.ClassParameters)
	if len(b.o.Secrets) > 0 {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: secretName, Namespace: namespace}, StringData: b.o.Secrets}
		if _, err := create(ctx, api.CoreV1().Secrets(namespace).Create, s); err != nil {
			return err
		}
		for _, who := range []string{"provisioner", "controller-publish", "node-stage", "node-publish", "controller-expand", "node-expand"} {
			params["csi.storage.k8s.io/"+who+"-secret-name"] = secretName
			params["csi.storage.k8s.io/"+who+"-secret-namespace"] = namespace
		}
		for _, who := range []string{"snapshotter", "snapshotter-list", "group-snapshotter"} {
			snap["csi.storage.k8s.io/"+who+"-secret-name"] = secretName
			snap["csi.storage.k8s.io/"+who+"-secret-namespace"] = namespace
		}
	}
	grows, del := true, corev1.PersistentVolumeReclaimDelete
	for name, mode := range map[string]storagev1.VolumeBindingMode{classImmediate: storagev1.VolumeBindingImmediate, classLate: storagev1.VolumeBindingWaitForFirstConsumer} {
		c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: b.name, Parameters: params,
			AllowVolumeExpansion: &grows, VolumeBindingMode: &mode, ReclaimPolicy: &del}
		if _, err := create(ctx, api.StorageV1().StorageClasses().Create, c); err != nil {
			return err
		}
	}
	var errs []error
	if b.caps.HasController("CREATE_DELETE_SNAPSHOT") {
		_, err := create(ctx, b.in.snap.SnapshotV1().VolumeSnapshotClasses().Create, &snapv1.VolumeSnapshotClass{
			ObjectMeta: metav1.ObjectMeta{Name: classLate}, Driver: b.name, DeletionPolicy: snapv1.VolumeSnapshotContentDelete, Parameters: snap})
		errs = append(errs, err)
	}
	if b.caps.HasPlugin("GROUP_CONTROLLER_SERVICE") {
		_, err := create(ctx, b.in.snap.GroupsnapshotV1().VolumeGroupSnapshotClasses().Create, &groupv1.VolumeGroupSnapshotClass{
			ObjectMeta: metav1.ObjectMeta{Name: classLate}, Driver: b.name, DeletionPolicy: snapv1.VolumeSnapshotContentDelete, Parameters: snap})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
