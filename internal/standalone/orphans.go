package standalone

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/driver"
	"berth.io/berth/internal/flexvolume/block"
	"berth.io/berth/internal/mount"
	"berth.io/berth/internal/plugin/csi"
)

// Orphan is something that belongs to nobody.
type Orphan struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Detail string `json:"detail"`
}

// orphans compares what is on the disk and in the kernel with what the API knows, each read live.
func (in *instance) orphans(ctx context.Context) ([]Orphan, error) {
	// The disk first: what is made while we look is in the API by the time that we ask.
	surveys, err := pool.Look(in.dir.Pools())
	if err != nil {
		return nil, err
	}
	volumes, err := in.client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	claims, err := in.client.CoreV1().PersistentVolumeClaims("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	pods, err := in.client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	found := []Orphan{}
	for _, s := range surveys {
		found = append(found, orphansOf(s, volumes.Items, claims.Items, pods.Items)...)
	}
	snapshots, err := in.snapshotOrphans(ctx, surveys)
	if err != nil {
		return nil, err
	}
	found = append(found, snapshots...)
	attachments, err := in.danglingAttachments(ctx, volumes.Items)
	if err != nil {
		return nil, err
	}
	found = append(found, attachments...)
	var known []types.UID
	for _, p := range pods.Items {
		known = append(known, p.UID)
	}
	mounts, err := mount.Orphans(string(in.dir), in.rooms.plugins, known)
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		found = append(found, Orphan{Kind: m.Kind, Name: m.Path, Detail: m.Detail})
	}
	return found, nil
}

// orphansOf names what is in a pool and in no PersistentVolume, of CSI or of FlexVolume. A volume named after a claim that exists is being made, and one
// named after an inline volume of a pod lives with the pod.
func orphansOf(s pool.Survey, volumes []corev1.PersistentVolume, claims []corev1.PersistentVolumeClaim, pods []corev1.Pod) []Orphan {
	wanted := map[string]bool{}
	for _, v := range volumes {
		if v.Spec.CSI != nil && v.Spec.CSI.Driver == blockDriver {
			wanted[v.Spec.CSI.VolumeHandle] = true
		}
		if v.Spec.FlexVolume != nil { // whatever the vendor calls the driver, an id of ours is ours
			wanted[v.Spec.FlexVolume.Options[block.OptionVolumeID]] = true
		}
	}
	making := map[string]bool{}
	for _, c := range claims {
		making["pvc-"+string(c.UID)] = true
	}
	for _, p := range pods {
		for _, v := range p.Spec.Volumes {
			if v.CSI != nil && v.CSI.Driver == blockDriver {
				making[driver.InlineName(csi.InlineHandle(&p, v.Name))] = true
			}
			if v.FlexVolume != nil {
				wanted[v.FlexVolume.Options[block.OptionVolumeID]] = true
			}
		}
	}
	var found []Orphan
	for _, v := range s.Volumes {
		if !wanted[v.ID] && !making[v.Name] {
			found = append(found, Orphan{Kind: "volume", Name: s.Name + "/" + v.ID, Detail: fmt.Sprintf("%s, no PersistentVolume names it", bytesText(v.SizeBytes))})
		}
	}
	for _, d := range s.Damaged {
		found = append(found, Orphan{Kind: "volume directory", Name: s.Name + "/" + d, Detail: "its description cannot be read"})
	}
	for _, d := range s.Unfinished {
		found = append(found, Orphan{Kind: "volume directory", Name: s.Name + "/" + d, Detail: "half made or half removed; the next start finishes it"})
	}
	for _, l := range s.Loops {
		found = append(found, Orphan{Kind: "loop device", Name: l, Detail: "its volume is gone"})
	}
	return found
}

// danglingAttachments name a volume that is not there.
func (in *instance) danglingAttachments(ctx context.Context, volumes []corev1.PersistentVolume) ([]Orphan, error) {
	list, err := in.client.StorageV1().VolumeAttachments().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	there := map[string]bool{}
	for _, v := range volumes {
		there[v.Name] = true
	}
	var found []Orphan
	for _, a := range list.Items {
		if name := a.Spec.Source.PersistentVolumeName; name != nil && !there[*name] && a.DeletionTimestamp == nil {
			found = append(found, Orphan{Kind: "attachment", Name: a.Name, Detail: "of " + strings.TrimSpace(*name) + ", which is gone"})
		}
	}
	return found, nil
}
