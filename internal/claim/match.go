package claim

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/btree"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"
)

// bucket is what must be equal between a claim and a volume before anything else is compared.
type bucket struct {
	class string
	mode  v1.PersistentVolumeMode
	vac   string // VolumeAttributesClass; unset and empty are the same
}

func bucketOfVolume(pv *v1.PersistentVolume) bucket {
	return bucket{
		class: storagehelpers.GetPersistentVolumeClass(pv),
		mode:  ptr.Deref(pv.Spec.VolumeMode, v1.PersistentVolumeFilesystem),
		vac:   ptr.Deref(pv.Spec.VolumeAttributesClassName, ""),
	}
}

func bucketOfClaim(c *v1.PersistentVolumeClaim) bucket {
	return bucket{
		class: storagehelpers.GetPersistentVolumeClaimClass(c),
		mode:  ptr.Deref(c.Spec.VolumeMode, v1.PersistentVolumeFilesystem),
		vac:   ptr.Deref(c.Spec.VolumeAttributesClassName, ""),
	}
}

// request is what a claim asks of a volume.
type request struct {
	bucket   bucket
	size     resource.Quantity
	modes    []v1.PersistentVolumeAccessMode
	selector labels.Selector
}

func requestOf(c *v1.PersistentVolumeClaim) (request, error) {
	r := request{bucket: bucketOfClaim(c), size: *c.Spec.Resources.Requests.Storage(), modes: c.Spec.AccessModes}
	if c.Spec.Selector != nil {
		sel, err := metav1.LabelSelectorAsSelector(c.Spec.Selector)
		if err != nil {
			return r, fmt.Errorf("read the label selector of claim %q: %w", keyOf(c), err)
		}
		r.selector = sel
	}
	return r, nil
}

// fits says whether a volume whose claimRef names the claim can serve it. Class and labels are not asked for: who
// wrote the claimRef chose the volume in spite of them (upstream's FindMatchingVolume).
func fits(pv *v1.PersistentVolume, r request) bool {
	b := bucketOfVolume(pv)
	return pv.DeletionTimestamp == nil &&
		pv.Spec.Capacity.Storage().Cmp(r.size) >= 0 &&
		b.mode == r.bucket.mode && b.vac == r.bucket.vac &&
		containsModes(pv.Spec.AccessModes, r.modes)
}

// matchable says whether a volume can be found by any claim: only an Available one, since a volume in another phase
// is about to be changed by somebody and binding it would meet a conflict.
func matchable(pv *v1.PersistentVolume) bool {
	return pv.Spec.ClaimRef == nil && pv.DeletionTimestamp == nil && pv.Status.Phase == v1.VolumeAvailable
}

func containsModes(have, want []v1.PersistentVolumeAccessMode) bool {
	for _, m := range want {
		if !slices.Contains(have, m) {
			return false
		}
	}
	return true
}

// mismatch says in upstream's words why a claim that names pv cannot have it, "" when it can.
func mismatch(pv *v1.PersistentVolume, c *v1.PersistentVolumeClaim) string {
	have, want := bucketOfVolume(pv), bucketOfClaim(c)
	switch {
	case pv.DeletionTimestamp != nil:
		return fmt.Sprintf("the volume is marked for deletion %q", pv.Name)
	case pv.Spec.Capacity.Storage().Value() < c.Spec.Resources.Requests.Storage().Value():
		return "requested PV is too small"
	case have.class != want.class:
		return "storageClassName does not match"
	case have.vac != want.vac:
		return "volumeAttributesClassName does not match"
	case have.mode != want.mode:
		return "incompatible volumeMode"
	case !containsModes(pv.Spec.AccessModes, c.Spec.AccessModes):
		return "incompatible accessMode"
	}
	return ""
}

// freeIndex orders the volumes that wait for a claim: by bucket, by set of access modes (there are few), by capacity.
type freeIndex map[bucket]map[string]*shelf

// shelf holds the volumes of one bucket that have the same access modes.
type shelf struct {
	modes []v1.PersistentVolumeAccessMode
	tree  *btree.BTreeG[sized]
}

// sized is a volume (or, in waiting.go, a claim) by its size and name; the names break ties, so that choices repeat.
type sized struct {
	size resource.Quantity
	name string
	pv   *v1.PersistentVolume
}

func lessSized(a, b sized) bool {
	if d := a.size.Cmp(b.size); d != 0 {
		return d < 0
	}
	return a.name < b.name
}

// add takes pv in if it is matchable.
func (f freeIndex) add(pv *v1.PersistentVolume) bool {
	if !matchable(pv) {
		return false
	}
	b, m := bucketOfVolume(pv), modesKey(pv.Spec.AccessModes)
	if f[b] == nil {
		f[b] = map[string]*shelf{}
	}
	if f[b][m] == nil {
		f[b][m] = &shelf{modes: pv.Spec.AccessModes, tree: btree.NewG(16, lessSized)}
	}
	f[b][m].tree.ReplaceOrInsert(sized{size: *pv.Spec.Capacity.Storage(), name: pv.Name, pv: pv})
	return true
}

func (f freeIndex) remove(pv *v1.PersistentVolume) {
	b, m := bucketOfVolume(pv), modesKey(pv.Spec.AccessModes)
	s := f[b][m]
	if s == nil {
		return
	}
	s.tree.Delete(sized{size: *pv.Spec.Capacity.Storage(), name: pv.Name})
	if s.tree.Len() == 0 {
		delete(f[b], m)
		if len(f[b]) == 0 {
			delete(f, b)
		}
	}
}

// best returns the smallest volume that is large enough, from the volumes with the fewest access modes that have a
// fitting one. It costs a tree descent per set of access modes; only a label selector makes it walk.
func (f freeIndex) best(r request) *v1.PersistentVolume {
	var shelves []*shelf
	for _, s := range f[r.bucket] {
		if containsModes(s.modes, r.modes) {
			shelves = append(shelves, s)
		}
	}
	slices.SortFunc(shelves, func(a, b *shelf) int {
		if d := len(a.modes) - len(b.modes); d != 0 {
			return d
		}
		return strings.Compare(modesKey(a.modes), modesKey(b.modes))
	})
	for _, s := range shelves {
		var found *v1.PersistentVolume
		s.tree.AscendGreaterOrEqual(sized{size: r.size}, func(it sized) bool {
			if selects(r.selector, it.pv) {
				found = it.pv
			}
			return found == nil
		})
		if found != nil {
			return found
		}
	}
	return nil
}

// modesKey names a set of access modes, whatever their order.
func modesKey(modes []v1.PersistentVolumeAccessMode) string {
	names := make([]string, 0, len(modes))
	for _, m := range modes {
		names = append(names, string(m))
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ",")
}
