package why

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	snapclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"berth.io/berth/internal/node/holder"
	"berth.io/berth/internal/trace"
)

// Sources are what Explain may ask.
type Sources struct {
	Client kubernetes.Interface
	// Snapshots is asked about VolumeSnapshots and their groups, Schedules about the schedules of a namespace; nil where nobody asks about one.
	Snapshots snapclient.Interface
	Schedules func(namespace string) ScheduleReader
	// Entries of the journal, in the order in which they were recorded; may be empty.
	Entries []trace.Entry
	// Read, when set, is asked for the entries instead, with the names that matter: a full journal is read in a
	// tenth of the time. Usually trace.Read of a directory.
	Read func(trace.Filter) ([]trace.Entry, error)
	// Holders are the operations under way, as far as they are known (a running instance can be asked).
	Holders []Holder
	// Problem, when set, is asked what a storage's own objects in the API say of a CSI volume: empty when it is well or nobody knows.
	Problem func(driver, handle string) string
	// Unwell are the mounted volumes whose drivers say that they are not well; nil when nobody could be asked: then events tell.
	Unwell []Unwell
	// Program is how the question is asked in a cluster in which no instance of Berth can be asked: KubectlProgram. Then there is
	// no journal, the objects alone tell who holds a volume, and advice names no command of Berth's. Empty for an instance.
	Program string
	// Now is the time of the question; zero is the time now.
	Now time.Time
}

// Holder is an operation under way: what a driver or the node is doing with a volume, since when.
type Holder struct {
	// Volume is the PersistentVolume's name, its handle, or its unique name on the node.
	Volume string    `json:"volume,omitempty"`
	Driver string    `json:"driver,omitempty"`
	Step   string    `json:"step"` // "CreateVolume", "Staged"
	Pod    string    `json:"pod,omitempty"`
	Since  time.Time `json:"since"`
}

// Explain answers for t. It fails when t is not there and the journal does not know it either (ErrUnknown), or when
// the API cannot be asked.
func Explain(ctx context.Context, s Sources, t Target) (*Journey, error) {
	switch t.Kind {
	case Snapshot:
		return explainSnapshot(ctx, s, t)
	case Group:
		return explainGroup(ctx, s, t)
	case Schedule:
		return explainSchedule(ctx, s, t)
	}
	return explain(newReader(ctx, s.Client, false), s, t)
}

func explain(r *reader, s Sources, t Target) (*Journey, error) {
	if s.Now.IsZero() {
		s.Now = time.Now()
	}
	f, found, err := gather(r, t, &s)
	if err != nil {
		return nil, err
	}
	if s.Read != nil {
		if s.Entries, err = s.Read(trace.Filter{Naming: f.names(t)}); err != nil {
			return nil, err
		}
	}
	j := &Journey{Target: t, Asked: s.Now, Gone: !found}
	for _, kind := range f.unreadable {
		j.Notes = append(j.Notes, "you may not read "+kind+"; what follows leaves them out")
	}
	for i := range s.Entries {
		if e := &s.Entries[i]; e.Step == trace.Lost {
			j.Notes = append(j.Notes, fmt.Sprintf("steps may be missing: %s (%s)", e.Detail, e.Time.Format(time.DateTime)))
		}
	}
	if !found && r.whole {
		return j, nil
	}
	if !found {
		if kind := t.Kind.plural(); s.elsewhere() && f.unread(kind) {
			return nil, fmt.Errorf("you may not read %s%s: nothing can be told of %s", kind, strings.TrimSuffix(" in namespace "+t.Namespace, " in namespace "), t)
		}
		return j, j.remember(r.ctx, s, f)
	}
	if f.pod != nil {
		j.Pod = podState(f.pod)
	}
	for i := range f.volumes {
		j.Volumes = append(j.Volumes, explainVolume(f, &f.volumes[i], s))
	}
	if f.pod != nil && t.Kind == Pod {
		j.explainPod(f)
		if note := notRun(f); note != "" && !finished(f.pod) {
			j.Notes = append(j.Notes, note)
		}
	}
	j.retell(&s)
	return j, nil
}

// names are what entries about the target may name.
func (f *facts) names(t Target) []string {
	names := []string{t.Name}
	if f.pod != nil {
		names = append(names, string(f.pod.UID))
	}
	for i := range f.volumes {
		names = append(names, f.volumes[i].claimName, f.volumes[i].pvName)
	}
	return slices.DeleteFunc(names, func(n string) bool { return n == "" })
}

