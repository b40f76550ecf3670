package discovery

import (
	"context"
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// reasonGone stands in the status of a volume whose disk is not there.
const reasonGone = "DiskGone"

// releasedFor is how long a released volume outlives its disk. A disk that comes back in this time is wiped and offered again; after
// that it comes back as one with data and no volume.
const releasedFor = 10 * time.Minute

// lostVolumes looks after the volumes of this node that no entry stands for.
func (s *scan) lostVolumes(ctx context.Context) {
	all, err := s.volumes.List(labels.Everything())
	if err != nil {
		return
	}
	seen := map[string]bool{}
	for _, e := range s.entries {
		seen[e.path] = true
	}
	for _, pv := range all {
		if pv.Spec.Local == nil || seen[pv.Spec.Local.Path] || !madeHere(pv, s.node) || pv.DeletionTimestamp != nil {
			continue
		}
		class, configured := s.config.Classes[pv.Spec.StorageClassName]
		if !configured {
			s.tell(pv.Name, pv, v1.EventTypeWarning, "DiscoveryFailed", fmt.Sprintf("class %s is not in the discovery's configuration any more: the disk is not wiped when the volume is released", pv.Spec.StorageClassName))
			continue
		}
		e, inside := s.entryOf(pv, class)
		if !inside {
			s.tell(pv.Name, pv, v1.EventTypeWarning, "DiscoveryFailed", fmt.Sprintf("%s is not in %s, where the configuration has the disks of class %s", pv.Spec.Local.Path, class.HostDir, pv.Spec.StorageClassName))
			continue
		}
		s.look(e, func(e *entry) { e.inspect(class, false) })
		if e.absent {
			s.lose(ctx, pv, e.problem)
		} else {
			s.counts["unselected"]++ // namePattern leaves it out: it is served as long as it is in use
		}
	}
}

// lose is about a volume whose disk is not there. It is reported; one that nobody has ever had is taken away.
func (s *scan) lose(ctx context.Context, pv *v1.PersistentVolume, why error) {
	s.counts["gone"]++
	since, known := s.lostAt[pv.Name]
	if !known {
		since = s.now()
		s.lostAt[pv.Name] = since
	}
	text := fmt.Sprintf("the disk of this volume is not at %s (%v)", pv.Spec.Local.Path, why)
	if at := s.at[pv.Annotations[annDisk]]; pv.Annotations[annDisk] != "" && at != nil {
		text = fmt.Sprintf("the disk of this volume is at %s now: put it back to %s", at.path, pv.Spec.Local.Path)
	}
	deletes := pv.Spec.PersistentVolumeReclaimPolicy == v1.PersistentVolumeReclaimDelete
	released := pv.Status.Phase == v1.VolumeReleased && deletes
	if left := releasedFor - s.now().Sub(since); released && left > 0 && !known {
		s.wakeIn(left)
	}
	switch {
	case pv.Status.Phase == v1.VolumeAvailable && deletes, released && s.now().Sub(since) >= releasedFor:
		s.tell(pv.Name, pv, v1.EventTypeWarning, reasonGone, text+": nobody has the volume, it is taken away")
		if err := s.deleteVolume(ctx, pv, true); err != nil {
			s.log.Warn("the volume of a disk that is gone", "volume", pv.Name, "error", err)
			return
		}
		s.log.Info("the volume of a disk that is gone was taken away", "volume", pv.Name, "path", pv.Spec.Local.Path)
		delete(s.lostAt, pv.Name)
	default:
		s.tell(pv.Name, pv, v1.EventTypeWarning, reasonGone, text)
		if pv.Status.Reason != reasonGone || pv.Status.Message != text {
			s.writeStatus(ctx, pv, reasonGone, text)
		}
	}
}

// found takes back what was said when the disk was gone.
func (s *scan) found(ctx context.Context, pv *v1.PersistentVolume) {
	delete(s.lostAt, pv.Name)
	if pv.Status.Reason == reasonGone {
		s.tell(pv.Name+" back", pv, v1.EventTypeNormal, "DiskBack", "the disk of this volume is back")
		s.writeStatus(ctx, pv, "", "")
	}
}

// entryOf is where a volume's disk is looked for, from its own path.
func (s *scan) entryOf(pv *v1.PersistentVolume, class Class) (*entry, bool) {
	file, inside := inDirectory(class.HostDir, pv.Spec.Local.Path)
	if !inside {
		return nil, false
	}
	e := &entry{class: pv.Spec.StorageClassName, file: file, path: pv.Spec.Local.Path, look: pv.Spec.Local.Path}
	if s.opts.InContainer {
		e.look = class.MountDir + "/" + file
	}
	return e, true
}

// forget drops what is remembered of subjects that are no more.
func (s *scan) forget() {
	for subject := range s.told {
		if !s.said[subject] && subject != "config" {
			delete(s.told, subject)
		}
	}
	clear(s.said)
	all, err := s.volumes.List(labels.Everything())
	if err != nil {
		return
	}
	for name := range s.lostAt {
		if !slices.ContainsFunc(all, func(pv *v1.PersistentVolume) bool { return pv.Name == name }) {
			delete(s.lostAt, name)
		}
	}
}
