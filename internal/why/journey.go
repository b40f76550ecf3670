package why

import (
	"fmt"
	"strings"
	"time"

	"berth.io/berth/internal/trace"
)

// Target is what is asked about.
type Target struct {
	Kind      Kind   `json:"kind"`
	Namespace string `json:"namespace,omitempty"` // empty for a volume
	Name      string `json:"name"`
}

// Kind is the kind of a Target.
type Kind string

const (
	PVC Kind = "pvc"
	PV  Kind = "pv"
	Pod Kind = "pod"
	// Snapshot is a VolumeSnapshot, Group a VolumeGroupSnapshot, Schedule a SnapshotSchedule.
	Snapshot Kind = "volumesnapshot"
	Group    Kind = "volumegroupsnapshot"
	Schedule Kind = "snapshotschedule"
)

// plural is the name of the kind in the API.
func (k Kind) plural() string {
	switch k {
	case PVC:
		return "persistentvolumeclaims"
	case PV:
		return "persistentvolumes"
	}
	return string(k) + "s"
}

var kindNames = map[string]Kind{
	"pvc": PVC, "pvcs": PVC, "claim": PVC, "persistentvolumeclaim": PVC, "persistentvolumeclaims": PVC,
	"pv": PV, "pvs": PV, "volume": PV, "persistentvolume": PV, "persistentvolumes": PV,
	"pod": Pod, "pods": Pod, "po": Pod,
	"volumesnapshot": Snapshot, "volumesnapshots": Snapshot, "vs": Snapshot, "snapshot": Snapshot, "snapshots": Snapshot, "volumesnapshot.snapshot.storage.k8s.io": Snapshot,
	"volumegroupsnapshot": Group, "volumegroupsnapshots": Group, "vgs": Group, "volumegroupsnapshot.groupsnapshot.storage.k8s.io": Group,
	"snapshotschedule": Schedule, "snapshotschedules": Schedule, "snapsched": Schedule, "schedule": Schedule, "schedules": Schedule, "snapshotschedule.storage.berth.io": Schedule,
}

// Say is what can be asked about, for whoever asked about something else.
const Say = "pvc/NAME, pod/NAME, pv/NAME, volumesnapshot/NAME, volumegroupsnapshot/NAME or snapshotschedule/NAME"

// ParseTarget reads a kind and a name (Say), with the names that kubectl knows for the kinds. One without a kind is a claim.
func ParseTarget(namespace, arg string) (Target, error) {
	kind, name, found := strings.Cut(arg, "/")
	if !found {
		kind, name = "pvc", arg
	}
	k, known := kindNames[strings.ToLower(kind)]
	if !known || name == "" || strings.Contains(name, "/") {
		return Target{}, fmt.Errorf("%q: say "+Say, arg)
	}
	if k == PV {
		namespace = ""
	}
	return Target{Kind: k, Namespace: namespace, Name: name}, nil
}

func (t Target) String() string {
	if t.Namespace == "" {
		return string(t.Kind) + "/" + t.Name
	}
	return fmt.Sprintf("%s/%s in namespace %s", t.Kind, t.Name, t.Namespace)
}

// Journey is the answer of Explain.
type Journey struct {
	Target Target    `json:"target"`
	Asked  time.Time `json:"asked"`
	// Gone: the object is not there (any more); what follows is from the journal.
	Gone bool `json:"gone,omitempty"`
	// Pod is set when the question is about a pod, or one uses the volume.
	Pod     *PodState `json:"pod,omitempty"`
	Volumes []Volume  `json:"volumes,omitempty"`
	// Snapshot, Group or Schedule is set when the question is about one.
	Snapshot *SnapshotState `json:"snapshot,omitempty"`
	Group    *GroupState    `json:"groupSnapshot,omitempty"`
	Schedule *ScheduleState `json:"schedule,omitempty"`
	// Waiting and Problem are the pod's own (scheduling, containers), or the snapshot's, the group's, the schedule's; those of a pod's volumes
	// are with the volumes.
	Waiting *Waiting `json:"waiting,omitempty"`
	Problem *Problem `json:"problem,omitempty"`
	Notes   []string `json:"notes,omitempty"`
}

// PodState is the consumer of the volumes.
type PodState struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Phase     string `json:"phase"`
	Ready     bool   `json:"ready"`
	Node      string `json:"node,omitempty"`
	Deleting  bool   `json:"deleting,omitempty"`
}

