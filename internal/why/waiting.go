package why

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	"berth.io/berth/internal/node/holder"
	"berth.io/berth/internal/trace"
)

// complaint is an error as somebody told it.
type complaint struct {
	message, from string
	time          time.Time
	count         int
	rank          int // of the step that failed
}

// tells is 0 for words that only say that it is not done yet, where others say why: the kubelet gives up waiting after two minutes
// and says so after each error of the step itself.
func (c *complaint) tells() int {
	if unmountedVolumes.MatchString(c.message) {
		return 0
	}
	return 1
}

// reasons says which step an event's reason is about.
var reasons = map[string]int{
	"FailedBinding": 2, "ProvisioningFailed": 4, "ClaimLost": 5, "ClaimMisbound": 5, "VolumeMismatch": 5, "ProvisioningCleanupFailed": 4,
	"FailedScheduling": 6, "FailedAttachVolume": 7, "FailedMount": 9, "FailedMapVolume": 9, "NoContainerRuntime": 10,
	"VolumeResizeFailed": 11, "FileSystemResizeFailed": 11, "VolumeModifyFailed": 12, "FailedMountOnFilesystemMismatch": 8, "FailedDetachVolume": 15, "VolumeFailedDelete": 17, "VolumeFailedRecycle": 17,
}

// volumeProblem names the last error of a volume that still stands.
func volumeProblem(f *facts, vf *volumeFacts, steps []Step) *Problem {
	told := latest(complaints(f, vf, steps))
	p := knownCause(f, vf)
	switch {
	case p == nil && told == nil:
		return nil
	case p == nil:
		p = problemOf(told)
	case told != nil:
		p.Message, p.From, p.Time, p.Count = told.message, told.from, told.time, told.count
	}
	if p.Cause == "class-parameter" && modificationWaits(vf) != nil {
		p.What = fmt.Sprintf("VolumeAttributesClass %s has a parameter that the driver does not take.", vf.claim.Status.ModifyVolumeStatus.TargetVolumeAttributesClassName)
		p.Advice = "Name another class in the claim's spec.volumeAttributesClassName, or delete the class and create it again. The volume works on as it is."
	}
	return p
}

// knownCause asks the table of causes.
func knownCause(f *facts, vf *volumeFacts) *Problem {
	if vf.source != nil {
		return nil
	}
	for _, c := range causes {
		if what, advice := c.find(f, vf); what != "" {
			return &Problem{Cause: c.name, What: what, Advice: advice}
		}
	}
	return nil
}

// problemOf puts a complaint into plain words, its own where the meaning is not known.
func problemOf(c *complaint) *Problem {
	p := inPlainWords(c.message)
	if p == nil {
		p = &Problem{What: c.message, Advice: "The step is tried again. See the log of the driver or component that told it."}
	}
	p.Message, p.From, p.Time, p.Count = c.message, c.from, c.time, c.count
	return p
}

func latest(list []complaint) *complaint {
	if len(list) == 0 {
		return nil
	}
	c := slices.MaxFunc(list, func(a, b complaint) int { return cmp.Or(a.tells()-b.tells(), a.time.Compare(b.time)) })
	return &c
}

// complaints collects the errors about a volume that no later success has settled.
func complaints(f *facts, vf *volumeFacts, steps []Step) []complaint {
	var list []complaint
	add := func(c complaint) {
		if _, _, growing := growth(vf); c.rank == order[trace.Expanded] && !growing || c.rank == order[trace.Modified] && modificationWaits(vf) == nil {
			return
		}
		if !settled(steps, c) && !(c.rank >= order[trace.Detached] && reusable(vf.pv)) {
			list = append(list, c)
		}
	}
	for i := range steps {
		if s := &steps[i]; s.State != trace.Done && s.Failures > 0 {
			add(complaint{message: s.Error, from: "step " + string(s.Step), time: s.lastFail, count: s.Failures, rank: s.rank()})
		}
	}
	for i := range vf.events {
		addEvent(add, &vf.events[i])
	}
	addConditions(add, vf)
	for i := range f.podEvents {
		if e := &f.podEvents[i]; aboutVolume(e, vf) {
			addEvent(add, e)
		}
	}
	for _, a := range f.attachmentsOf(vf.pvName) {
		if e := a.Status.AttachError; e != nil && !a.Status.Attached {
			add(complaint{message: e.Message, from: "VolumeAttachment " + a.Name, time: e.Time.Time, count: 1, rank: order[trace.Attached]})
		}
		if e := a.Status.DetachError; e != nil && a.DeletionTimestamp != nil {
			add(complaint{message: e.Message, from: "VolumeAttachment " + a.Name, time: e.Time.Time, count: 1, rank: order[trace.Detached]})
		}
	}
	if f.pod != nil && f.pod.Spec.NodeName == "" && vf.source == nil {
		if c := scheduling(f.pod); c != nil && !c.ofAClaim() {
			add(*c)
		}
	}
	return list
}

