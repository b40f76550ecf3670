package provision

import (
	"context"

	snapclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	snapv1client "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/typed/volumesnapshot/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// goneIsDeleted is a snapshot client to which a content that is not there is deleted. The common controller often deletes
// one twice, before its cache shows the first time, and then warns the user of an error on every other snapshot that goes.
type goneIsDeleted struct{ snapclient.Interface }

func (c goneIsDeleted) SnapshotV1() snapv1client.SnapshotV1Interface {
	return goneIsDeletedV1{c.Interface.SnapshotV1()}
}

type goneIsDeletedV1 struct {
	snapv1client.SnapshotV1Interface
}

func (c goneIsDeletedV1) VolumeSnapshotContents() snapv1client.VolumeSnapshotContentInterface {
	return goneIsDeletedContents{c.SnapshotV1Interface.VolumeSnapshotContents()}
}

type goneIsDeletedContents struct {
	snapv1client.VolumeSnapshotContentInterface
}

// Delete removes a content. boundary: held by the caller: the client's transport (WrapTransport).
func (c goneIsDeletedContents) Delete(ctx context.Context, name string, o metav1.DeleteOptions) error {
	err := c.VolumeSnapshotContentInterface.Delete(ctx, name, o)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
