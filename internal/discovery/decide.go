package discovery

import (
	"errors"
	"fmt"

	v1 "k8s.io/api/core/v1"
)

// step is what a pass does about one disk.
type step int

const (
	leave  step = iota
	refuse      // say why it is not offered
	offer       // mark it and make a volume
	adopt       // take over a volume of the original's: mark the disk, note it in the volume
	clean       // wipe it, then take the volume away
	report      // the volume is there and its disk is not right: say so
	lost        // the volume's disk is not there
)

// decideNew is about a disk that no volume names. elsewhere is a volume that was made for this very disk at another path or on
// another node, if there is one; reaches says that its node affinity lets pods of this node have it.
func decideNew(e *entry, cluster string, elsewhere *v1.PersistentVolume, reaches bool) (step, error) {
	switch {
	case e.problem != nil:
		return refuse, e.problem
	case e.cluster != "" && e.cluster != cluster:
		return refuse, fmt.Errorf("it carries the mark of another cluster (%s): its data may be in use there; if that is past, remove the mark: setfattr -x %s %s", e.cluster, markAttribute, e.path)
	case elsewhere != nil && reaches && elsewhere.Spec.Local.Path == e.path:
		return leave, nil // a shared disk, of which another node made the volume
	case elsewhere != nil:
		return refuse, fmt.Errorf("PersistentVolume %s was made for this disk, at %s of node %s: put the disk back there, or delete that volume", elsewhere.Name, elsewhere.Spec.Local.Path, firstOf(Hostnames(elsewhere)))
	case e.data != "" && e.device:
		return refuse, fmt.Errorf("there is data on it (%s) and no volume that says whose: if it is not needed, wipe it (wipefs --all %s)", e.data, e.path)
	case e.data != "":
		return refuse, fmt.Errorf("there is data in it (%s) and no volume that says whose: if it is not needed, remove it", e.data)
	case e.capacity <= 0:
		return refuse, errors.New("it has no capacity")
	}
	return offer, nil
}

// decideKnown is about a disk at whose path a volume is that was made here.
func decideKnown(e *entry, cluster string, pv *v1.PersistentVolume) (step, error) {
	disk := pv.Annotations[annDisk]
	switch {
	case pv.DeletionTimestamp != nil:
		return leave, nil
	case e.absent:
		return lost, e.problem
	case pv.Spec.StorageClassName != e.class:
		return report, fmt.Errorf("it was offered in class %s and the configuration has its directory for class %s: delete the volume when it is released", pv.Spec.StorageClassName, e.class)
	case modeOf(pv) == v1.PersistentVolumeBlock && !e.device:
		return report, fmt.Errorf("incorrect Volume Mode: the volume wants a block device and %s is a directory", e.path)
	case e.problem != nil:
		return report, e.problem
	case e.cluster != "" && e.cluster != cluster:
		return report, fmt.Errorf("the disk at %s carries the mark of another cluster (%s); it is left alone", e.path, e.cluster)
	case disk == "":
		return adopt, nil
	case e.disk == "":
		return report, fmt.Errorf("the disk at %s has no mark: it is not the disk that was offered (%s), or was formatted anew; it is left alone", e.path, disk)
	case e.disk != disk:
		return report, fmt.Errorf("the disk at %s (%s) is not the one that was offered (%s); it is left alone", e.path, e.disk, disk)
	case pv.Status.Phase == v1.VolumeReleased && pv.Spec.PersistentVolumeReclaimPolicy == v1.PersistentVolumeReclaimDelete:
		return clean, nil
	}
	return leave, nil
}

func firstOf(names []string) string {
	if len(names) == 0 {
		return "(none)"
	}
	return names[0]
}
