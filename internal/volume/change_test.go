package volume

import (
	"context"
	"strings"
	"testing"
	"time"

	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	snapfake "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/fake"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What can never become a snapshot is refused at once, in words, and nothing is made: the user does not wait for what nobody does.
func TestSnapshotClassThatCannotBe(t *testing.T) {
	class := func(name, driver string, isDefault bool) *snapv1.VolumeSnapshotClass {
		c := &snapv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{}}, Driver: driver}
		if isDefault {
			c.Annotations["snapshot.storage.kubernetes.io/is-default-class"] = "true"
		}
		return c
	}
	for name, c := range map[string]struct {
		classes []*snapv1.VolumeSnapshotClass
		class   string
		want    string // "" : it is made, and waited for
	}{
		"a class that is not there":      {nil, "nope", "there is no snapshot class nope"},
		"a class of another driver":      {[]*snapv1.VolumeSnapshotClass{class("other", "other.csi", false)}, "other", "snapshot class other is of driver other.csi, and volume data of block.csi.berth.io"},
		"no class is the default":        {[]*snapv1.VolumeSnapshotClass{class("mine", blockDriver, false)}, "", "no snapshot class is the default one for driver block.csi.berth.io"},
		"another driver's is":            {[]*snapv1.VolumeSnapshotClass{class("other", "other.csi", true)}, "", "no snapshot class is the default one for driver block.csi.berth.io"},
		"a class that can":               {[]*snapv1.VolumeSnapshotClass{class("mine", blockDriver, false)}, "mine", ""},
		"the default one, none is named": {[]*snapv1.VolumeSnapshotClass{class("mine", blockDriver, true)}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			//lint:ignore SA1019 NewClientset is not generated for snapshots
			snaps := snapfake.NewSimpleClientset()
			n.service.snapshots = snaps
			for _, k := range c.classes {
				if _, err := snaps.SnapshotV1().VolumeSnapshotClasses().Create(t.Context(), k, metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			n.create(t, "data")
			pvc, err := n.CoreV1().PersistentVolumeClaims(ns).Get(t.Context(), "data", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			pvc.Status.Phase, pvc.Spec.VolumeName = corev1.ClaimBound, "pv"
			if _, err := n.CoreV1().PersistentVolumeClaims(ns).Update(t.Context(), pvc, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: corev1.PersistentVolumeSpec{
				PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: blockDriver}}}}
			if _, err := n.CoreV1().PersistentVolumes().Create(t.Context(), pv, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			err = n.service.Snapshot(ctx, ns, "data", "before", c.class)
			made, listErr := snaps.SnapshotV1().VolumeSnapshots(ns).List(t.Context(), metav1.ListOptions{})
			if listErr != nil {
				t.Fatal(listErr)
			}
			if c.want == "" {
				if len(made.Items) != 1 || err == nil || !stopped(err) { // nobody makes it ready here
					t.Errorf("made %d, %v", len(made.Items), err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || len(made.Items) != 0 {
				t.Errorf("made %d, %v", len(made.Items), err)
			}
		})
	}
}
