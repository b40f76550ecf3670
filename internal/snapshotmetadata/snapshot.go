package snapshotmetadata

import (
	"context"
	"fmt"
	"slices"

	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	snaputils "github.com/kubernetes-csi/external-snapshotter/v8/pkg/utils"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// found is the snapshot that a request names, as its driver knows it.
type found struct {
	handle  string
	driver  *grpc.ClientConn
	secrets map[string]string
}

// find looks the VolumeSnapshot up. drivers are those that the token is good for.
func (s *Server) find(ctx context.Context, namespace, name string, drivers []string) (*found, error) {
	vs, err := s.opts.Snap.SnapshotV1().VolumeSnapshots(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, missing(err, "VolumeSnapshot "+namespace+"/"+name)
	}
	if vs.Status == nil || vs.Status.ReadyToUse == nil || !*vs.Status.ReadyToUse || vs.Status.BoundVolumeSnapshotContentName == nil {
		return nil, status.Errorf(codes.Unavailable, "VolumeSnapshot %s/%s is not ready to use", namespace, name)
	}
	contentName := *vs.Status.BoundVolumeSnapshotContentName
	content, err := s.opts.Snap.SnapshotV1().VolumeSnapshotContents().Get(ctx, contentName, metav1.GetOptions{})
	if err != nil {
		return nil, missing(err, "VolumeSnapshotContent "+contentName)
	}
	// Both sides must say so: a user can write any name into a snapshot's status that they may update.
	if ref := content.Spec.VolumeSnapshotRef; ref.Namespace != namespace || ref.Name != name || ref.UID != vs.UID {
		return nil, status.Errorf(codes.FailedPrecondition, "VolumeSnapshotContent %s belongs to another VolumeSnapshot, %s/%s", contentName, ref.Namespace, ref.Name)
	}
	if content.Status == nil || content.Status.SnapshotHandle == nil || content.Status.ReadyToUse == nil || !*content.Status.ReadyToUse {
		return nil, status.Errorf(codes.Unavailable, "VolumeSnapshotContent %s is not ready to use", contentName)
	}
	if !slices.Contains(drivers, content.Spec.Driver) {
		return nil, status.Errorf(codes.InvalidArgument, "VolumeSnapshot %s/%s is one of driver %s; the token was made for %q", namespace, name, content.Spec.Driver, drivers)
	}
	conn, ok := s.connection(content.Spec.Driver)
	if !ok {
		return nil, status.Errorf(codes.Unavailable, "driver %s is not registered now", content.Spec.Driver)
	}
	secrets, err := s.secrets(ctx, vs, content)
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "VolumeSnapshot %s/%s: %v", namespace, name, err)
	}
	return &found{handle: *content.Status.SnapshotHandle, driver: conn, secrets: secrets}, nil
}

func missing(err error, what string) error {
	if apierrors.IsNotFound(err) {
		return status.Errorf(codes.NotFound, "%s is not there", what)
	}
	return status.Errorf(codes.Unavailable, "get %s: %v", what, err)
}

// secrets are the snapshotter's, as the snapshot's class names them. A snapshot that was not made through a class has none.
func (s *Server) secrets(ctx context.Context, vs *snapv1.VolumeSnapshot, content *snapv1.VolumeSnapshotContent) (map[string]string, error) {
	if content.Spec.VolumeSnapshotClassName == nil {
		return nil, nil
	}
	class, err := s.opts.Snap.SnapshotV1().VolumeSnapshotClasses().Get(ctx, *content.Spec.VolumeSnapshotClassName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil // deleted since; a driver that needs a secret says so
	}
	if err != nil {
		return nil, fmt.Errorf("get VolumeSnapshotClass %s: %w", *content.Spec.VolumeSnapshotClassName, err)
	}
	ref, err := snaputils.GetSecretReference(snaputils.SnapshotterSecretParams, class.Parameters, content.Name, vs)
	if err != nil || ref == nil {
		return nil, err
	}
	return snaputils.GetCredentials(s.opts.Client, ref)
}
