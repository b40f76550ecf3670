package migrate

import (
	"errors"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func flexVolume() *v1.PersistentVolume {
	return &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pv", UID: "pv-1", ResourceVersion: "7", Labels: map[string]string{"app": "db"},
			Annotations: map[string]string{"note": "keep", annBoundByUs: "yes", annApplied: "{}", deletionSecret + "name": "s"},
			Finalizers:  []string{"kubernetes.io/pv-protection"}},
		Spec: v1.PersistentVolumeSpec{
			Capacity: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}, AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: v1.PersistentVolumeReclaimDelete, StorageClassName: "flex", MountOptions: []string{"noatime"},
			ClaimRef: &v1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: "ns", Name: "data", UID: "claim-1", ResourceVersion: "3"},
			PersistentVolumeSource: v1.PersistentVolumeSource{FlexVolume: &v1.FlexPersistentVolumeSource{
				Driver: FlexBlock, FSType: "xfs", ReadOnly: true, Options: map[string]string{"volumeID": "vol-1"}}},
		},
		Status: v1.PersistentVolumeStatus{Phase: v1.VolumeBound},
	}
}

func boundClaim() *v1.PersistentVolumeClaim {
	return &v1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "data", UID: "claim-1"},
		Spec: v1.PersistentVolumeClaimSpec{VolumeName: "pv", Resources: v1.VolumeResourceRequirements{
			Requests: v1.ResourceList{v1.ResourceStorage: resource.MustParse("1Gi")}}},
		Status: v1.PersistentVolumeClaimStatus{Phase: v1.ClaimBound},
	}
}

func wantRefusal(t *testing.T, err error, words string) {
	t.Helper()
	if words == "" {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	var r *RefusedError
	if !errors.As(err, &r) || !strings.Contains(err.Error(), words) {
		t.Errorf("error %v, want a refusal with %q", err, words)
	}
}

func TestWhichVolumesCanBecomeCSIVolumes(t *testing.T) {
	raw := v1.PersistentVolumeBlock
	for name, one := range map[string]struct {
		change func(*v1.PersistentVolume)
		want   string
	}{
		"a block volume":      {func(*v1.PersistentVolume) {}, ""},
		"of another vendor":   {func(pv *v1.PersistentVolume) { pv.Spec.FlexVolume.Driver = "acme/block" }, ""},
		"an unknown vendor's": {func(pv *v1.PersistentVolume) { pv.Spec.FlexVolume.Driver = "foo/block" }, "--block-driver foo/block"},
		"nfs":                 {func(pv *v1.PersistentVolume) { pv.Spec.FlexVolume.Driver = "berth/nfs" }, "no CSI driver in this version"},
		"cifs of a vendor":    {func(pv *v1.PersistentVolume) { pv.Spec.FlexVolume.Driver = "foo/cifs" }, "no CSI driver in this version"},
		"lvm":                 {func(pv *v1.PersistentVolume) { pv.Spec.FlexVolume.Driver = "berth/lvm" }, "no CSI driver in this version"},
		"no FlexVolume":       {func(pv *v1.PersistentVolume) { pv.Spec.FlexVolume = nil }, "no FlexVolume volume"},
		"without an id":       {func(pv *v1.PersistentVolume) { pv.Spec.FlexVolume.Options = nil }, "volumeID is missing"},
		"a raw device":        {func(pv *v1.PersistentVolume) { pv.Spec.VolumeMode = &raw }, "volumeMode"},
	} {
		t.Run(name, func(t *testing.T) {
			pv := flexVolume()
			one.change(pv)
			wantRefusal(t, convertible(pv, []string{FlexBlock, "acme/block"}), one.want)
		})
	}
}

func TestWhichVolumesCanBeMadeAnewNow(t *testing.T) {
	now := metav1.Now()
	for name, one := range map[string]struct {
		change func(*v1.PersistentVolume, *v1.PersistentVolumeClaim)
		want   string
	}{
		"bound":    {func(*v1.PersistentVolume, *v1.PersistentVolumeClaim) {}, ""},
		"released": {func(pv *v1.PersistentVolume, _ *v1.PersistentVolumeClaim) { pv.Status.Phase = v1.VolumeReleased }, "is Released"},
		"failed":   {func(pv *v1.PersistentVolume, _ *v1.PersistentVolumeClaim) { pv.Status.Phase = v1.VolumeFailed }, "is Failed"},
		"somebody's finalizer": {func(pv *v1.PersistentVolume, _ *v1.PersistentVolumeClaim) {
			pv.Finalizers = append(pv.Finalizers, "backup.example.org/x")
		}, "backup.example.org/x"},
		"a provisioner's finalizer": {func(pv *v1.PersistentVolume, _ *v1.PersistentVolumeClaim) {
			pv.Finalizers = append(pv.Finalizers, "external-provisioner.volume.kubernetes.io/finalizer")
		}, ""},
		"an attacher's finalizer": {func(pv *v1.PersistentVolume, _ *v1.PersistentVolumeClaim) {
			pv.Finalizers = append(pv.Finalizers, "external-attacher/block-csi-berth-io")
		}, ""},
		"its claim is being deleted": {func(_ *v1.PersistentVolume, c *v1.PersistentVolumeClaim) { c.DeletionTimestamp = &now }, "being deleted"},
		"its claim names another":    {func(_ *v1.PersistentVolume, c *v1.PersistentVolumeClaim) { c.Spec.VolumeName = "other" }, `"other"`},
		"its claim asks for more": {func(_ *v1.PersistentVolume, c *v1.PersistentVolumeClaim) {
			c.Spec.Resources.Requests[v1.ResourceStorage] = resource.MustParse("2Gi")
		}, "being expanded"},
		"its filesystem is to grow": {func(_ *v1.PersistentVolume, c *v1.PersistentVolumeClaim) {
			c.Status.Conditions = []v1.PersistentVolumeClaimCondition{{Type: v1.PersistentVolumeClaimFileSystemResizePending, Status: v1.ConditionTrue}}
		}, "being expanded"},
	} {
		t.Run(name, func(t *testing.T) {
			pv, claim := flexVolume(), boundClaim()
			one.change(pv, claim)
			wantRefusal(t, replaceable(pv, claim), one.want)
		})
	}
	t.Run("its claim is gone", func(t *testing.T) { wantRefusal(t, replaceable(flexVolume(), nil), "is gone") })
	t.Run("nobody's", func(t *testing.T) {
		pv := flexVolume()
		pv.Spec.ClaimRef, pv.Status.Phase = nil, v1.VolumeAvailable
		wantRefusal(t, replaceable(pv, nil), "")
	})
}

// Everything but the source is kept, and what a provisioner looks at when it deletes is there.
func TestTheCSIForm(t *testing.T) {
	flex := flexVolume()
	reach := &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{}}}}
	csi := toCSI(flex, CSIBlock, reach)
	want := v1.CSIPersistentVolumeSource{Driver: CSIBlock, VolumeHandle: "vol-1", FSType: "xfs", ReadOnly: true}
	if got := *csi.Spec.CSI; got.Driver != want.Driver || got.VolumeHandle != want.VolumeHandle || got.FSType != want.FSType || !got.ReadOnly || csi.Spec.FlexVolume != nil {
		t.Errorf("source %+v", csi.Spec.PersistentVolumeSource)
	}
	if csi.UID != "" || csi.ResourceVersion != "" || len(csi.Finalizers) > 0 || csi.Status.Phase != "" {
		t.Errorf("what the API server gives is carried over: %+v", csi.ObjectMeta)
	}
	for key, want := range map[string]string{"note": "keep", annBoundByUs: "yes", annProvisionedBy: CSIBlock, AnnMigratedFrom: "flexvolume/" + FlexBlock, annApplied: "", deletionSecret + "name": ""} {
		if got := csi.Annotations[key]; got != want {
			t.Errorf("annotation %s is %q, want %q", key, got, want)
		}
	}
	if r := csi.Spec.ClaimRef; r == nil || r.UID != "claim-1" || r.ResourceVersion != "" {
		t.Errorf("claimRef %+v", r)
	}
	if csi.Spec.NodeAffinity != reach || csi.Spec.StorageClassName != "flex" || csi.Spec.MountOptions[0] != "noatime" || csi.Labels["app"] != "db" || csi.Spec.PersistentVolumeReclaimPolicy != v1.PersistentVolumeReclaimDelete {
		t.Errorf("spec %+v", csi.Spec)
	}
	if flex.Annotations[annApplied] == "" || flex.Spec.FlexVolume == nil || flex.Spec.ClaimRef.ResourceVersion != "3" {
		t.Error("the volume that was there is changed")
	}
	own := flexVolume()
	own.Spec.NodeAffinity = &v1.VolumeNodeAffinity{}
	if got := toCSI(own, CSIBlock, reach).Spec.NodeAffinity; got == reach {
		t.Error("the volume's own node affinity is lost")
	}
}

