package discovery

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	volumehelpers "k8s.io/component-helpers/storage/volume"
)

// scan is one pass.
type scan struct {
	*Discovery
	node    *v1.Node
	entries []*entry
	byPath  map[string]*v1.PersistentVolume // local volumes of this node
	byDisk  map[string]*v1.PersistentVolume // those of any node that say for which disk they are
	at      map[string]*entry               // by disk: the entry that stands for it
	whole   bool                            // nothing went wrong: what the node's taint waits for
	live    map[string]bool                 // disks that are served
	counts  map[string]int                  // by state, for the metric
}

// pass looks at every disk and makes one step for each.
func (d *Discovery) pass(ctx context.Context) {
	node, known := d.who(ctx)
	if !known {
		return
	}
	s := &scan{Discovery: d, node: node, byPath: map[string]*v1.PersistentVolume{}, byDisk: map[string]*v1.PersistentVolume{},
		at: map[string]*entry{}, whole: true, live: map[string]bool{}, counts: map[string]int{}}
	if err := s.readVolumes(); err != nil {
		d.log.Warn("discovery waits", "error", err)
		d.wakeIn(retryAfter)
		return
	}
	s.readDirectories()
	s.onePerDisk()
	for _, e := range s.entries {
		s.step(ctx, e)
	}
	s.lostVolumes(ctx)
	if s.whole {
		s.takeTaintAway(ctx)
	}
	d.locks.keep(s.live)
	s.publish()
	s.forget()
}

func (s *scan) readVolumes() error {
	all, err := s.volumes.List(labels.Everything())
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b *v1.PersistentVolume) int { return strings.Compare(a.Name, b.Name) })
	for _, pv := range all {
		if pv.Spec.Local == nil {
			continue
		}
		if disk := pv.Annotations[annDisk]; disk != "" {
			s.byDisk[disk] = pv
		}
		here := slices.Contains(Hostnames(pv), s.node.Labels[v1.LabelHostname])
		if here && madeHere(pv, s.node) {
			s.live[pv.Annotations[annDisk]] = true // its lock is kept, also while the disk has a problem or is being wiped
		}
		if other := s.byPath[pv.Spec.Local.Path]; here && (other == nil || !madeHere(other, s.node)) {
			s.byPath[pv.Spec.Local.Path] = pv
		}
	}
	return nil
}

// readDirectories lists what is in the discovery directories. One that can't be read is reported, and the others are served.
func (s *scan) readDirectories() {
	for _, name := range slices.Sorted(maps.Keys(s.config.Classes)) {
		class := s.config.Classes[name]
		found, err := entriesIn(name, class, s.opts.InContainer)
		if err != nil {
			s.whole = false
			s.tellNode("class "+name, v1.EventTypeWarning, "DiscoveryDirectory", fmt.Sprintf("class %s: %v: make it, or take the class out of the configuration", name, err))
			continue
		}
		if len(found) == 0 { // a hostPath that a slip has made, perhaps
			s.tellNode("class "+name, v1.EventTypeNormal, "DiscoveryDirectory", fmt.Sprintf("class %s: hostDir %s has nothing that matches its namePattern %s: no disk is offered", name, class.HostDir, class.NamePattern))
		}
		for _, e := range found {
			pv := s.byPath[e.path]
			s.look(e, func(e *entry) { e.inspect(class, pv == nil) })
			s.entries = append(s.entries, e)
		}
	}
}

