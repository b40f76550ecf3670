package claim

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// 200 claims fall upon 100 volumes while volumes keep coming in: no volume gets two claims, no claim two volumes,
// nobody waits while a volume that fits is free.
func TestManyClaimsFewVolumes(t *testing.T) {
	a := newAPI(t)
	run(t, a)
	rnd := rand.New(rand.NewPCG(1, 2))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 100 {
			a.add(t, volume(fmt.Sprintf("v%03d", i), fmt.Sprintf("%dGi", 1+i%4)))
		}
	}()
	sizes := map[string]int{}
	for i := range 200 {
		name := fmt.Sprintf("c%03d", i)
		sizes[name] = 1 + rnd.IntN(4)
		a.add(t, claim(name, fmt.Sprintf("%dGi", sizes[name])))
	}
	<-done

	count := func() (bound int) {
		for i := range 200 {
			if c := a.claim(t, fmt.Sprintf("c%03d", i)); c.Status.Phase == v1.ClaimBound {
				bound++
			}
		}
		return bound
	}
	last := -1
	waitUntil(30*time.Second, func() bool { // settled
		time.Sleep(200 * time.Millisecond)
		n := count()
		same := n == last
		last = n
		return same
	})
	a.quiet()

	owner := map[string]string{}
	var free []*v1.PersistentVolume
	for i := range 100 {
		pv := a.volume(t, fmt.Sprintf("v%03d", i))
		if pv.Spec.ClaimRef == nil {
			free = append(free, pv)
			continue
		}
		c := a.claim(t, pv.Spec.ClaimRef.Name)
		if c == nil || c.Spec.VolumeName != pv.Name || c.Status.Phase != v1.ClaimBound || pv.Status.Phase != v1.VolumeBound {
			t.Errorf("volume %s refers to claim %+v", pv.Name, c)
			continue
		}
		if other, taken := owner[c.Name]; taken {
			t.Errorf("claim %s has volumes %s and %s", c.Name, other, pv.Name)
		}
		owner[c.Name] = pv.Name
	}
	for i := range 200 {
		name := fmt.Sprintf("c%03d", i)
		if c := a.claim(t, name); c.Status.Phase == v1.ClaimBound && owner[name] != c.Spec.VolumeName {
			t.Errorf("claim %s says it has %s, which says otherwise", name, c.Spec.VolumeName)
		} else if c.Status.Phase != v1.ClaimBound {
			for _, pv := range free {
				if pv.Spec.Capacity.Storage().Cmp(resource.MustParse(fmt.Sprintf("%dGi", sizes[name]))) >= 0 {
					t.Errorf("claim %s waits for %dGi while %s with %s is free", name, sizes[name], pv.Name, pv.Spec.Capacity.Storage())
					break
				}
			}
		}
	}
	t.Logf("%d of 100 volumes bound", len(owner))
}
