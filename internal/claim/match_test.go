package claim

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func TestMatch(t *testing.T) {
	rwx := modes(v1.ReadWriteOnce, v1.ReadWriteMany)
	labelled := func(pv *v1.PersistentVolume) { pv.Labels = map[string]string{"disk": "ssd"} }
	ssd := func(c *v1.PersistentVolumeClaim) {
		c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"disk": "ssd"}}
	}
	block := func(pv *v1.PersistentVolume) { pv.Spec.VolumeMode = ptr.To(v1.PersistentVolumeBlock) }
	vac := func(pv *v1.PersistentVolume) { pv.Spec.VolumeAttributesClassName = ptr.To("gold") }
	emptyVAC := func(c *v1.PersistentVolumeClaim) { c.Spec.VolumeAttributesClassName = ptr.To("") }
	deleted := func(pv *v1.PersistentVolume) { now := metav1.Now(); pv.DeletionTimestamp = &now }
	for name, tc := range map[string]struct {
		volumes []*v1.PersistentVolume
		claim   *v1.PersistentVolumeClaim
		delay   bool
		want    string
	}{
		"smallest that is large enough": {[]*v1.PersistentVolume{volume("a", "5Gi"), volume("b", "2Gi"), volume("c", "1Gi")}, claim("x", "1500Mi"), false, "b"},
		"exact size":                    {[]*v1.PersistentVolume{volume("a", "5Gi"), volume("b", "1Gi")}, claim("x", "1Gi"), false, "b"},
		"none is large enough":          {[]*v1.PersistentVolume{volume("a", "1Gi")}, claim("x", "2Gi"), false, ""},
		"fewer modes before smaller size": {[]*v1.PersistentVolume{volume("many", "1Gi", rwx), volume("few", "9Gi")},
			claim("x", "1Gi"), false, "few"},
		"modes must be contained": {[]*v1.PersistentVolume{volume("a", "1Gi")},
			claim("x", "1Gi", func(c *v1.PersistentVolumeClaim) {
				c.Spec.AccessModes = []v1.PersistentVolumeAccessMode{v1.ReadWriteMany}
			}), false, ""},
		"class must be equal":                   {[]*v1.PersistentVolume{volume("a", "1Gi", volumeOfClass("gold"))}, claim("x", "1Gi"), false, ""},
		"legacy class annotation of the volume": {[]*v1.PersistentVolume{volume("a", "1Gi", volumeOfClass("no"), volumeAnnotated(v1.BetaStorageClassAnnotation, "gold"))}, claim("x", "1Gi", ofClass("gold")), false, "a"},
		"legacy class annotation of the claim":  {[]*v1.PersistentVolume{volume("a", "1Gi", volumeOfClass("gold"))}, claim("x", "1Gi", ofClass("no"), annotated(v1.BetaStorageClassAnnotation, "gold")), false, "a"},
		"volume mode must be equal":             {[]*v1.PersistentVolume{volume("a", "1Gi", block)}, claim("x", "1Gi"), false, ""},
		"no volume mode is Filesystem":          {[]*v1.PersistentVolume{volume("a", "1Gi", func(pv *v1.PersistentVolume) { pv.Spec.VolumeMode = nil })}, claim("x", "1Gi"), false, "a"},
		"attributes class must be equal":        {[]*v1.PersistentVolume{volume("a", "1Gi", vac)}, claim("x", "1Gi"), false, ""},
		"no attributes class is an empty one":   {[]*v1.PersistentVolume{volume("a", "1Gi")}, claim("x", "1Gi", emptyVAC), false, "a"},
		"selector":                              {[]*v1.PersistentVolume{volume("a", "1Gi"), volume("b", "2Gi", labelled)}, claim("x", "1Gi", ssd), false, "b"},
		"not Available":                         {[]*v1.PersistentVolume{volume("a", "1Gi", inPhase(v1.VolumePending)), volume("b", "1Gi", inPhase(v1.VolumeReleased))}, claim("x", "1Gi"), false, ""},
		"being deleted":                         {[]*v1.PersistentVolume{volume("a", "1Gi", deleted)}, claim("x", "1Gi"), false, ""},
		"claimed by another":                    {[]*v1.PersistentVolume{volume("a", "1Gi", claimedBy("y", ""))}, claim("x", "1Gi"), false, ""},
		"reserved for this one comes first":     {[]*v1.PersistentVolume{volume("a", "1Gi"), volume("b", "9Gi", claimedBy("x", ""))}, claim("x", "1Gi"), false, "b"},
		"reserved, in any phase and class":      {[]*v1.PersistentVolume{volume("b", "9Gi", claimedBy("x", ""), inPhase(v1.VolumePending), volumeOfClass("other"))}, claim("x", "1Gi"), false, "b"},
		"reserved for a namesake of other UID":  {[]*v1.PersistentVolume{volume("b", "9Gi", claimedBy("x", "uid-old"))}, claim("x", "1Gi"), false, ""},
		"bound to the UID before merely reserved": {[]*v1.PersistentVolume{volume("a", "1Gi", claimedBy("x", "")), volume("b", "1Gi", claimedBy("x", "uid-x"))},
			claim("x", "1Gi"), false, "b"},
		"reserved but too small":           {[]*v1.PersistentVolume{volume("b", "1Gi", claimedBy("x", ""))}, claim("x", "2Gi"), false, ""},
		"delayed: a free one is not taken": {[]*v1.PersistentVolume{volume("a", "1Gi")}, claim("x", "1Gi"), true, ""},
		"delayed: the reserved one is":     {[]*v1.PersistentVolume{volume("a", "1Gi", claimedBy("x", ""))}, claim("x", "1Gi"), true, "a"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newVolumes()
			for _, pv := range tc.volumes {
				s.put(pv)
			}
			got, release, err := s.match(tc.claim, tc.delay, func() {})
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case got == nil && tc.want != "", got != nil && got.Name != tc.want:
				t.Fatalf("matched %v, want %q", got, tc.want)
			case got != nil:
				if again, _, _ := s.match(claim("other", "1"), false, func() {}); again != nil && again.Name == got.Name {
					t.Error("a held volume was matched")
				}
				release()
			}
		})
	}
}