// onePerDisk refuses what is there twice: an entry that two classes match, and a disk that is seen at two paths. That which has
// a volume stays.
func (s *scan) onePerDisk() {
	byPath := map[string]*entry{}
	for _, e := range s.entries {
		if s.holdsDirectory(e.path) {
			e.problem = errors.Join(e.problem, errors.New("a discovery directory is in it"))
		}
		other := byPath[e.path]
		if other == nil {
			byPath[e.path] = e
		} else if pv := s.byPath[e.path]; pv == nil || (pv.Spec.StorageClassName != e.class && pv.Spec.StorageClassName != other.class) {
			err := fmt.Errorf("classes %s and %s both match it: part them by namePattern", other.class, e.class)
			e.problem, other.problem = err, err
		} else if pv.Spec.StorageClassName == e.class {
			other.file, byPath[e.path] = "", e
		} else {
			e.file = ""
		}
	}
	s.entries = slices.DeleteFunc(s.entries, func(e *entry) bool { return e.file == "" })
	known := func(e *entry) bool { return s.byPath[e.path] != nil }
	for _, first := range []bool{true, false} { // those with a volume first
		for _, e := range s.entries {
			if e.disk == "" || e.absent || known(e) != first {
				continue
			}
			if other := s.at[e.disk]; other != nil && other.path != e.path {
				e.problem = sameDisk(other)
				continue
			}
			s.at[e.disk] = e
		}
	}
}

func sameDisk(other *entry) error {
	return fmt.Errorf("it is the same disk as %s, which is served", other.path)
}

func (s *scan) holdsDirectory(path string) bool {
	for _, class := range s.config.Classes {
		if class.HostDir == path || strings.HasPrefix(class.HostDir, path+"/") {
			return true
		}
	}
	return false
}

// class returns the StorageClass of an entry, if volumes can be made for it.
func (s *scan) class(name string) (*storagev1.StorageClass, error) {
	sc, err := s.classes.Get(name)
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("StorageClass %s does not exist: make it (provisioner: kubernetes.io/no-provisioner, volumeBindingMode: WaitForFirstConsumer)", name)
	case err != nil:
		return nil, err
	}
	if p := reclaimPolicy(sc); p != v1.PersistentVolumeReclaimDelete && p != v1.PersistentVolumeReclaimRetain {
		return nil, fmt.Errorf("StorageClass %s has reclaimPolicy %s: want Delete or Retain", name, p)
	}
	return sc, nil
}

// step makes the step for one disk.
func (s *scan) step(ctx context.Context, e *entry) {
	began := s.now()
	pv := s.byPath[e.path]
	if pv != nil && !madeHere(pv, s.node) {
		s.refused(e, fmt.Errorf("PersistentVolume %s names this path and was not made by a discovery of this node: it is somebody's own", pv.Name))
		return
	}
	if e.disk != "" && !e.absent && e.problem == nil {
		s.live[e.disk] = true
		if err := s.locks.take(e.disk); err != nil {
			e.problem = err
		}
	}
	if pv == nil {
		elsewhere := s.byDisk[e.disk]
		if e.disk == "" {
			elsewhere = nil
		}
		reaches := elsewhere != nil && volumehelpers.CheckNodeAffinity(elsewhere, s.node.Labels) == nil
		what, err := decideNew(e, s.cluster, elsewhere, reaches)
		switch {
		case what == offer:
			s.offer(ctx, e, began)
		case what == refuse && elsewhere != nil && s.strayed(ctx, elsewhere):
		case what == refuse:
			s.refused(e, err)
		}
		return
	}
	what, err := decideKnown(e, s.cluster, pv)
	switch what {
	case leave:
		s.count("offered", pv)
		s.found(ctx, pv)
	case adopt:
		s.adopt(ctx, e, pv)
	case clean:
		s.count("cleaning", pv)
		s.found(ctx, pv)
		s.clean(ctx, e, pv)
	case report:
		s.whole = false
		s.count("wrong", pv)
		s.tell(pv.Name, pv, v1.EventTypeWarning, "DiscoveryFailed", err.Error())
	case lost:
		s.lose(ctx, pv, err)
	}
}

// strayed takes away the volume of a disk that has come to this node from one that is no more, when nobody has it. A node that
// is there does that itself.
func (s *scan) strayed(ctx context.Context, pv *v1.PersistentVolume) bool {
	if pv.Status.Phase != v1.VolumeAvailable || pv.DeletionTimestamp != nil {
		return false
	}
	asking, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	for _, name := range Hostnames(pv) { // asked anew: the informer may know this node alone
		nodes, err := s.opts.Client.CoreV1().Nodes().List(asking, metav1.ListOptions{LabelSelector: v1.LabelHostname + "=" + name, Limit: 1})
		if err != nil || len(nodes.Items) > 0 {
			return false
		}
	}
	s.log.Info("the volume of a disk that came from a node that is no more is taken away", "volume", pv.Name)
	return s.deleteVolume(ctx, pv, true) == nil
}