// A volume that has grown, or found another claim, since it was migrated is taken back with what it has now.
func TestAFormIsRefreshed(t *testing.T) {
	form := manifest(flexVolume())
	now := toCSI(flexVolume(), CSIBlock, nil)
	now.Spec.Capacity = v1.ResourceList{v1.ResourceStorage: resource.MustParse("2Gi")}
	now.Spec.ClaimRef.UID = "claim-2"
	delete(now.Annotations, annBoundByUs)
	got := refreshed(form, now)
	if got.Spec.Capacity.Storage().String() != "2Gi" || got.Spec.ClaimRef.UID != "claim-2" || got.Spec.FlexVolume == nil {
		t.Errorf("spec %+v", got.Spec)
	}
	if _, ok := got.Annotations[annBoundByUs]; ok || got.Annotations[AnnMigratedFrom] != "" {
		t.Errorf("annotations %v", got.Annotations)
	}
	if form.Spec.ClaimRef.UID != "claim-1" {
		t.Error("the form itself is changed")
	}
}

func TestWhereTheVolumeCanBeReached(t *testing.T) {
	node := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"topology.block.csi.berth.io/node": "n"}}}
	got, err := affinity(node, []string{"topology.block.csi.berth.io/node"})
	if err != nil || len(got.Required.NodeSelectorTerms) != 1 || got.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0] != "n" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := affinity(node, nil); got != nil || err != nil {
		t.Errorf("a driver without topology: %+v, %v", got, err)
	}
	if _, err := affinity(node, []string{"zone"}); err == nil || !strings.Contains(err.Error(), "no label zone") {
		t.Errorf("a label that is not there: %v", err)
	}
}