// The index agrees with looking at every volume, through random comings, goings and changes.
func TestIndexAgreesWithScan(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	pick := func(s []string) string { return s[rnd.IntN(len(s))] }
	modeSets := [][]v1.PersistentVolumeAccessMode{{v1.ReadWriteOnce}, {v1.ReadOnlyMany, v1.ReadWriteOnce}, {v1.ReadWriteMany}, {v1.ReadWriteOnce, v1.ReadWriteMany, v1.ReadOnlyMany}}
	s := newVolumes()
	all := map[string]*v1.PersistentVolume{}
	for version := 1; version < 5000; version++ {
		name := fmt.Sprintf("v%02d", rnd.IntN(60))
		if old := all[name]; old != nil && rnd.IntN(4) == 0 {
			s.remove(old)
			delete(all, name)
		} else {
			pv := volume(name, fmt.Sprintf("%dMi", 1+rnd.IntN(50)), volumeOfClass(pick([]string{"", "a"})), modes(modeSets[rnd.IntN(4)]...))
			pv.UID = "" // else a removed volume could not come back
			pv.ResourceVersion = fmt.Sprint(version)
			pv.Labels = map[string]string{"l": pick([]string{"x", "y"})}
			if rnd.IntN(3) == 0 {
				pv.Status.Phase = v1.VolumeBound
			}
			s.put(pv)
			all[name] = pv
		}
		c := claim("c", fmt.Sprintf("%dMi", 1+rnd.IntN(50)), ofClass(pick([]string{"", "a"})))
		c.Spec.AccessModes = modeSets[rnd.IntN(4)][:1]
		if rnd.IntN(2) == 0 {
			c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"l": pick([]string{"x", "y"})}}
		}
		want, err := requestOf(c)
		if err != nil {
			t.Fatal(err)
		}
		got := s.free.best(want)
		naive := scan(all, want)
		if (got == nil) != (naive == nil) {
			t.Fatalf("index says %v, scan says %v", got, naive)
		}
		if got != nil && (len(got.Spec.AccessModes) != len(naive.Spec.AccessModes) || got.Spec.Capacity.Storage().Cmp(*naive.Spec.Capacity.Storage()) != 0 && len(got.Spec.AccessModes) == 1) {
			t.Fatalf("index chose %s (%v, %s), scan %s (%v, %s)", got.Name, got.Spec.AccessModes, got.Spec.Capacity.Storage(), naive.Name, naive.Spec.AccessModes, naive.Spec.Capacity.Storage())
		}
	}
}

