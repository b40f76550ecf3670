package migrate

import (
	"context"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/boundary"
)

// Reasons of events.
const (
	reasonMigrated  = "MigratedToCSI"
	reasonTakenBack = "MigratedBackToFlexVolume"
)

// tell writes an event on the volume and one on its claim.
func (m *Migration) tell(ctx context.Context, r *record, pv *v1.PersistentVolume) error {
	reason, to, from := reasonMigrated, r.CSI, r.Flex
	if r.State == undoing {
		reason, to, from = reasonTakenBack, r.Flex, r.CSI
	}
	message := fmt.Sprintf("volume %s was %s and is %s: the same data", pv.Name, describe(from), describe(to))
	about := v1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolume", Name: pv.Name, UID: pv.UID, ResourceVersion: pv.ResourceVersion}
	err := boundary.Do("migrate/tell-volume", func() error {
		_, err := m.Client.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, event(about, metav1.NamespaceDefault, reason, message), metav1.CreateOptions{})
		return err
	})
	ref := pv.Spec.ClaimRef
	if err != nil || ref == nil || ref.UID == "" {
		return err
	}
	about = v1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: ref.Namespace, Name: ref.Name, UID: ref.UID}
	return boundary.Do("migrate/tell-claim", func() error {
		_, err := m.Client.CoreV1().Events(ref.Namespace).Create(ctx, event(about, ref.Namespace, reason, message), metav1.CreateOptions{})
		return err
	})
}

func event(about v1.ObjectReference, namespace, reason, message string) *v1.Event {
	now := metav1.NewTime(time.Now())
	return &v1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: "berth-migrate-", Namespace: namespace},
		InvolvedObject: about, Reason: reason, Message: message, Type: v1.EventTypeNormal,
		Source: v1.EventSource{Component: "berth-migrate"}, FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}
}