// ofAClaim says that the scheduler only repeats that a claim has no volume: why it has none is told elsewhere.
func (c *complaint) ofAClaim() bool {
	p := inPlainWords(c.message)
	return p != nil && p.Cause == unboundClaim
}

func addEvent(add func(complaint), e *v1.Event) {
	rank, known := reasons[e.Reason]
	if e.Type != v1.EventTypeWarning || !known {
		return
	}
	add(complaint{message: e.Message, from: "event " + e.Reason, time: eventTime(e), count: eventCount(e), rank: rank})
}

// aboutVolume says whether a pod's event is about this of its volumes. Most name the volume, by the PersistentVolume
// or by the pod's name for it.
func aboutVolume(e *v1.Event, vf *volumeFacts) bool {
	for _, name := range []string{vf.pvName, vf.name, vf.claimName} {
		if name != "" && (strings.Contains(e.Message, `"`+name+`"`) || strings.Contains(e.Message, "["+name+"]")) {
			return true
		}
	}
	unmounted := unmountedVolumes.FindStringSubmatch(e.Message)
	return unmounted != nil && vf.source == nil && slices.Contains(strings.Fields(unmounted[1]), vf.name)
}

// unmountedVolumes finds the pod's volumes that the kubelet waited for in vain, by their names in the pod
// (pkg/kubelet/volumemanager, WaitForAttachAndMount). It says of no volume what is wrong with it.
var unmountedVolumes = regexp.MustCompile(`unmounted volumes=\[([^\]]*)\]`)

// settled says whether the step that failed, or a later one, has succeeded since. Events have whole seconds.
func settled(steps []Step, c complaint) bool {
	for i := range steps {
		s := &steps[i]
		if s.State == trace.Done && s.rank() >= c.rank && s.rank() <= order[trace.Running] &&
			(s.Time.IsZero() || !s.Time.Before(c.time.Truncate(time.Second))) {
			return true
		}
	}
	return false
}

// reusable says that the volume is free for another claim, or is kept for a person to decide: what failed when it was to
// be detached, deleted or recycled is past.
func reusable(pv *v1.PersistentVolume) bool {
	return pv != nil && (pv.Status.Phase == v1.VolumeAvailable ||
		pv.Status.Phase != v1.VolumeBound && pv.Spec.PersistentVolumeReclaimPolicy == v1.PersistentVolumeReclaimRetain)
}

// scheduling is what the scheduler says about a pod that it has found no node for.
func scheduling(p *v1.Pod) *complaint {
	for i := range p.Status.Conditions {
		if c := &p.Status.Conditions[i]; c.Type == v1.PodScheduled && c.Status == v1.ConditionFalse && c.Message != "" {
			return &complaint{message: c.Message, from: "condition PodScheduled", time: c.LastTransitionTime.Time, count: 1, rank: 6}
		}
	}
	return nil
}

// volumeWaiting says what the volume waits for now; nil when it waits for nothing. The journal's words are the more
// exact, unless the objects show the cause: then they also show what would end it.
func volumeWaiting(f *facts, vf *volumeFacts, v *Volume, s *Sources) *Waiting {
	what := waitsFor(f, vf)
	w := &Waiting{For: what, Since: waitingSince(f, vf, v.Steps)}
	if what == "" {
		if w = growthWaits(f, vf); w == nil {
			w = modificationWaits(vf)
		}
		if w == nil {
			return nil
		}
	} else if step := openStep(v.Steps); step != nil {
		switch {
		case !step.waitFrom.IsZero():
			w.Since = step.waitFrom
		case !step.Began.IsZero():
			w.Since = step.Began
		}
		// The scheduler's refusal is not what is waited for; it is told as the reason.
		if step.State == trace.Waiting && step.waitFor != "" && step.Step != trace.Scheduled && knownCause(f, vf) == nil {
			w.For = strings.TrimPrefix(step.waitFor, "waiting for ")
		}
	}
	for i := range s.Holders {
		h := &s.Holders[i]
		if !holds(h, vf) {
			continue
		}
		if w.Holder = h.Step; !strings.Contains(h.Step, " ") { // a step's or call's name, no sentence
			w.Holder = fmt.Sprintf("driver %s, step %s", cmp.Or(h.Driver, vf.driverOf()), h.Step)
		}
		if w.HolderSince = h.Since; h.Pod != "" {
			w.Holder += ", for pod " + h.Pod
		}
	}
	if s.elsewhere() {
		w.heldByObjects(f, vf)
	}
	w.Queue = queueOf(f, vf, w)
	return w
}

// olderThanPod says that the journal's reason to wait is from before there was a pod, which may be what it was about.
func olderThanPod(t time.Time, p *v1.Pod) bool { return p != nil && t.Before(p.CreationTimestamp.Time) }

