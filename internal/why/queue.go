package why

import (
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"
)

// Queue are the objects that wait for the same driver, counted by what they wait for. This one is among them.
type Queue struct {
	Driver string `json:"driver"`
	Lanes  []Lane `json:"lanes"`
}

// Lane is one kind of work: "make", "attach" or "detach".
type Lane struct {
	Work   string    `json:"work"`
	Length int       `json:"length"`
	Oldest time.Time `json:"oldest"`
}

func (q *Queue) add(work string, since time.Time) {
	at := slices.IndexFunc(q.Lanes, func(l Lane) bool { return l.Work == work })
	if at < 0 {
		q.Lanes = append(q.Lanes, Lane{Work: work, Oldest: since})
		at = len(q.Lanes) - 1
	}
	l := &q.Lanes[at]
	if l.Length++; since.Before(l.Oldest) {
		l.Oldest = since
	}
}

// queueOf counts what waits beside the volume; nil when it is alone, or does not wait for its driver's controllers.
func queueOf(f *facts, vf *volumeFacts, w *Waiting) *Queue {
	q := &Queue{Driver: vf.driverOf()}
	switch {
	case q.Driver == "":
	case strings.Contains(w.For, "to attach the volume") || strings.Contains(w.For, "to be detached"):
		for i := range f.attachments {
			switch a := &f.attachments[i]; {
			case a.Spec.Attacher != q.Driver:
			case a.DeletionTimestamp != nil:
				q.add("detach", a.DeletionTimestamp.Time)
			case !a.Status.Attached:
				q.add("attach", a.CreationTimestamp.Time)
			}
		}
	case handed(vf):
		for i := range f.claims {
			if c := &f.claims[i]; c.Spec.VolumeName == "" && c.Annotations[storagehelpers.AnnStorageProvisioner] == q.Driver {
				q.add("make", handedAt(c))
			}
		}
	}
	total := 0
	for _, l := range q.Lanes {
		total += l.Length
	}
	if total < 2 {
		return nil
	}
	slices.SortFunc(q.Lanes, func(a, b Lane) int { return strings.Compare(a.Work, b.Work) })
	return q
}

// handed says that the claim's volume is to be made by a driver now.
func handed(vf *volumeFacts) bool {
	return open(vf) && vf.claim.DeletionTimestamp == nil && vf.claim.Annotations[storagehelpers.AnnStorageProvisioner] != ""
}

func handedAt(c *v1.PersistentVolumeClaim) time.Time {
	if w := annotated(c, storagehelpers.AnnStorageProvisioner); !w.at.IsZero() {
		return w.at
	}
	return c.CreationTimestamp.Time
}

// line tells it: "attach 3 (the oldest for 4.1 s), detach 498 (the oldest for 2m3s)".
func (q *Queue) line(now time.Time) string {
	lanes := make([]string, len(q.Lanes))
	for i, l := range q.Lanes {
		lanes[i] = fmt.Sprintf("%s %d (the oldest for %s)", l.Work, l.Length, span(ms(now.Sub(l.Oldest)), false))
	}
	return strings.Join(lanes, ", ") + " of " + q.Driver
}
