package provision

import (
	"strings"
	"testing"

	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	snaputils "github.com/kubernetes-csi/external-snapshotter/v8/pkg/utils"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func snapshotClass(name, driver string, isDefault bool) *snapv1.VolumeSnapshotClass {
	c := &snapv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Driver: driver}
	if isDefault {
		c.Annotations = map[string]string{snaputils.IsDefaultSnapshotClassAnnotation: "true"}
	}
	return c
}

// Each reason for which a snapshot is not taken is told, with what to do, and none is told of one that is on its way.
func TestWhatASnapshotWaitsFor(t *testing.T) {
	bound := func(c *v1.PersistentVolumeClaim) { c.Status.Phase, c.Spec.VolumeName = v1.ClaimBound, "pv" }
	volume := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: v1.PersistentVolumeSpec{PersistentVolumeSource: v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{Driver: "d"}}}}
	standard := []*snapv1.VolumeSnapshotClass{snapshotClass("std", "d", true), snapshotClass("alien", "e", true)}
	whole := func(change ...func(*snapshotFacts)) snapshotFacts {
		f := snapshotFacts{
			snapshot: &snapv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}, Spec: snapv1.VolumeSnapshotSpec{Source: snapv1.VolumeSnapshotSource{PersistentVolumeClaimName: ptr.To("a")}}},
			claim:    claim("a", "d", bound), volume: volume, classes: standard, registered: true, capable: true,
		}
		for _, c := range change {
			c(&f)
		}
		return f
	}
	for name, c := range map[string]struct {
		f    snapshotFacts
		says string
	}{
		"nothing in its way": {f: whole()},
		"ready": {f: whole(func(f *snapshotFacts) {
			f.claim = nil
			f.snapshot.Status = &snapv1.VolumeSnapshotStatus{ReadyToUse: ptr.To(true)}
		})},
		"no such claim":           {f: whole(func(f *snapshotFacts) { f.claim, f.volume = nil, nil }), says: "claim a does not exist"},
		"claim being deleted":     {f: whole(func(f *snapshotFacts) { deleted(f.claim) }), says: "being deleted"},
		"claim deleted meanwhile": {f: whole(func(f *snapshotFacts) { deleted(f.claim); f.claim.Finalizers = []string{snaputils.PVCFinalizer} })},
		"claim not bound":         {f: whole(func(f *snapshotFacts) { f.claim.Status.Phase, f.volume = v1.ClaimPending, nil }), says: "not bound to a volume yet (Pending)"},
		"volume of no CSI driver": {f: whole(func(f *snapshotFacts) { f.volume = &v1.PersistentVolume{} }), says: "no CSI driver"},
		"driver not there":        {f: whole(func(f *snapshotFacts) { f.registered, f.capable = false, false }), says: "not registered"},
		"driver cannot":           {f: whole(func(f *snapshotFacts) { f.capable = false }), says: "CREATE_DELETE_SNAPSHOT"},
		"unknown class":           {f: whole(func(f *snapshotFacts) { f.snapshot.Spec.VolumeSnapshotClassName = ptr.To("x") }), says: `"x" does not exist; driver d has std`},
		"class of another driver": {f: whole(func(f *snapshotFacts) { f.snapshot.Spec.VolumeSnapshotClassName = ptr.To("alien") }), says: "is of driver e"},
		"no default":              {f: whole(func(f *snapshotFacts) { f.classes = []*snapv1.VolumeSnapshotClass{snapshotClass("std", "d", false)} }), says: "none of driver d is the default"},
		"two defaults":            {f: whole(func(f *snapshotFacts) { f.classes = append(f.classes, snapshotClass("too", "d", true)) }), says: "several defaults: std, too"},
		"content that is not there": {f: whole(func(f *snapshotFacts) {
			f.snapshot.Spec.Source = snapv1.VolumeSnapshotSource{VolumeSnapshotContentName: ptr.To("c")}
		}), says: `"c" is not there`},
	} {
		t.Run(name, func(t *testing.T) {
			if got := c.f.waitsFor(); c.says == "" && got != "" || !strings.Contains(got, c.says) {
				t.Errorf("it waits for %q", got)
			}
		})
	}
}

func TestWhyAClaimKeepsItsAttributes(t *testing.T) {
	own, alien := &storagev1.VolumeAttributesClass{DriverName: "d"}, &storagev1.VolumeAttributesClass{DriverName: "e"}
	for name, c := range map[string]struct {
		want, driver         string
		class                *storagev1.VolumeAttributesClass
		registered, modifies bool
		reason               string
	}{
		"wants nothing":           {driver: "d"},
		"on its way":              {want: "gold", driver: "d", class: own, registered: true, modifies: true},
		"driver will come":        {want: "gold", driver: "d", class: own},
		"no such class":           {want: "gold", driver: "d", registered: true, modifies: true, reason: reasonNoClass},
		"class of another driver": {want: "gold", driver: "d", class: alien, registered: true, reason: reasonOtherDriver},
		"another's, driver gone":  {want: "gold", driver: "d", class: alien, reason: reasonOtherDriver},
		"another's, told by it":   {want: "gold", driver: "d", class: alien, registered: true, modifies: true},
		"driver cannot":           {want: "gold", driver: "d", class: own, registered: true, reason: reasonCannot},
		"no CSI volume":           {want: "gold", class: own, reason: reasonCannot},
	} {
		t.Run(name, func(t *testing.T) {
			if reason, message := attributesProblem(c.want, c.class, c.driver, c.registered, c.modifies); reason != c.reason || (reason == "") != (message == "") {
				t.Errorf("%s: %s", reason, message)
			}
		})
	}
}

// A snapshot of a volume of one driver by a class of another is refused before any driver is asked, and only then.
func TestSnapshotByAnotherDriversClass(t *testing.T) {
	content := &snapv1.VolumeSnapshotContent{Spec: snapv1.VolumeSnapshotContentSpec{Driver: "d", VolumeSnapshotClassName: ptr.To("std")}}
	of := func(driver string) *v1.PersistentVolume {
		return &v1.PersistentVolume{Spec: v1.PersistentVolumeSpec{PersistentVolumeSource: v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{Driver: driver}}}}
	}
	if why := otherDriver(content, claim("a", "e"), of("e")); !strings.Contains(why, "driver e") {
		t.Errorf("refused with %q", why)
	}
	for name, pv := range map[string]*v1.PersistentVolume{"its own": of("d"), "unknown": nil} {
		if why := otherDriver(content, claim("a", "d"), pv); why != "" {
			t.Errorf("%s: refused with %q", name, why)
		}
	}
}
