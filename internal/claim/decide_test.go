package claim

import (
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

func TestDecideClaim(t *testing.T) {
	wasBound := annotated(storagehelpers.AnnBindCompleted, "yes")
	leaving := func(c *v1.PersistentVolumeClaim) { now := metav1.Now(); c.DeletionTimestamp = &now }
	now := class("now", "x", storagev1.VolumeBindingImmediate)
	late := class("late", "x", storagev1.VolumeBindingWaitForFirstConsumer)
	for name, tc := range map[string]struct {
		view  claimView
		act   claimAct
		event string // reason and beginning of the message
	}{
		"bound, volume there":            {claimView{claim: claim("c", "1", naming("v"), wasBound), named: volume("v", "1", claimedBy("c", "uid-c"))}, actBind, ""},
		"bound, volume forgot":           {claimView{claim: claim("c", "1", naming("v"), wasBound), named: volume("v", "1")}, actBind, ""},
		"bound, volume is another's":     {claimView{claim: claim("c", "1", naming("v"), wasBound), named: volume("v", "1", claimedBy("d", "uid-d"))}, actLose, "ClaimMisbound"},
		"bound, volume of a namesake":    {claimView{claim: claim("c", "1", naming("v"), wasBound), named: volume("v", "1", claimedBy("c", "old"))}, actLose, "ClaimMisbound"},
		"bound, no volume":               {claimView{claim: claim("c", "1", naming("v"), wasBound)}, actLose, "ClaimLost Bound claim has lost its PersistentVolume"},
		"bound, names none":              {claimView{claim: claim("c", "1", wasBound)}, actLose, "ClaimLost Bound claim has lost reference"},
		"names a volume that is missing": {claimView{claim: claim("c", "1", naming("v"))}, actStay, ""},
		"names a free volume":            {claimView{claim: claim("c", "1", naming("v")), named: volume("v", "1")}, actBind, ""},
		"names one that does not fit":    {claimView{claim: claim("c", "2", naming("v")), named: volume("v", "1")}, actStay, "VolumeMismatch Cannot bind to requested volume \"v\": requested PV is too small"},
		"names one reserved for it":      {claimView{claim: claim("c", "2", naming("v")), named: volume("v", "1", claimedBy("c", ""))}, actBind, ""},
		"names another's":                {claimView{claim: claim("c", "1", naming("v")), named: volume("v", "1", claimedBy("d", "uid-d"))}, actStay, "FailedBinding volume \"v\" already bound to a different claim."},
		"names another's, was ours":      {claimView{claim: claim("c", "1", naming("v"), annotated(storagehelpers.AnnBoundByController, "yes")), named: volume("v", "1", claimedBy("d", "uid-d"))}, actRefuse, "FailedBinding"},
		"match":                          {claimView{claim: claim("c", "1"), match: volume("v", "1")}, actBind, ""},
		"match before default class":     {claimView{claim: claim("c", "1", noClass), match: volume("v", "1"), fallback: now}, actBind, ""},
		"no class, default":              {claimView{claim: claim("c", "1", noClass), fallback: now}, actAdopt, ""},
		"empty class, default":           {claimView{claim: claim("c", "1"), fallback: now}, actStay, "FailedBinding no persistent volumes available for this claim and no storage class is set"},
		"no class, no default":           {claimView{claim: claim("c", "1", noClass)}, actStay, "FailedBinding"},
		"immediate":                      {claimView{claim: claim("c", "1", ofClass("now")), class: now}, actProvision, ""},
		"immediate, being deleted":       {claimView{claim: claim("c", "1", ofClass("now"), leaving), class: now}, actStay, ""},
		"late, nobody uses it":           {claimView{claim: claim("c", "1", ofClass("late")), class: late}, actStay, "WaitForFirstConsumer waiting for first consumer"},
		"late, a pod without node":       {claimView{claim: claim("c", "1", ofClass("late")), class: late, unscheduled: []string{"p"}}, actStay, "WaitForPodScheduled waiting for pod p to be scheduled"},
		"late, two pods":                 {claimView{claim: claim("c", "1", ofClass("late")), class: late, unscheduled: []string{"p", "q"}}, actStay, "WaitForPodScheduled waiting for pods p,q to be scheduled"},
		"late, node chosen":              {claimView{claim: claim("c", "1", ofClass("late"), annotated(storagehelpers.AnnSelectedNode, "n")), class: late}, actProvision, ""},
		"unknown class":                  {claimView{claim: claim("c", "1", ofClass("no")), classes: []string{"b", "a"}}, actStay, "ProvisioningFailed storageclass.storage.k8s.io \"no\" not found: create it or name one of a, b"},
		"unknown class, none exist":      {claimView{claim: claim("c", "1", ofClass("no"))}, actStay, "ProvisioningFailed storageclass.storage.k8s.io \"no\" not found: create it"},
	} {
		t.Run(name, func(t *testing.T) {
			got := decideClaim(tc.view)
			if got.act != tc.act {
				t.Errorf("act %d, want %d", got.act, tc.act)
			}
			event := ""
			if got.notice != nil {
				event = got.notice.reason + " " + got.notice.message
			}
			if !strings.HasPrefix(event, tc.event) || tc.event == "" && event != "" {
				t.Errorf("event %q, want %q", event, tc.event)
			}
			if tc.act == actStay && got.waiting == "" {
				t.Error("waits without saying for what")
			}
		})
	}
}

func TestDecideVolume(t *testing.T) {
	mine := claimedBy("c", "uid-c")
	block := func(c *v1.PersistentVolumeClaim) { m := v1.PersistentVolumeBlock; c.Spec.VolumeMode = &m }
	madeFor := volumeAnnotated(storagehelpers.AnnDynamicallyProvisioned, "x")
	for name, tc := range map[string]struct {
		pv    *v1.PersistentVolume
		claim *v1.PersistentVolumeClaim
		want  volumeAct
	}{
		"unclaimed":                          {volume("v", "1"), nil, volumeAvailable},
		"reserved":                           {volume("v", "1", claimedBy("c", "")), claim("c", "1"), volumeAvailable},
		"claim gone":                         {volume("v", "1", mine), nil, volumeReleased},
		"bound":                              {volume("v", "1", mine), claim("c", "1", naming("v")), volumeBound},
		"half bound":                         {volume("v", "1", mine), claim("c", "1"), volumeWakes},
		"half bound, other mode":             {volume("v", "1", mine), claim("c", "1", block), volumeDiffers},
		"claim elsewhere":                    {volume("v", "1", mine), claim("c", "1", naming("w")), volumeUnbinds},
		"claim elsewhere, made for it":       {volume("v", "1", mine, madeFor, reclaimed(v1.PersistentVolumeReclaimDelete)), claim("c", "1", naming("w")), volumeReleased},
		"claim elsewhere, made, but to keep": {volume("v", "1", mine, madeFor), claim("c", "1", naming("w")), volumeUnbinds},
	} {
		if got := decideVolume(tc.pv, tc.claim); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

func TestStillReleased(t *testing.T) {
	mine := claimedBy("c", "uid-c")
	other := claim("c", "1")
	other.UID = "newer"
	for name, tc := range map[string]struct {
		pv    *v1.PersistentVolume
		claim *v1.PersistentVolumeClaim
		want  bool
	}{
		"unclaimed":                {volume("v", "1"), nil, false},
		"reserved":                 {volume("v", "1", claimedBy("c", "")), nil, false},
		"claim gone":               {volume("v", "1", mine), nil, true},
		"namesake":                 {volume("v", "1", mine), other, true},
		"bound":                    {volume("v", "1", mine), claim("c", "1", naming("v")), false},
		"half bound":               {volume("v", "1", mine), claim("c", "1"), false},
		"claim is bound elsewhere": {volume("v", "1", mine), claim("c", "1", naming("w")), true},
	} {
		if got := stillReleased(tc.pv, tc.claim); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestDefaultClass(t *testing.T) {
	at := func(name string, seconds int64, options ...func(*storagev1.StorageClass)) *storagev1.StorageClass {
		sc := class(name, "x", storagev1.VolumeBindingImmediate, options...)
		sc.CreationTimestamp = metav1.NewTime(time.Unix(seconds, 0))
		return sc
	}
	got := defaultClass([]*storagev1.StorageClass{at("old", 1, isDefault), at("b", 2, isDefault), at("a", 2, isDefault), at("newest", 3)})
	if got == nil || got.Name != "a" {
		t.Errorf("default is %v", got)
	}
	if got := defaultClass([]*storagev1.StorageClass{at("x", 1)}); got != nil {
		t.Errorf("default is %s", got.Name)
	}
}

func TestClaimStatusPatch(t *testing.T) {
	bound := claim("c", "1Gi")
	bound.Status = v1.PersistentVolumeClaimStatus{Phase: v1.ClaimBound, AccessModes: []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
		Capacity: v1.ResourceList{v1.ResourceStorage: *volume("v", "1Gi").Spec.Capacity.Storage()}}
	for name, tc := range map[string]struct {
		claim *v1.PersistentVolumeClaim
		phase v1.PersistentVolumeClaimPhase
		pv    *v1.PersistentVolume
		want  string // the patch's status
	}{
		"becomes bound":                            {claim("c", "1Gi"), v1.ClaimBound, volume("v", "2Gi"), `"status":{"accessModes":["ReadWriteOnce"],"capacity":{"storage":"2Gi"},"phase":"Bound"}`},
		"is bound":                                 {bound, v1.ClaimBound, volume("v", "1Gi"), ""},
		"is bound, the volume has grown":           {bound, v1.ClaimBound, volume("v", "9Gi"), ""},
		"becomes bound before its filesystem grew": {claim("c", "1Gi"), v1.ClaimBound, volume("v", "9Gi", volumeAnnotated(preResizeCapacity, "3Gi")), `"capacity":{"storage":"3Gi"}`},
		"becomes lost":                             {bound, v1.ClaimLost, nil, `"status":{"accessModes":null,"capacity":null,"phase":"Lost"}`},
		"is pending":                               {claim("c", "1Gi"), v1.ClaimPending, nil, ""},
		"gets the volume's attributes class":       {claim("c", "1Gi"), v1.ClaimBound, volume("v", "1Gi", func(pv *v1.PersistentVolume) { s := "gold"; pv.Spec.VolumeAttributesClassName = &s }), `"currentVolumeAttributesClassName":"gold"`},
	} {
		p, err := claimStatusPatch(tc.claim, tc.phase, tc.pv)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(p.json()); tc.want == "" && p != nil || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
	if _, err := claimStatusPatch(claim("c", "1Gi"), v1.ClaimBound, &v1.PersistentVolume{}); err == nil {
		t.Error("a volume without capacity was bound")
	}
}

func TestMigration(t *testing.T) {
	const prov = storagehelpers.AnnStorageProvisioner
	for name, tc := range map[string]struct {
		annotations map[string]string
		set         any
		differs     bool
	}{
		"no provisioner":       {nil, nil, false},
		"external":             {map[string]string{prov: "x.example.com"}, nil, false},
		"taken over by CSI":    {map[string]string{prov: "kubernetes.io/aws-ebs"}, "ebs.csi.aws.com", true},
		"already said":         {map[string]string{prov: "kubernetes.io/aws-ebs", storagehelpers.AnnMigratedTo: "ebs.csi.aws.com"}, nil, false},
		"no longer taken over": {map[string]string{prov: "kubernetes.io/mock", storagehelpers.AnnMigratedTo: "x"}, nil, true},
	} {
		if set, differs := migration(tc.annotations, prov); set != tc.set || differs != tc.differs {
			t.Errorf("%s: %v %v", name, set, differs)
		}
	}
}
