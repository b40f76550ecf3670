package provision

import (
	"context"

	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	snapclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	snapv1client "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/typed/volumesnapshot/v1"
	snaplisters "github.com/kubernetes-csi/external-snapshotter/client/v8/listers/volumesnapshot/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// contentNotes shows external-snapshotter's side-car the contents that it has written before the informer does. The side-car
// throws a look at a content away, for good, when the informer is behind its own last write; and it takes no notice of the event of
// that write, since its own writes change the status alone. After a driver's error, whose report is such a write, the snapshot was
// never asked for again when the informer lagged for longer than the retry.
type contentNotes struct {
	view[snaplisters.VolumeSnapshotContentLister]
	notes *ahead
}

func newContentNotes(v view[snaplisters.VolumeSnapshotContentLister]) contentNotes {
	return contentNotes{v, newAhead(v.scoped.SharedIndexInformer.GetStore())}
}

func (n contentNotes) Lister() snaplisters.VolumeSnapshotContentLister {
	return notedContentLister{n.view.Lister(), n.notes}
}

type notedContentLister struct {
	snaplisters.VolumeSnapshotContentLister
	notes *ahead
}

func (l notedContentLister) Get(name string) (*snapv1.VolumeSnapshotContent, error) {
	if o, exists, err := l.notes.GetByKey(name); err == nil && exists {
		if c, ok := o.(*snapv1.VolumeSnapshotContent); ok {
			return c, nil
		}
	}
	return l.VolumeSnapshotContentLister.Get(name)
}

// client notes what is written through it.
func (n contentNotes) client(c snapclient.Interface) snapclient.Interface {
	return notingClient{c, n.notes}
}

type notingClient struct {
	snapclient.Interface
	notes *ahead
}

func (c notingClient) SnapshotV1() snapv1client.SnapshotV1Interface {
	return notingV1{c.Interface.SnapshotV1(), c.notes}
}

type notingV1 struct {
	snapv1client.SnapshotV1Interface
	notes *ahead
}

func (c notingV1) VolumeSnapshotContents() snapv1client.VolumeSnapshotContentInterface {
	return notingContents{c.SnapshotV1Interface.VolumeSnapshotContents(), c.notes}
}

type notingContents struct {
	snapv1client.VolumeSnapshotContentInterface
	notes *ahead
}

func (c notingContents) noted(o *snapv1.VolumeSnapshotContent, err error) (*snapv1.VolumeSnapshotContent, error) {
	if err != nil {
		return o, err
	}
	return o, c.notes.Update(o)
}

// Patch changes a content. boundary: held by the caller: the client's transport (WrapTransport).
func (c notingContents) Patch(ctx context.Context, name string, t types.PatchType, data []byte, o metav1.PatchOptions, subresources ...string) (*snapv1.VolumeSnapshotContent, error) {
	return c.noted(c.VolumeSnapshotContentInterface.Patch(ctx, name, t, data, o, subresources...))
}

// Update changes a content. boundary: held by the caller: the client's transport (WrapTransport).
func (c notingContents) Update(ctx context.Context, s *snapv1.VolumeSnapshotContent, o metav1.UpdateOptions) (*snapv1.VolumeSnapshotContent, error) {
	return c.noted(c.VolumeSnapshotContentInterface.Update(ctx, s, o))
}

// UpdateStatus changes a content's status. boundary: held by the caller: the client's transport (WrapTransport).
func (c notingContents) UpdateStatus(ctx context.Context, s *snapv1.VolumeSnapshotContent, o metav1.UpdateOptions) (*snapv1.VolumeSnapshotContent, error) {
	return c.noted(c.VolumeSnapshotContentInterface.UpdateStatus(ctx, s, o))
}
