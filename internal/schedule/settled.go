package schedule

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

// settled says whether everything that the decision asked for has happened, so that the pod can be bound to the node.
// While it has not, waitsFor names the claims; an error means that the decision no longer holds and the pod must be
// decided again. Follows upstream's volumebinding checkBindings. It looks at the watch's objects: what is only assumed
// has not happened.
func settled(c *cluster, d *decision) (waitsFor []string, err error) {
	node := c.nodes[d.node]
	if node == nil || node.object == nil {
		return nil, fmt.Errorf("node %q is gone", d.node)
	}
	for i := range d.prebinds {
		key := claimKey(d.prebinds[i].claim)
		bound, err := c.prebindSettled(&d.prebinds[i], node.object)
		if err != nil {
			return nil, err
		}
		if !bound {
			waitsFor = append(waitsFor, key)
		}
	}
	for _, asked := range d.provisions {
		bound, err := c.provisionSettled(asked, node.object)
		if err != nil {
			return nil, err
		}
		if !bound {
			waitsFor = append(waitsFor, claimKey(asked))
		}
	}
	return waitsFor, nil
}

func (c *cluster) prebindSettled(b *prebind, node *v1.Node) (bool, error) {
	claim, err := c.same(b.claim)
	if err != nil {
		return false, err
	}
	if c.assumedVolumes[b.volume.Name] != nil {
		return false, nil
	}
	pv := c.volumes[b.volume.Name]
	switch {
	case pv == nil:
		return false, fmt.Errorf("pv %q is gone", b.volume.Name)
	case storagehelpers.CheckNodeAffinity(pv, node.Labels) != nil:
		return false, fmt.Errorf("pv %q node affinity doesn't match node %q", pv.Name, node.Name)
	case pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID == "":
		return false, fmt.Errorf("ClaimRef got reset for pv %q", pv.Name)
	}
	return fullyBound(claim), nil
}

func (c *cluster) provisionSettled(asked *v1.PersistentVolumeClaim, node *v1.Node) (bool, error) {
	claim, err := c.same(asked)
	if err != nil {
		return false, err
	}
	if c.assumedClaims[claimKey(asked)] != nil {
		return false, nil
	}
	// The provisioner takes the annotation away to say that it could not make the volume for this node.
	if claim.Annotations[storagehelpers.AnnSelectedNode] != node.Name {
		return false, fmt.Errorf("provisioning failed for PVC %q", claim.Name)
	}
	if claim.Spec.VolumeName == "" {
		return false, nil
	}
	pv := c.volumes[claim.Spec.VolumeName]
	if pv == nil {
		return false, nil // its event has not come yet
	}
	if storagehelpers.CheckNodeAffinity(pv, node.Labels) != nil {
		return false, fmt.Errorf("pv %q node affinity doesn't match node %q", pv.Name, node.Name)
	}
	return fullyBound(claim), nil
}

// same returns the watch's copy of the claim that was decided on.
func (c *cluster) same(decided *v1.PersistentVolumeClaim) (*v1.PersistentVolumeClaim, error) {
	claim := c.claims[claimKey(decided)]
	if claim == nil || claim.UID != decided.UID {
		return nil, fmt.Errorf("persistentvolumeclaim %q is gone", decided.Name)
	}
	return claim, nil
}

// quoted lists names for a message.
func quoted(names []string) string {
	q := make([]string, len(names))
	for i, n := range names {
		q[i] = fmt.Sprintf("%q", n)
	}
	return strings.Join(q, ", ")
}