// openStep is the first step on the way that is not done: what comes after it waits for it.
func openStep(steps []Step) *Step {
	var first *Step
	for i := range steps {
		if s := &steps[i]; s.State != trace.Done && (first == nil || s.rank() < first.rank()) {
			first = s
		}
	}
	return first
}

// waitsFor reads off the objects which step comes next and who takes it.
func waitsFor(f *facts, vf *volumeFacts) string {
	claim, pod, driver := vf.claim, f.pod, vf.driverOf()
	switch {
	case vf.pv != nil && vf.pv.Status.Phase == v1.VolumeReleased && vf.pv.Spec.PersistentVolumeReclaimPolicy == v1.PersistentVolumeReclaimDelete:
		for _, a := range f.attachmentsOf(vf.pvName) {
			return "the volume to be detached from node " + a.Spec.NodeName + ", before it is deleted"
		}
		if vf.pv.Spec.CSI != nil {
			return "driver " + driver + " to delete the volume"
		}
		return "the volume to be deleted"
	case vf.pv != nil && claim == nil:
		return volumeEnds(f, vf)
	case claim == nil && f.unread("persistentvolumeclaims"):
		return ""
	case claim == nil:
		return fmt.Sprintf("claim %s/%s to be created", vf.namespace, vf.claimName)
	case claim.DeletionTimestamp != nil:
		if len(vf.users) > 0 {
			return "the pods that use the claim to go"
		}
		return "finalizers: " + strings.Join(claim.Finalizers, ", ")
	case claim.Status.Phase == v1.ClaimLost:
		return "volume " + vf.pvName + " to come back"
	case claim.Spec.VolumeName != "" && vf.pv == nil && !f.unread("persistentvolumes"):
		return "volume " + vf.pvName + " to be created"
	case claim.Status.Phase != v1.ClaimBound:
		return openClaimWaits(f, vf)
	case pod == nil:
		return ""
	case pod.Spec.NodeName == "":
		return "a node for pod " + pod.Name
	}
	if ready, _ := holder.Ready(pod); ready || finished(pod) {
		return ""
	}
	if pod.DeletionTimestamp != nil {
		return "the volume to be unmounted from pod " + pod.Name
	}
	if up, _ := volumesUp(f); up {
		return ""
	}
	if vf.pv == nil { // it may not be read
		return "the volume to be attached to and mounted on node " + pod.Spec.NodeName
	}
	if f.attaches(vf) && !f.unread("volumeattachments") && !slices.ContainsFunc(f.attachmentsOf(vf.pvName), attachedTo(pod.Spec.NodeName)) {
		return fmt.Sprintf("driver %s to attach the volume to node %s", driver, pod.Spec.NodeName)
	}
	return fmt.Sprintf("node %s to mount the volume with %s", pod.Spec.NodeName, driver)
}

// attaches says whether volumes of the driver are attached before they are mounted. In-tree volumes that a CSI driver serves
// (CSI migration) show it by their attachments alone.
func (f *facts) attaches(vf *volumeFacts) bool {
	if d := f.driver(vf.driverOf()); d != nil {
		return ptr.Deref(d.Spec.AttachRequired, true)
	}
	return vf.pv != nil && vf.pv.Spec.CSI != nil || len(f.attachmentsOf(vf.pvName)) > 0
}

// volumeEnds says what a volume waits for that is being deleted and whose claim is gone.
func volumeEnds(f *facts, vf *volumeFacts) string {
	if vf.pv.DeletionTimestamp == nil {
		return ""
	}
	for _, a := range f.attachmentsOf(vf.pvName) {
		return "the volume to be detached from node " + a.Spec.NodeName + ", before it is deleted"
	}
	if len(vf.pv.Finalizers) == 0 {
		return ""
	}
	return "finalizers: " + strings.Join(vf.pv.Finalizers, ", ")
}

func openClaimWaits(f *facts, vf *volumeFacts) string {
	selected := vf.claim.Annotations[storagehelpers.AnnSelectedNode]
	switch {
	case vf.class == nil && f.unread("storageclasses") && selected == "" && f.pod != nil && f.pod.Spec.NodeName == "":
		return "a volume, or a node for pod " + f.pod.Name
	case vf.class == nil && f.unread("storageclasses"):
		return "a volume" + strings.TrimSuffix(" of class "+vf.className, " of class ")
	case vf.class == nil && vf.className != "":
		return fmt.Sprintf("StorageClass %q to be created", vf.className)
	case vf.class == nil:
		return "a PersistentVolume that fits, or a default StorageClass"
	case late(vf.class) && f.pod == nil && selected == "":
		return "a pod that uses the claim"
	case late(vf.class) && selected == "":
		return "a node for pod " + f.pod.Name
	case vf.class.Provisioner == storagehelpers.NotSupportedProvisioner:
		return "a PersistentVolume of class " + vf.className + " that fits"
	}
	return "driver " + vf.class.Provisioner + " to make the volume"
}