// ErrUnknown says that neither the API nor the journal knows the target.
type ErrUnknown struct {
	Target Target
	// Hint is what an event says about it, such as a quota that was exceeded.
	Hint string
	// Near are arguments that may have been meant; see the function of the name.
	Near []string

	noJournal bool
}

func (e *ErrUnknown) Error() string {
	switch {
	case e.Hint != "":
		return fmt.Sprintf("%s does not exist; %s", e.Target, e.Hint)
	case len(e.Near) > 0:
		return fmt.Sprintf("%s does not exist; did you mean %s?", e.Target, strings.Join(e.Near, " or "))
	case e.noJournal:
		return fmt.Sprintf("%s does not exist", e.Target)
	}
	return fmt.Sprintf("%s does not exist, and the journal knows nothing of it", e.Target)
}

// remember answers for an object that is gone, from the journal alone.
func (j *Journey) remember(ctx context.Context, s Sources, f *facts) error {
	t := j.Target
	var names []string // of the volumes that the journal knows for the target
	var entries []trace.Entry
	for i := range s.Entries {
		if e := &s.Entries[i]; t.names(e) {
			entries = append(entries, *e)
			if e.Volume != "" && !strings.Contains(e.Volume, "/") && !slices.Contains(names, e.Volume) {
				names = append(names, e.Volume)
			}
		}
	}
	if len(entries) == 0 {
		return &ErrUnknown{Target: t, Hint: hint(ctx, s.Client, t), Near: Near(ctx, s.Client, t), noJournal: s.elsewhere()}
	}
	if t.Kind == PVC { // the volume outlives the claim, by a little or by Retain
		if s.Read != nil {
			all, err := s.Read(trace.Filter{Naming: append(names, t.Name)})
			if err != nil {
				return err
			}
			s.Entries = all
		}
		entries = nil
		for i := range s.Entries {
			if e := &s.Entries[i]; t.names(e) || e.Volume != "" && slices.Contains(names, e.Volume) {
				entries = append(entries, *e)
			}
		}
	}
	sortEntries(entries)
	v := Volume{Steps: lastOfEach(fold(entries), nil)}
	inOrder(v.Steps)
	switch {
	case t.Kind == PVC:
		v.Claim = &ClaimState{Namespace: t.Namespace, Name: t.Name, Phase: "gone"}
	case t.Kind == PV:
		v.PV = &PVState{Name: t.Name, Phase: "gone"}
	}
	if v.PV == nil && len(names) > 0 {
		v.PV = &PVState{Name: names[len(names)-1]}
	}
	j.Volumes = []Volume{v}
	return nil
}

// names says whether the entry is about the target.
func (t Target) names(e *trace.Entry) bool {
	switch t.Kind {
	case PV:
		return e.Volume == t.Name
	case Pod:
		return e.Pod.Namespace == t.Namespace && e.Pod.Name == t.Name
	}
	return e.Claim.Namespace == t.Namespace && e.Claim.Name == t.Name
}

