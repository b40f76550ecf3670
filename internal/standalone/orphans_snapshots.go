package standalone

import (
	"context"
	"fmt"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	snapclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/block/pool"
)

// snapshotOrphans compares the snapshots of the pools, as surveyed, with the objects that stand for them.
func (in *instance) snapshotOrphans(ctx context.Context, surveys []pool.Survey) ([]Orphan, error) {
	client, err := snapclient.NewForConfig(in.config)
	if err != nil {
		return nil, err
	}
	contents, err := client.SnapshotV1().VolumeSnapshotContents().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	groups, err := client.GroupsnapshotV1().VolumeGroupSnapshotContents().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var found []Orphan
	for _, s := range surveys {
		found = append(found, orphanSnapshots(s, contents.Items, groups.Items)...)
	}
	if len(contentsWithout(surveys, contents.Items)) == 0 {
		return found, nil
	}
	// A snapshot that was taken between the look at the pools and the answer of the API: looked at again, it is there.
	again, err := pool.Look(in.dir.Pools())
	if err != nil {
		return nil, err
	}
	return append(found, contentsWithout(again, contents.Items)...), nil
}

// orphanSnapshots names snapshots in a pool of which no VolumeSnapshotContent, nor that of their group, tells. One that is named
// after a content without a handle is being taken.
func orphanSnapshots(s pool.Survey, contents []snapv1.VolumeSnapshotContent, groups []groupv1.VolumeGroupSnapshotContent) []Orphan {
	wanted, making := map[string]bool{}, map[string]bool{}
	for i := range contents {
		c := &contents[i]
		if c.Spec.Driver != blockDriver {
			continue
		}
		wanted[handleOf(c)] = true
		making["snapshot-"+string(c.Spec.VolumeSnapshotRef.UID)] = true // the name that the driver is asked for
	}
	group, groupMaking := map[string]bool{}, false
	for i := range groups {
		c := &groups[i]
		if c.Spec.Driver != blockDriver {
			continue
		}
		switch {
		case c.Spec.Source.GroupSnapshotHandles != nil:
			group[c.Spec.Source.GroupSnapshotHandles.VolumeGroupSnapshotHandle] = true
			for _, handle := range c.Spec.Source.GroupSnapshotHandles.VolumeSnapshotHandles {
				wanted[handle] = true
			}
		case c.Status != nil && c.Status.VolumeGroupSnapshotHandle != nil:
			group[*c.Status.VolumeGroupSnapshotHandle] = true
		default:
			groupMaking = true
		}
	}
	var found []Orphan
	for _, x := range s.Snapshots {
		switch {
		case wanted[x.ID], making[x.Name]:
		case x.GroupID != "" && (group[x.GroupID] || groupMaking):
		default:
			detail := fmt.Sprintf("of volume %s, %s, no VolumeSnapshotContent names it", x.VolumeID, bytesText(x.ReservedBytes))
			if x.GroupID != "" {
				detail += ", nor the group snapshot " + x.GroupID
			}
			found = append(found, Orphan{Kind: "snapshot", Name: s.Name + "/" + x.ID, Detail: detail})
		}
	}
	return found
}

// contentsWithout names contents whose snapshot is in no pool: nothing can be restored from them.
func contentsWithout(surveys []pool.Survey, contents []snapv1.VolumeSnapshotContent) []Orphan {
	there := map[string]bool{}
	for _, s := range surveys {
		for _, x := range s.Snapshots {
			there[x.ID] = true
		}
	}
	var found []Orphan
	for i := range contents {
		c := &contents[i]
		if handle := handleOf(c); c.Spec.Driver == blockDriver && handle != "" && !there[handle] && c.DeletionTimestamp == nil {
			found = append(found, Orphan{Kind: "snapshot content", Name: c.Name,
				Detail: fmt.Sprintf("of %s/%s, its snapshot %s is in no pool", c.Spec.VolumeSnapshotRef.Namespace, c.Spec.VolumeSnapshotRef.Name, handle)})
		}
	}
	return found
}

// handleOf is the driver's name of a content's snapshot; empty while it is being taken.
func handleOf(c *snapv1.VolumeSnapshotContent) string {
	if h := c.Spec.Source.SnapshotHandle; h != nil {
		return *h
	}
	if c.Status != nil && c.Status.SnapshotHandle != nil {
		return *c.Status.SnapshotHandle
	}
	return ""
}
