package discovery

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The original's names.
const (
	AnnProvisionedBy = "pv.kubernetes.io/provisioned-by"
	ProvisionerName  = "local-volume-provisioner"
)

// annDisk is the identity of the disk that a volume was made for. Only that disk is wiped for it.
const annDisk = "storage.berth.io/disk"

// volumeName is the original's: who switches finds the volumes again (its pkg/discovery, generatePVName).
func volumeName(file, node, class string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(file + node + class))
	return fmt.Sprintf("local-pv-%x", h.Sum32())
}

// provisionedBy is what the original writes into its volumes.
func provisionedBy(node *v1.Node, nameOnly bool) string {
	if nameOnly {
		return ProvisionerName + "-" + node.Name
	}
	return ProvisionerName + "-" + node.Name + "-" + string(node.UID)
}

// madeHere says whether a discovery of this node made the volume: this one or the original, also before the node was
// registered anew or useNodeNameOnly was changed.
func madeHere(pv *v1.PersistentVolume, node *v1.Node) bool {
	by := pv.Annotations[AnnProvisionedBy]
	name := provisionedBy(node, true)
	return pv.Spec.Local != nil && (by == name || strings.HasPrefix(by, name+"-")) && slices.Contains(Hostnames(pv), node.Labels[v1.LabelHostname])
}

// Hostnames are the nodes that the volume's affinity names by their host name label.
func Hostnames(pv *v1.PersistentVolume) (names []string) {
	if pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
		return nil
	}
	for _, term := range pv.Spec.NodeAffinity.Required.NodeSelectorTerms {
		for _, e := range term.MatchExpressions {
			if e.Key == v1.LabelHostname && e.Operator == v1.NodeSelectorOpIn {
				names = append(names, e.Values...)
			}
		}
	}
	return names
}

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// roundDown makes a capacity easy to read, as the original does: whole GiB from 10 GiB on, whole MiB from 10 MiB on.
func roundDown(bytes int64) int64 {
	for _, unit := range []int64{gib, mib} {
		if n := bytes / unit; n >= 10 {
			return n * unit
		}
	}
	return bytes
}

// newVolume is the volume of a disk, as the original makes it.
func newVolume(e *entry, class Class, sc *storagev1.StorageClass, node *v1.Node, c *Config) *v1.PersistentVolume {
	mode := class.Mode
	pv := &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:        volumeName(e.file, node.Name, e.class),
			Labels:      map[string]string{},
			Annotations: map[string]string{AnnProvisionedBy: provisionedBy(node, c.UseNodeNameOnly), annDisk: e.disk},
		},
		Spec: v1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: reclaimPolicy(sc),
			Capacity:                      v1.ResourceList{v1.ResourceStorage: *resource.NewQuantity(roundDown(e.capacity), resource.BinarySI)},
			PersistentVolumeSource:        v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: e.path}},
			AccessModes:                   []v1.PersistentVolumeAccessMode{class.AccessMode},
			StorageClassName:              e.class,
			VolumeMode:                    &mode,
			MountOptions:                  sc.MountOptions,
			NodeAffinity: &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: append([]v1.NodeSelectorTerm{{
				MatchExpressions: []v1.NodeSelectorRequirement{{Key: v1.LabelHostname, Operator: v1.NodeSelectorOpIn, Values: []string{node.Labels[v1.LabelHostname]}}},
			}}, class.Selector...)}},
		},
	}
	if class.FSType != "" && mode == v1.PersistentVolumeFilesystem {
		pv.Spec.Local.FSType = &class.FSType
	}
	for _, name := range c.NodeLabels {
		if value, has := node.Labels[name]; has {
			pv.Labels[name] = value
		}
	}
	for name, value := range c.Labels {
		pv.Labels[name] = value
	}
	if c.SetOwner {
		pv.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}}
	}
	return pv
}

func reclaimPolicy(sc *storagev1.StorageClass) v1.PersistentVolumeReclaimPolicy {
	if sc.ReclaimPolicy != nil {
		return *sc.ReclaimPolicy
	}
	return v1.PersistentVolumeReclaimDelete
}

func modeOf(pv *v1.PersistentVolume) v1.PersistentVolumeMode {
	if pv.Spec.VolumeMode != nil {
		return *pv.Spec.VolumeMode
	}
	return v1.PersistentVolumeFilesystem
}