func scan(all map[string]*v1.PersistentVolume, r request) (best *v1.PersistentVolume) {
	for _, pv := range all {
		if !matchable(pv) || bucketOfVolume(pv) != r.bucket || pv.Spec.Capacity.Storage().Cmp(r.size) < 0 ||
			!containsModes(pv.Spec.AccessModes, r.modes) || !selects(r.selector, pv) {
			continue
		}
		if best == nil || len(pv.Spec.AccessModes) < len(best.Spec.AccessModes) ||
			len(pv.Spec.AccessModes) == len(best.Spec.AccessModes) && pv.Spec.Capacity.Storage().Cmp(*best.Spec.Capacity.Storage()) < 0 {
			best = pv
		}
	}
	return best
}

func TestWaitingOffers(t *testing.T) {
	w := newWaiting()
	for _, c := range []*v1.PersistentVolumeClaim{claim("s", "1Gi"), claim("m", "2Gi"), claim("l", "4Gi"), claim("wffc", "3Gi")} {
		r, _ := requestOf(c)
		w.add(keyOf(c), r, c.Name == "wffc")
	}
	for i, want := range []string{"ns/m", "ns/s", ""} {
		if got := w.offer(volume(fmt.Sprint(i), "3Gi")); got != want {
			t.Errorf("offer %d went to %q, want %q", i, got, want)
		}
	}
	if v, ok := w.settle("ns/m"); !ok || v != "0" {
		t.Errorf("offer to m was %q", v)
	}
	if got := w.offer(volume("x", "9Gi", volumeOfClass("other"))); got != "" {
		t.Errorf("a volume of another class went to %q", got)
	}
}

// A hold is exclusive, says who has it, and wakes those who came in vain.
func TestHold(t *testing.T) {
	s := newVolumes()
	s.now = func() time.Time { return time.Unix(7, 0) }
	s.put(volume("v", "1Gi"))
	freed, woken := 0, 0
	s.freed = func(*v1.PersistentVolume) { freed++ }
	_, release, err := s.hold("v", "claim ns/a", "binding", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = s.hold("v", "b", "sync", func() { woken++ })
	if b, ok := err.(*busy); !ok || b.holder != "claim ns/a" || b.step != "binding" || !b.since.Equal(time.Unix(7, 0)) {
		t.Fatalf("second hold: %v", err)
	}
	if s.isFree("v") {
		t.Error("free while held")
	}
	release()
	if woken != 1 || freed != 1 || !s.isFree("v") {
		t.Errorf("woken %d, freed %d", woken, freed)
	}
}

// An answer that comes in late never brings back an older state or a deleted object.
func TestNewestWins(t *testing.T) {
	at := func(version string, phase v1.PersistentVolumePhase) *v1.PersistentVolume {
		pv := volume("v", "1Gi", inPhase(phase))
		pv.ResourceVersion = version
		return pv
	}
	s := newVolumes()
	s.put(at("9", v1.VolumeAvailable))
	s.put(at("10", v1.VolumeBound))
	s.put(at("9", v1.VolumeAvailable))
	if got := s.get("v").Status.Phase; got != v1.VolumeBound {
		t.Errorf("phase %s", got)
	}
	s.remove(at("11", v1.VolumeBound))
	s.put(at("10", v1.VolumeBound))
	if s.get("v") != nil {
		t.Error("a deleted volume came back")
	}
}

func BenchmarkMatchAmong10000(b *testing.B) {
	s := newVolumes()
	for i := range 10000 {
		s.put(volume(fmt.Sprint(i), fmt.Sprintf("%dMi", 1+i%997)))
	}
	c := claim("c", "500Mi")
	for b.Loop() {
		_, release, err := s.match(c, false, nil)
		if err != nil {
			b.Fatal(err)
		}
		release()
	}
}
