package migrate

import (
	"context"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/flexvolume/block"
)

// unused refuses a volume that somebody uses: a pod that names its claim and has not ended, a VolumeAttachment, or a node that reports
// it as attached or in use.
func (m *Migration) unused(ctx context.Context, pv *v1.PersistentVolume) error {
	pods, err := m.podsOf(ctx, pv.Spec.ClaimRef)
	if err != nil {
		return err
	}
	if len(pods) > 0 {
		return refuse(pv.Name, "it is used by pod %s of namespace %s: end them (scale the workload to 0), then run this again", strings.Join(pods, ", "), pv.Spec.ClaimRef.Namespace)
	}
	attachments, err := m.Client.StorageV1().VolumeAttachments().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("look for attachments of volume %s: %w", pv.Name, err)
	}
	for _, a := range attachments.Items {
		if n := a.Spec.Source.PersistentVolumeName; n != nil && *n == pv.Name {
			return refuse(pv.Name, "it is attached to node %s (VolumeAttachment %s): run this again when it is not", a.Spec.NodeName, a.Name)
		}
	}
	nodes, err := m.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("look for nodes that use volume %s: %w", pv.Name, err)
	}
	names := namesOnNode(pv)
	for _, n := range nodes.Items {
		for _, used := range n.Status.VolumesInUse {
			if slices.Contains(names, used) {
				return refuse(pv.Name, "node %s still has it mounted (status.volumesInUse): run this again when it has not", n.Name)
			}
		}
		for _, attached := range n.Status.VolumesAttached {
			if slices.Contains(names, attached.Name) {
				return refuse(pv.Name, "node %s still has it attached (status.volumesAttached): run this again when it has not", n.Name)
			}
		}
	}
	return nil
}

// podsOf names the pods that use the claim and have not ended. One that waits for a node counts: it may have one in the next moment.
func (m *Migration) podsOf(ctx context.Context, claim *v1.ObjectReference) (names []string, err error) {
	if claim == nil {
		return nil, nil
	}
	pods, err := m.Client.CoreV1().Pods(claim.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("look for pods that use claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	for _, p := range pods.Items {
		if p.Status.Phase != v1.PodSucceeded && p.Status.Phase != v1.PodFailed && usesClaim(&p, claim.Name) {
			names = append(names, p.Name)
		}
	}
	return names, nil
}

func usesClaim(p *v1.Pod, claim string) bool {
	return slices.ContainsFunc(p.Spec.Volumes, func(v v1.Volume) bool {
		return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claim ||
			v.Ephemeral != nil && p.Name+"-"+v.Name == claim
	})
}

// namesOnNode are the names under which nodes report a volume. A FlexVolume's is the PersistentVolume's at upstream's kubelet
// (pkg/volume/flexvolume/plugin-defaults.go, GetVolumeName), and what the driver answers elsewhere.
func namesOnNode(pv *v1.PersistentVolume) []v1.UniqueVolumeName {
	if c := pv.Spec.CSI; c != nil {
		return []v1.UniqueVolumeName{v1.UniqueVolumeName("kubernetes.io/csi/" + c.Driver + "^" + c.VolumeHandle)}
	}
	f := pv.Spec.FlexVolume
	var names []v1.UniqueVolumeName
	for _, plugin := range []string{f.Driver, "flexvolume-" + f.Driver} {
		for _, name := range []string{pv.Name, f.Options[block.OptionVolumeID]} {
			names = append(names, v1.UniqueVolumeName(plugin+"/"+name))
		}
	}
	return names
}