// hint looks for an event that tells why something was never made: the controllers report it on the owner.
func hint(ctx context.Context, client kubernetes.Interface, t Target) string {
	events, err := client.CoreV1().Events(t.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil || t.Namespace == "" {
		return ""
	}
	for i := range events.Items {
		e := &events.Items[i]
		if e.Type == v1.EventTypeWarning && strings.HasPrefix(e.Reason, "Failed") && tellsOf(e.Message, t.Name) {
			return fmt.Sprintf("%s %s: %s", strings.ToLower(e.InvolvedObject.Kind), e.InvolvedObject.Name, e.Message)
		}
	}
	if _, err := client.CoreV1().Namespaces().Get(ctx, t.Namespace, metav1.GetOptions{}); apierrors.IsNotFound(err) && t.Namespace != metav1.NamespaceDefault {
		return "there is no namespace " + t.Namespace
	}
	return setHint(ctx, client, t)
}

// tellsOf says whether the message names the object as a word of its own: "web" is not told of by "web-2".
func tellsOf(message, name string) bool {
	for rest := message; ; {
		at := strings.Index(rest, name)
		if at < 0 {
			return false
		}
		before, after := rest[:at], rest[at+len(name):]
		if !strings.ContainsAny(lastByte(before), nameBytes) && !strings.ContainsAny(firstByte(after), nameBytes) {
			return true
		}
		rest = after
	}
}

const nameBytes = "abcdefghijklmnopqrstuvwxyz0123456789-"

func firstByte(s string) string { return s[:min(1, len(s))] }
func lastByte(s string) string  { return s[max(0, len(s)-1):] }

// entriesOf picks the entries of one volume's journey: those that name its claim (of the same UID), its volume, or,
// without naming a volume, its pod. What another pod did with the volume is left out.
func entriesOf(all []trace.Entry, f *facts, vf *volumeFacts) []trace.Entry {
	var picked []trace.Entry
	for i := range all {
		e := &all[i]
		if f.pod != nil && e.Pod.UID != "" && e.Pod.UID != f.pod.UID {
			continue
		}
		if f.pod != nil && f.pod.Spec.NodeName == "" && onNode(e.Step) {
			continue // of a pod that has the volume now, or had it: this one is on no node
		}
		if vf.claim != nil && e.Claim.UID == "" && e.Time.Before(vf.claim.CreationTimestamp.Time) {
			continue // names alone, and older than the claim: an earlier claim or pod of the name
		}
		aboutPV := vf.pvName != "" && e.Volume == vf.pvName
		aboutClaim := vf.claimName != "" && e.Claim.Name == vf.claimName && e.Claim.Namespace == vf.namespace &&
			(e.Claim.UID == "" || vf.claim == nil || e.Claim.UID == vf.claim.UID)
		aboutInline := vf.source != nil && f.pod != nil && e.Pod.UID == f.pod.UID && vf.isInline(e.Volume, f.pod)
		aboutPod := f.pod != nil && e.Claim.Name == "" && e.Volume == "" && e.Pod.UID == f.pod.UID &&
			(e.Step == trace.Scheduled || e.Step == trace.Running)
		if aboutPV || aboutClaim || aboutInline || aboutPod {
			picked = append(picked, *e)
		}
	}
	sortEntries(picked)
	return picked
}

func sortEntries(entries []trace.Entry) {
	slices.SortStableFunc(entries, func(a, b trace.Entry) int { return a.Time.Compare(b.Time) })
}

func podState(p *v1.Pod) *PodState {
	ready, _ := holder.Ready(p)
	return &PodState{Namespace: p.Namespace, Name: p.Name, Phase: string(p.Status.Phase), Ready: ready, Node: p.Spec.NodeName, Deleting: p.DeletionTimestamp != nil}
}

func explainVolume(f *facts, vf *volumeFacts, s Sources) Volume {
	v := Volume{Name: vf.name, Class: vf.className, Driver: vf.driverOf()}
	if f.pod != nil {
		v.Node = f.pod.Spec.NodeName
		v.Path = hostPath(f.pod, vf.name)
	}
	if vf.source != nil {
		explainInline(f, vf, s, &v)
		return v
	}
	if vf.claimName != "" {
		v.Claim = claimState(vf)
	}
	if vf.pvName != "" {
		v.PV = pvState(f, vf)
	}
	for i := range vf.users {
		if p := &vf.users[i]; (f.pod == nil || p.UID != f.pod.UID) && !finished(p) {
			v.UsedBy = append(v.UsedBy, p.Name)
		}
	}
	v.Note = rounded(vf)
	tellPlace(f, vf, &v)
	v.Steps = timeline(f, vf, entriesOf(s.Entries, f, vf))
	v.Total = total(v.Steps)
	v.Problem = volumeProblem(f, vf, v.Steps)
	v.Waiting = volumeWaiting(f, vf, &v, &s)
	tellHealth(f, vf, s, &v)
	return v
}

func claimState(vf *volumeFacts) *ClaimState {
	s := &ClaimState{Namespace: vf.namespace, Name: vf.claimName, Phase: "missing"}
	if vf.pv != nil && (vf.pv.Status.Phase == v1.VolumeReleased || vf.pv.Status.Phase == v1.VolumeFailed) {
		s.Phase = "gone"
	}
	if c := vf.claim; c != nil {
		s.Phase, s.Requested, s.Deleting = string(c.Status.Phase), c.Spec.Resources.Requests.Storage().String(), c.DeletionTimestamp != nil
		s.Modes = modes(c.Spec.AccessModes)
	}
	return s
}

func modes(list []v1.PersistentVolumeAccessMode) string {
	names := make([]string, len(list))
	for i, m := range list {
		names[i] = string(m)
	}
	return strings.Join(names, ",")
}

func pvState(f *facts, vf *volumeFacts) *PVState {
	s := &PVState{Name: vf.pvName, Missing: vf.pv == nil && !f.unread("persistentvolumes")}
	if pv := vf.pv; pv != nil {
		s.Phase, s.Capacity = string(pv.Status.Phase), pv.Spec.Capacity.Storage().String()
		s.Reclaim, s.Deleting = string(pv.Spec.PersistentVolumeReclaimPolicy), pv.DeletionTimestamp != nil
		if pv.Spec.CSI != nil {
			s.Handle = pv.Spec.CSI.VolumeHandle
		}
	}
	return s
}
