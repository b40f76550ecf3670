package schedule

import (
	"fmt"
	"math/rand/v2"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"
)

// TestMatchAgainstUpstream: the index finds what upstream's scan over all volumes finds, in random worlds.
func TestMatchAgainstUpstream(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		node := testNode("n1")
		claim := testClaim("c", pick(r, "a", "b"), fmt.Sprintf("%dGi", 1+r.IntN(4)))
		if r.IntN(4) == 0 {
			claim.Spec.VolumeMode = ptr.To(v1.PersistentVolumeBlock)
		}
		var volumes []*v1.PersistentVolume
		c := world(node, claim)
		for i := range r.IntN(30) {
			pv := testVolume(fmt.Sprintf("pv%d", i), pick(r, "a", "b"), fmt.Sprintf("%dGi", 1+r.IntN(8)))
			switch r.IntN(8) {
			case 0:
				onHost(pick(r, "n1", "n2"))(pv)
			case 1:
				pv.Spec.VolumeMode = ptr.To(v1.PersistentVolumeBlock)
			case 2:
				pv.Status.Phase = v1.VolumeReleased
			case 3:
				pv.Spec.AccessModes = []v1.PersistentVolumeAccessMode{v1.ReadOnlyMany}
			case 4:
				refTo(pick(r, "other", "other", "other", "c"))(pv)
			}
			volumes = append(volumes, pv)
			c.setVolume(pv)
		}
		var ofClass []*v1.PersistentVolume // upstream looks at one class at a time
		for _, pv := range volumes {
			if pv.Spec.StorageClassName == *claim.Spec.StorageClassName {
				ofClass = append(ofClass, pv)
			}
		}
		if refs := c.claimed["ns/c"]; len(refs) > 1 {
			continue // which of several volumes reserved for the claim is taken is left open
		}
		want, err := storagehelpers.FindMatchingVolume(claim, ofClass, node, nil, true, true)
		if err != nil {
			t.Fatal(err)
		}
		got := c.match(claim, node, map[string]bool{})
		if (got == nil) != (want == nil) || got != nil && got.Spec.Capacity.Storage().Cmp(*want.Spec.Capacity.Storage()) != 0 {
			t.Errorf("seed %d: %v, upstream %v", seed, nameOf(got), nameOf(want))
		}
	}
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func nameOf(pv *v1.PersistentVolume) string {
	if pv == nil {
		return "none"
	}
	return pv.Name
}

// TestIndexesHold: after any sequence of events and decisions the indexes say what a count from nothing says.
func TestIndexesHold(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 2))
		c := world(testNode("n1"), testNode("n2"), testClass("a", late, "kubernetes.io/no-provisioner"), testClass("b", late, "d.csi"))
		decisions := map[types.UID]*decision{}
		version := 1
		for range 300 {
			version++
			stamp := fmt.Sprint(version)
			name := fmt.Sprint(r.IntN(6))
			switch r.IntN(9) {
			case 0, 1:
				pv := testVolume("pv"+name, pick(r, "a", "b"), fmt.Sprintf("%dGi", 1+r.IntN(3)))
				pv.ResourceVersion = stamp
				if r.IntN(3) == 0 {
					refTo("c" + name)(pv)
				}
				c.setVolume(pv)
			case 2:
				c.removeVolume("pv" + name)
			case 3, 4:
				claim := testClaim("c"+name, pick(r, "a", "b"), "1Gi")
				claim.ResourceVersion = stamp
				c.setClaim(claim)
			case 5:
				c.removeClaim("ns/c" + name)
			case 6, 7:
				pod := testPod("p"+name, "c"+name, "c"+fmt.Sprint(r.IntN(6)))
				pod.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceCPU: resource.MustParse("100m")}
				if decisions[pod.UID] != nil {
					continue
				}
				d, no := decide(c, pod)
				if no != nil {
					continue
				}
				volumes, claims, err := c.assume(pod, d)
				if err != nil {
					t.Fatal(err)
				}
				decisions[pod.UID] = d
				for _, pv := range volumes {
					if r.IntN(2) == 0 {
						answer := pv.DeepCopy()
						answer.ResourceVersion = stamp
						c.confirmVolume(answer, pod.UID)
					}
				}
				for _, claim := range claims {
					if r.IntN(2) == 0 {
						answer := claim.DeepCopy()
						answer.ResourceVersion = stamp
						c.confirmClaim(answer, pod.UID)
					}
				}
			case 8:
				uid := types.UID("p" + name)
				if d := decisions[uid]; d != nil {
					for i := range d.prebinds {
						c.unassumeVolume(d.prebinds[i].volume.Name, uid)
					}
					for _, claim := range d.provisions {
						c.unassumeClaim(claimKey(claim), uid)
					}
					c.unplace(uid)
					delete(decisions, uid)
				}
			}
			checkIndexes(t, c, seed)
			if t.Failed() {
				return
			}
		}
	}
}

func checkIndexes(t *testing.T, c *cluster, seed uint64) {
	t.Helper()
	names := map[string]bool{}
	for name := range c.volumes {
		names[name] = true
	}
	for name := range c.assumedVolumes {
		names[name] = true
	}
	free, claimed := 0, 0
	for name := range names {
		switch pv := c.volume(name); {
		case pv.Spec.ClaimRef == nil:
			free++
			if tree := c.free[pv.Spec.StorageClassName]; tree == nil || !tree.Has(pv) {
				t.Errorf("seed %d: %s is free and not in the index", seed, name)
			}
		default:
			claimed++
			if c.claimed[claimRefKey(pv.Spec.ClaimRef)][name] != pv {
				t.Errorf("seed %d: %s is claimed and not in the index", seed, name)
			}
		}
	}
	for _, tree := range c.free {
		free -= tree.Len()
	}
	for _, m := range c.claimed {
		claimed -= len(m)
	}
	if free != 0 || claimed != 0 {
		t.Errorf("seed %d: the indexes hold volumes that are not there: %d free, %d claimed", seed, -free, -claimed)
	}
	for name, n := range c.nodes {
		used := resources{}
		for _, p := range n.pods {
			used.add(requestsOf(p.pod))
		}
		if used[v1.ResourceCPU] != n.used[v1.ResourceCPU] {
			t.Errorf("seed %d: node %s counts %d, its pods ask for %d", seed, name, n.used[v1.ResourceCPU], used[v1.ResourceCPU])
		}
	}
	for key, uids := range c.claimUse {
		for uid := range uids {
			if c.placed[uid] == nil {
				t.Errorf("seed %d: %s is used by %s, which is nowhere", seed, key, uid)
			}
		}
	}
}
