package mount

import (
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/plugin"
	"berth.io/berth/internal/trace"
)

// presence is what is known of a stage, a publish or an attach by this node.
type presence int

const (
	// absent: nothing is there.
	absent presence = iota
	// uncertain: a step towards it began and its outcome is not known, or it was found on the disk. It counts as there
	// until it has been undone.
	uncertain
	// present: the step succeeded.
	present
)

// volume is one volume on this node, by its unique name, with what is desired (its uses) and what is there.
type volume struct {
	name   v1.UniqueVolumeName
	plugin plugin.Mounter
	// lane groups the volumes that share a driver, whose operations are capped together.
	lane string
	// specName is the PV's name, or the directory's for other volumes.
	specName string
	claim    trace.ObjectRef
	// latest is the volume as it was last resolved; nil when it was only found on the disk.
	latest *plugin.Volume
	mode   v1.PersistentVolumeMode

	attachable bool
	// attach is used only where the node attaches by itself.
	attach        presence
	attachPending string
	devicePath    string

	stages     bool
	stage      presence
	globalPath string
	// expandedTo is the size in bytes to which the volume was expanded here: the claim in the cache may show less for a while.
	expandedTo int64

	uses map[types.UID]*use

	// back delays the next try of a step of the volume as a whole; a step for one pod has its own.
	back backoff
	err  error
	// running: a goroutine drives the volume.
	running bool
	op      *Holder
	timer   *time.Timer
}

// use is one volume in one pod.
type use struct {
	volume *volume
	pod    types.UID
	ref    trace.ObjectRef
	// order in which pods came: the first one wins a ReadWriteOncePod volume.
	order int
	// specName is the name of the directory in the pod's directory.
	specName string
	mode     v1.PersistentVolumeMode
	// resolved is nil for a use that was only found on the disk.
	resolved *plugin.Volume

	// desired: the pod wants it. held: found on the disk, and the pod has volumes that can't be resolved yet, of which
	// this may be one.
	desired, held bool
	state         presence
	path          string
	// kept: a teardown leaves it to its pod, which lives on (plugin.Keeper).
	kept bool
	// refresh: a source has changed, publish again.
	refresh bool
	// settling: published for the first time, and an expansion comes before the pod may see it.
	settling bool

	// inspected is what the driver said last of its usage and health.
	inspected plugin.Inspection
	// unwellSince is when the driver said first that the volume is not well; it counts while inspected has problems.
	unwellSince time.Time

	wait  string
	err   error
	since time.Time
	back  backoff
}

// ordered lists the uses in the order of their pods.
func (v *volume) ordered() []*use {
	out := make([]*use, 0, len(v.uses))
	for _, u := range v.uses {
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b *use) int { return a.order - b.order })
	return out
}

// wanted: some pod wants it here.
func (v *volume) wanted() bool {
	for _, u := range v.uses {
		if u.desired || u.held {
			return true
		}
	}
	return false
}

// there: something of it is, or may be, on this node.
func (v *volume) there() bool {
	if v.stage != absent {
		return true
	}
	for _, u := range v.uses {
		if u.state != absent {
			return true
		}
	}
	return false
}

// inUse: it belongs into node.status.volumesInUse, so that nobody detaches it.
func (v *volume) inUse() bool {
	return v.attachable && (v.wanted() || v.there())
}

// backoff counts failures of one step. Upstream's goroutinemap: 500 ms, doubled up to 2 min 2 s.
type backoff struct {
	failures int
	until    time.Time
}

const (
	firstBackoff = 500 * time.Millisecond
	maxBackoff   = 2*time.Minute + 2*time.Second
)

func (b *backoff) fail(now time.Time) {
	delay := maxBackoff
	if b.failures < 8 {
		delay = min(firstBackoff<<b.failures, maxBackoff)
	}
	b.failures++
	b.until = now.Add(delay)
}

func (b *backoff) reset() { *b = backoff{} }

// wake lets the next try begin at once and keeps the count: an input changed, which may help or not.
func (b *backoff) wake() { b.until = time.Time{} }

func (b *backoff) waits(now time.Time) bool { return now.Before(b.until) }