// waitingSince is the end of the last step, or the beginning of it all.
func waitingSince(f *facts, vf *volumeFacts, steps []Step) time.Time {
	var since time.Time
	for i := range steps {
		if s := &steps[i]; s.State == trace.Done && s.Time.After(since) {
			since = s.Time
		}
	}
	if vf.claim != nil {
		if t := vf.claim.CreationTimestamp.Time; t.After(since) {
			since = t
		}
		if d := vf.claim.DeletionTimestamp; d != nil && d.After(since) {
			since = d.Time
		}
	}
	if f.pod != nil {
		if t := f.pod.CreationTimestamp.Time; t.After(since) {
			since = t
		}
	}
	return since
}

// holds says whether the operation under way is about this volume.
func holds(h *Holder, vf *volumeFacts) bool {
	names := []string{vf.pvName}
	if vf.claim != nil {
		names = append(names, "pvc-"+string(vf.claim.UID)) // the name that the provisioner asks for
	}
	if vf.pv != nil && vf.pv.Spec.CSI != nil {
		handle := vf.pv.Spec.CSI.VolumeHandle
		names = append(names, handle, "kubernetes.io/csi/"+vf.pv.Spec.CSI.Driver+"^"+handle)
	}
	return h.Volume != "" && slices.Contains(names, h.Volume)
}

// explainPod adds what is the pod's own: its place, its containers.
func (j *Journey) explainPod(f *facts) {
	p := f.pod
	if p.Spec.NodeName == "" && !finished(p) {
		j.Waiting = &Waiting{For: "a node", Since: p.CreationTimestamp.Time}
		switch c := scheduling(p); {
		case len(p.Spec.SchedulingGates) > 0:
			j.Waiting.For = "its scheduling gates to be opened"
		case c != nil && !(c.ofAClaim() && j.volumesTell()):
			j.Problem = problemOf(c)
			j.dropRepeated()
		}
		return
	}
	if j.Problem = runtimeNeeded(f); j.Problem != nil {
		return
	}
	for i := len(f.podEvents) - 1; i >= 0; i-- {
		if e := &f.podEvents[i]; e.Reason == "NoContainerRuntime" {
			j.Problem = problemOf(&complaint{message: e.Message, from: "event " + e.Reason, time: eventTime(e), count: eventCount(e)})
			return
		}
	}
	if ready, _ := holder.Ready(p); ready || finished(p) || p.DeletionTimestamp != nil {
		return
	}
	if j.volumesTell() {
		return
	}
	if e := lastEvent(f.podEvents, "FailedCreatePodSandBox"); e != nil && !started(p) {
		j.Waiting = &Waiting{For: "its sandbox, in which its containers run; its volumes are mounted", Since: eventFirst(e)}
		j.Problem = problemOf(&complaint{message: e.Message, from: "event " + e.Reason, time: eventTime(e), count: eventCount(e)})
		return
	}
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if w := c.State.Waiting; w != nil {
			j.Waiting = &Waiting{For: "container " + c.Name + ": " + strings.TrimSpace(w.Reason+" "+w.Message), Since: p.CreationTimestamp.Time}
			return
		}
	}
}

// volumesTell says that a volume's own part says what is missing.
func (j *Journey) volumesTell() bool {
	return slices.ContainsFunc(j.Volumes, func(v Volume) bool { return v.Waiting != nil || v.Problem != nil })
}

// dropRepeated takes the scheduler's words out of the volumes, where the pod itself tells them.
func (j *Journey) dropRepeated() {
	for i := range j.Volumes {
		switch p := j.Volumes[i].Problem; {
		case p == nil || p.Message != j.Problem.Message:
		case p.Cause == "volume-elsewhere" || p.Cause == "topology-nowhere": // of the objects, and so more exact
			*j.Problem = *p
			j.Volumes[i].Problem = nil
			return
		case p.Cause == j.Problem.Cause:
			j.Problem.What, j.Problem.Advice = p.What, p.Advice // what the objects show is more exact than words
			j.Volumes[i].Problem = nil
		default:
			p.Message, p.From, p.Time, p.Count = "", "", time.Time{}, 0
		}
	}
}

func attachedTo(node string) func(*storagev1.VolumeAttachment) bool {
	return func(a *storagev1.VolumeAttachment) bool { return a.Spec.NodeName == node && a.Status.Attached }
}

// started says that a container of the pod runs or has run.
func started(p *v1.Pod) bool {
	return slices.ContainsFunc(slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses), func(c v1.ContainerStatus) bool {
		return c.State.Running != nil || c.State.Terminated != nil || c.LastTerminationState.Terminated != nil
	})
}