// Volume is one volume and its way.
type Volume struct {
	// Name is pod.spec.volumes[].name, when a pod is known.
	Name  string      `json:"name,omitempty"`
	Claim *ClaimState `json:"claim,omitempty"`
	PV    *PVState    `json:"pv,omitempty"`
	// Source is the type of an inline volume ("secret", "hostPath"), which has no claim.
	Source string `json:"source,omitempty"`
	Class  string `json:"class,omitempty"`
	Driver string `json:"driver,omitempty"`
	Node   string `json:"node,omitempty"`
	// Attached says whether the volume is attached to the pod's node ("yes", "no", "detaching", "not needed", "elsewhere: NODE"),
	// Attachment is the VolumeAttachment. Disk is the pool, the path or the handle that has the data.
	Attached   string `json:"attached,omitempty"`
	Attachment string `json:"volumeAttachment,omitempty"`
	Disk       string `json:"disk,omitempty"`
	// Path is the directory or device on the host, where the pod tells it.
	Path string `json:"path,omitempty"`
	// Note is worth knowing and no problem: that the volume is larger than asked for.
	Note string `json:"note,omitempty"`
	// Unwell is what its driver says is wrong with it; empty when it is well, or nobody knows.
	Unwell []string `json:"unwell,omitempty"`
	// UsedBy names the other pods that use the claim.
	UsedBy []string `json:"usedBy,omitempty"`

	Steps   []Step   `json:"steps,omitempty"`
	Waiting *Waiting `json:"waiting,omitempty"`
	Problem *Problem `json:"problem,omitempty"`
	// Total is from the first step to the last one done, in milliseconds.
	Total float64 `json:"totalMs,omitempty"`
}

// ClaimState is the claim as the API shows it.
type ClaimState struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Phase     string `json:"phase,omitempty"`
	Requested string `json:"requested,omitempty"`
	Modes     string `json:"accessModes,omitempty"`
	Deleting  bool   `json:"deleting,omitempty"`
}

// PVState is the volume as the API shows it.
type PVState struct {
	Name     string `json:"name"`
	Phase    string `json:"phase,omitempty"`
	Capacity string `json:"capacity,omitempty"`
	Handle   string `json:"handle,omitempty"`
	Reclaim  string `json:"reclaimPolicy,omitempty"`
	Missing  bool   `json:"missing,omitempty"` // the claim names it, and it is not there
	Deleting bool   `json:"deleting,omitempty"`
}

// Step is one station that was reached, or is being worked on.
type Step struct {
	Step  trace.Step  `json:"step"`
	State trace.State `json:"state"`
	// Began is zero when nobody saw the beginning. Time is when the step got its State.
	Began time.Time `json:"began,omitzero"`
	Time  time.Time `json:"time,omitzero"`
	// Coarse: the time is from an API object, in whole seconds.
	Coarse bool `json:"coarse,omitempty"`
	// After is the time since the step before, Took the time within this one, Waited how long it could not go on;
	// milliseconds, 0 when not known.
	After  float64 `json:"afterMs,omitempty"`
	Took   float64 `json:"tookMs,omitempty"`
	Waited float64 `json:"waitedMs,omitempty"`
	Detail string  `json:"detail,omitempty"`
	// Failures counts the tries that failed, Error is the last of them.
	Failures int    `json:"failures,omitempty"`
	Error    string `json:"error,omitempty"`

	pod      bool      // Scheduled: of the pod, not of the claim
	lastFail time.Time // of Error
	waitFrom time.Time // first Waiting
	waitFor  string    // last Waiting's detail
	waitAt   time.Time // and its time
	// The reason that was waited for longest, of those that are over.
	longest    string
	longestFor time.Duration
}

// Waiting is what the volume (or the pod) waits for now.
type Waiting struct {
	For   string    `json:"for"`
	Since time.Time `json:"since,omitzero"`
	// Holder is who works on it or holds it now: a driver's call, a retry.
	Holder      string    `json:"holder,omitempty"`
	HolderSince time.Time `json:"holderSince,omitzero"`
	// Queue are the others that wait for the same work.
	Queue *Queue `json:"queue,omitempty"`
}

// Problem is the last error, in plain words.
type Problem struct {
	// Cause is a stable name of what is wrong ("unknown-class"), empty when it is not known.
	Cause string `json:"cause,omitempty"`
	// What is wrong in plain words, Advice what to do.
	What   string `json:"what"`
	Advice string `json:"advice,omitempty"`
	// Message is the error as it was told, by From (an event's reason, a condition, a step).
	Message string    `json:"message,omitempty"`
	From    string    `json:"from,omitempty"`
	Time    time.Time `json:"time,omitzero"`
	Count   int       `json:"count,omitempty"`
}