func (s *scan) refused(e *entry, err error) {
	s.whole = false
	s.counts["refused"]++
	s.tellNode("entry "+e.class+" "+e.path, v1.EventTypeWarning, "DiskRefused", fmt.Sprintf("%s is not offered in class %s: %v", e.path, e.class, err))
}

func (s *scan) count(state string, pv *v1.PersistentVolume) {
	s.counts[state]++
	capacity := pv.Spec.Capacity[v1.ResourceStorage]
	s.counts[string(modeOf(pv))+" bytes"] += int(capacity.Value())
}

// offer marks a disk and makes its volume.
func (s *scan) offer(ctx context.Context, e *entry, began time.Time) {
	class := s.config.Classes[e.class]
	sc, err := s.class(e.class)
	if err == nil && e.device {
		err = s.beingCleaned(volumeName(e.file, s.node.Name, e.class))
	} else if err == nil {
		err = s.markDirectory(e)
	}
	// The mark may have come between the look and now: through another path to the same directory.
	if other := s.at[e.disk]; err == nil && other != nil && other.path != e.path {
		err = sameDisk(other)
	}
	if err == nil {
		s.at[e.disk] = e
		err = s.locks.take(e.disk)
	}
	if err != nil {
		s.refused(e, err)
		return
	}
	s.live[e.disk] = true
	pv := newVolume(e, class, sc, s.node, s.config)
	switch err := s.createVolume(ctx, pv); {
	case apierrors.IsAlreadyExists(err):
		// The informer lags, or an older volume is about to go: either wakes the loop. A hash of 32 bits may also meet that of another
		// disk.
		if other, _ := s.volumes.Get(pv.Name); other != nil && other.Spec.Local != nil && other.Spec.Local.Path != e.path {
			s.refused(e, fmt.Errorf("its volume would be called %s, which is the name of %s's: rename the entry", pv.Name, other.Spec.Local.Path))
		}
	case err != nil:
		s.refused(e, err)
		s.wakeIn(retryAfter)
	default:
		s.count("offered", pv)
		s.metrics.discovered(modeOf(pv), s.now().Sub(began))
		s.log.Info("a disk is offered", "volume", pv.Name, "path", e.path, "disk", e.disk, "class", e.class, "bytes", e.capacity)
	}
}

// markDirectory gives a directory its mark, unless it has it.
func (s *scan) markDirectory(e *entry) error {
	if e.disk != "" {
		return nil
	}
	root, err := openRoot(e.look)
	if err != nil {
		return err
	}
	defer root.Close()
	m, marked, err := readMark(root)
	if err == nil && !marked {
		if m, err = newMark(root, s.cluster, s.node.Name); err == nil {
			err = m.write(root)
		}
	}
	e.disk, e.cluster = m.ID, m.Cluster
	return err
}

// adopt takes over a volume that the original made: from now on it is for this disk, and no other.
func (s *scan) adopt(ctx context.Context, e *entry, pv *v1.PersistentVolume) {
	s.count("offered", pv)
	err := errors.New("its device has no identity")
	if e.device && e.disk != "" {
		err = nil
	} else if !e.device {
		err = s.markDirectory(e)
	}
	if other := s.byDisk[e.disk]; err == nil && other != nil && other.Name != pv.Name {
		err = fmt.Errorf("PersistentVolume %s is for the same disk", other.Name)
	}
	if err == nil {
		err = s.noteDisk(ctx, pv, e.disk)
	}
	if err != nil {
		s.whole = false
		s.tell(pv.Name, pv, v1.EventTypeWarning, "DiscoveryFailed", fmt.Sprintf("the volume can't be taken over: %v", err))
		return
	}
	s.tell(pv.Name, pv, v1.EventTypeNormal, "DiskAdopted", fmt.Sprintf("taken over from %s; it is for disk %s", pv.Annotations[AnnProvisionedBy], e.disk))
}
