package snapshotmetadata

import (
	"bytes"
	"context"
	"fmt"

	cbtv1 "github.com/kubernetes-csi/external-snapshot-metadata/client/apis/snapshotmetadataservice/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/boundary"
)

// publish writes the object that leads clients here: the address and the certificate are those of this process.
func (s *Server) publish(ctx context.Context, driver string) error {
	s.mu.Lock()
	spec := cbtv1.SnapshotMetadataServiceSpec{Audience: driver, Address: s.address, CACert: s.pair.pem}
	s.mu.Unlock()
	services := s.opts.Services.CbtV1beta1().SnapshotMetadataServices()
	have, err := services.Get(ctx, driver, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		err = boundary.Do("snapshotmetadata/publish", func() error {
			_, err := services.Create(ctx, &cbtv1.SnapshotMetadataService{ObjectMeta: metav1.ObjectMeta{Name: driver}, Spec: spec}, metav1.CreateOptions{})
			return err
		})
	case err == nil && (have.Spec.Address != spec.Address || have.Spec.Audience != spec.Audience || !bytes.Equal(have.Spec.CACert, spec.CACert)):
		have = have.DeepCopy()
		have.Spec = spec
		err = boundary.Do("snapshotmetadata/republish", func() error {
			_, err := services.Update(ctx, have, metav1.UpdateOptions{})
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("write SnapshotMetadataService %s: %w", driver, err)
	}
	return nil
}
