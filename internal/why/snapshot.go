package why

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/trace"
)

// SnapshotState is a VolumeSnapshot as the API shows it.
type SnapshotState struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// State is "ready", "being taken", "waiting" or "being deleted".
	State string `json:"state"`
	// Claim that it is of; empty for one that was brought in with its content.
	Claim   string `json:"claim,omitempty"`
	Group   string `json:"group,omitempty"`
	Class   string `json:"class,omitempty"`
	Driver  string `json:"driver,omitempty"`
	Content string `json:"content,omitempty"`
	Handle  string `json:"handle,omitempty"`
	Policy  string `json:"deletionPolicy,omitempty"`
	// Size is what a volume that is made from it has at least.
	Size  string    `json:"restoreSize,omitempty"`
	Taken time.Time `json:"taken,omitzero"`
	// UsedBy names the claims that are made from it and have no volume yet.
	UsedBy []string `json:"usedBy,omitempty"`
	Steps  []Step   `json:"steps,omitempty"`
}

// Steps of a snapshot beside trace.Snapshotted, which is when its data is of.
const (
	stepAsked trace.Step = "Asked"
	stepReady trace.Step = "Ready"
)

// snapshotFacts are the objects around a snapshot; those that are not there are nil.
type snapshotFacts struct {
	snapshot *snapv1.VolumeSnapshot
	content  *snapv1.VolumeSnapshotContent
	classes  []snapv1.VolumeSnapshotClass
	claim    *v1.PersistentVolumeClaim
	pv       *v1.PersistentVolume
	drivers  []string // registered on some node
	unread   []string // kinds that the user may not read
	users    []string
	events   []v1.Event
}

// explainSnapshot answers for a VolumeSnapshot.
func explainSnapshot(ctx context.Context, s Sources, t Target) (*Journey, error) {
	if s.Snapshots == nil {
		return nil, fmt.Errorf("%s: snapshots cannot be asked for here", t)
	}
	if s.Now.IsZero() {
		s.Now = time.Now()
	}
	snapshot, err := s.Snapshots.SnapshotV1().VolumeSnapshots(t.Namespace).Get(ctx, t.Name, metav1.GetOptions{})
	if err != nil {
		return nil, s.notRead(ctx, t, err, "VolumeSnapshots (their CRDs, group snapshot.storage.k8s.io, are not installed)", func() []types.NamespacedName {
			list, err := s.Snapshots.SnapshotV1().VolumeSnapshots("").List(ctx, metav1.ListOptions{})
			if err != nil {
				return nil
			}
			return namesOf(list.Items)
		})
	}
	c := collector{reader: newReader(ctx, s.Client, false), facts: &facts{}}
	f, err := c.snapshot(s, snapshot)
	if err != nil {
		return nil, err
	}
	j := &Journey{Target: t, Asked: s.Now, Snapshot: f.state()}
	j.leftOut(c.unreadable)
	for _, why := range snapshotCauses {
		if waits, problem := why(f); waits != "" {
			j.Waiting, j.Problem = &Waiting{For: waits, Since: f.since()}, problem
			break
		}
	}
	j.Problem = f.told(j.Problem, j.Waiting != nil)
	j.retell(&s)
	return j, nil
}

// leftOut says what the user may not read.
func (j *Journey) leftOut(unreadable []string) {
	for _, kind := range unreadable {
		j.Notes = append(j.Notes, "you may not read "+kind+"; what follows leaves them out")
	}
}

// notRead is the answer about an object that the API did not give. there lists those that there are.
func (s *Sources) notRead(ctx context.Context, t Target, err error, crds string, there func() []types.NamespacedName) error {
	switch {
	case apierrors.IsNotFound(err) && strings.Contains(err.Error(), "the server could not find the requested resource"):
		return fmt.Errorf("%s: this cluster has no %s", t, crds)
	case apierrors.IsNotFound(err):
		return &ErrUnknown{Target: t, Hint: hint(ctx, s.Client, t), Near: nearOf(t, there()), noJournal: s.elsewhere()}
	case apierrors.IsForbidden(err) && s.elsewhere():
		return fmt.Errorf("you may not read %s in namespace %s: nothing can be told of %s", t.Kind.plural(), t.Namespace, t)
	}
	return fmt.Errorf("read %s: %w", t.Kind.plural(), err)
}

// namesOf are the names of listed objects.
func namesOf[T any, P interface {
	*T
	metav1.Object
}](items []T) []types.NamespacedName {
	names := make([]types.NamespacedName, len(items))
	for i := range items {
		o := P(&items[i])
		names[i] = types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
	}
	return names
}

func (c *collector) snapshot(s Sources, snapshot *snapv1.VolumeSnapshot) (*snapshotFacts, error) {
	f := &snapshotFacts{snapshot: snapshot}
	api := s.Snapshots.SnapshotV1()
	if name := f.contentName(); name != "" {
		content, err := api.VolumeSnapshotContents().Get(c.ctx, name, metav1.GetOptions{})
		if err == nil {
			f.content = content
		} else if err := c.absent("volumesnapshotcontents", err); err != nil {
			return nil, err
		}
	}
	classes, err := api.VolumeSnapshotClasses().List(c.ctx, metav1.ListOptions{})
	if err == nil {
		f.classes = classes.Items
	} else if err := c.absent("volumesnapshotclasses", err); err != nil {
		return nil, err
	}
	if name := snapshot.Spec.Source.PersistentVolumeClaimName; name != nil {
		vf := volumeFacts{namespace: snapshot.Namespace, claimName: *name}
		if err := c.fillClaim(&vf); err != nil {
			return nil, err
		}
		f.claim, f.pv = vf.claim, vf.pv
	}
	if f.drivers, err = c.registered(); err != nil {
		return nil, err
	}
	f.unread = c.unreadable
	claims, err := c.claims(snapshot.Namespace)
	if err != nil {
		return nil, err
	}
	f.users = beingMadeFrom(snapshot.Name, claims)
	if f.events, err = c.events(snapshot.Namespace, "VolumeSnapshot", snapshot.Name, snapshot.CreationTimestamp.Time); err != nil {
		return nil, err
	}
	if name := f.contentName(); name != "" {
		events, err := c.events(metav1.NamespaceDefault, "VolumeSnapshotContent", name, snapshot.CreationTimestamp.Time)
		if err != nil {
			return nil, err
		}
		f.events = append(f.events, events...)
	}
	return f, nil
}

// beingMadeFrom names the claims that are made from a snapshot and have no volume yet.
func beingMadeFrom(snapshot string, claims []v1.PersistentVolumeClaim) (users []string) {
	for i := range claims {
		if from := claims[i].Spec.DataSource; from != nil && from.Kind == "VolumeSnapshot" && from.Name == snapshot && claims[i].Spec.VolumeName == "" {
			users = append(users, claims[i].Name)
		}
	}
	return users
}

// registered are the drivers that some node has.
func (c *collector) registered() (drivers []string, err error) {
	nodes, err := c.csiNodes()
	for i := range nodes {
		for _, d := range nodes[i].Spec.Drivers {
			drivers = append(drivers, d.Name)
		}
	}
	return drivers, err
}

func (f *snapshotFacts) contentName() string {
	if n := f.snapshot.Spec.Source.VolumeSnapshotContentName; n != nil {
		return *n
	}
	if f.snapshot.Status != nil && f.snapshot.Status.BoundVolumeSnapshotContentName != nil {
		return *f.snapshot.Status.BoundVolumeSnapshotContentName
	}
	return ""
}

func (f *snapshotFacts) claimName() string {
	if n := f.snapshot.Spec.Source.PersistentVolumeClaimName; n != nil {
		return *n
	}
	return ""
}

func (f *snapshotFacts) ready() bool {
	return f.snapshot.Status != nil && f.snapshot.Status.ReadyToUse != nil && *f.snapshot.Status.ReadyToUse
}

func (f *snapshotFacts) group() string {
	if f.snapshot.Status != nil && f.snapshot.Status.VolumeGroupSnapshotName != nil {
		return *f.snapshot.Status.VolumeGroupSnapshotName
	}
	return ""
}

// driver is the content's, else the volume's.
func (f *snapshotFacts) driver() string {
	switch {
	case f.content != nil:
		return f.content.Spec.Driver
	case f.pv != nil && f.pv.Spec.CSI != nil:
		return f.pv.Spec.CSI.Driver
	}
	return ""
}

// since is when what the snapshot waits for began.
func (f *snapshotFacts) since() time.Time {
	if d := f.snapshot.DeletionTimestamp; d != nil {
		return d.Time
	}
	return f.snapshot.CreationTimestamp.Time
}

func (f *snapshotFacts) state() *SnapshotState {
	s := &SnapshotState{Namespace: f.snapshot.Namespace, Name: f.snapshot.Name, State: "waiting", Claim: f.claimName(), Group: f.group(), Content: f.contentName(),
		Driver: f.driver(), UsedBy: f.users}
	if n := f.snapshot.Spec.VolumeSnapshotClassName; n != nil {
		s.Class = *n
	}
	add := func(step trace.Step, at time.Time, detail string) {
		s.Steps = append(s.Steps, Step{Step: step, State: trace.Done, Time: at, Coarse: true, Detail: detail})
	}
	asked := "of claim " + s.Claim
	if s.Claim == "" {
		asked = "with content " + s.Content
	}
	add(stepAsked, f.snapshot.CreationTimestamp.Time, asked)
	if f.content != nil {
		s.State, s.Policy = "being taken", string(f.content.Spec.DeletionPolicy)
		switch {
		case f.content.Status != nil && f.content.Status.SnapshotHandle != nil:
			s.Handle = *f.content.Status.SnapshotHandle
		case f.content.Spec.Source.SnapshotHandle != nil:
			s.Handle = *f.content.Spec.Source.SnapshotHandle
		}
	}
	if st := f.snapshot.Status; st != nil {
		if st.RestoreSize != nil {
			s.Size = st.RestoreSize.String()
		}
		if st.CreationTime != nil {
			s.Taken = st.CreationTime.Time
			add(trace.Snapshotted, s.Taken, "the data is of this moment")
		}
	}
	if f.ready() {
		s.State = "ready"
		add(stepReady, told(f.events, "SnapshotReady"), "claims can be made from it")
	}
	if f.snapshot.DeletionTimestamp != nil {
		s.State = "being deleted"
	}
	between(s.Steps)
	return s
}

// told is when the last event of that reason was; zero when there is none.
func told(events []v1.Event, reason string) (at time.Time) {
	for i := range events {
		if events[i].Reason == reason {
			at = eventTime(&events[i])
		}
	}
	return at
}

// told adds the last error that stands, in plain words: of the snapshot's status, or of the events on it and its content.
func (f *snapshotFacts) told(p *Problem, waits bool) *Problem {
	var list []complaint
	if st := f.snapshot.Status; st != nil && !f.ready() {
		list = statusError(list, st.Error, "VolumeSnapshot "+f.snapshot.Name)
	}
	if c := f.content; c != nil && c.Status != nil && !f.ready() {
		list = statusError(list, c.Status.Error, "VolumeSnapshotContent "+c.Name)
	}
	if waits {
		list = warnings(list, f.events, f.snapshot.DeletionTimestamp)
	}
	return lastTold(p, list)
}

func statusError(list []complaint, e *snapv1.VolumeSnapshotError, from string) []complaint {
	if e == nil || e.Message == nil {
		return list
	}
	c := complaint{message: *e.Message, from: from, count: 1}
	if e.Time != nil {
		c.time = e.Time.Time
	}
	return append(list, c)
}

// warnings are the events that warn; of an object that is leaving, those since it is.
func warnings(list []complaint, events []v1.Event, leaving *metav1.Time) []complaint {
	for i := range events {
		e := &events[i]
		if e.Type == v1.EventTypeWarning && (leaving == nil || !eventTime(e).Before(leaving.Time)) {
			list = append(list, complaint{message: e.Message, from: "event " + e.Reason, time: eventTime(e), count: eventCount(e)})
		}
	}
	return list
}

// lastTold is p with the last error that was told, or that error in plain words where p is nil.
func lastTold(p *Problem, list []complaint) *Problem {
	last := latest(list)
	switch {
	case last == nil:
		return p
	case p == nil:
		return problemOf(last)
	}
	p.Message, p.From, p.Time, p.Count = last.message, last.from, last.time, last.count
	return p
}

// snapshotCauses are asked in order: what the snapshot waits for, and what is wrong, where something is. The first that has an
// answer is told.
var snapshotCauses = []func(f *snapshotFacts) (waits string, p *Problem){
	func(f *snapshotFacts) (string, *Problem) {
		s := f.snapshot
		switch {
		case s.DeletionTimestamp == nil:
			return "", nil
		case len(f.users) > 0:
			return "the claims that are being made from it: " + strings.Join(f.users, ", "), &Problem{Cause: "snapshot-in-use",
				What:   "The snapshot is being deleted, and volumes are being made from it.",
				Advice: "Nothing to do if they get on (berth why pvc/" + f.users[0] + "); otherwise delete those claims."}
		case f.group() != "" && f.content != nil:
			return "its group snapshot " + f.group() + " to be deleted", &Problem{Cause: "snapshot-of-group", What: "The snapshot belongs to a group, and goes with it.",
				Advice: "kubectl delete volumegroupsnapshot " + f.group()}
		case f.content != nil && f.content.Spec.DeletionPolicy == snapv1.VolumeSnapshotContentDelete:
			return "driver " + f.driver() + " to delete the snapshot", f.driverMissing()
		}
		return "finalizers: " + strings.Join(s.Finalizers, ", "), nil
	},
	func(f *snapshotFacts) (string, *Problem) {
		n := f.snapshot.Spec.Source.VolumeSnapshotContentName
		if f.ready() || n == nil || f.content != nil {
			return "", nil
		}
		return "VolumeSnapshotContent " + *n + " to be created", &Problem{Cause: "content-missing", What: fmt.Sprintf("There is no VolumeSnapshotContent %q.", *n),
			Advice: "Create it, with volumeSnapshotRef naming this snapshot and source.snapshotHandle naming the driver's snapshot."}
	},
	func(f *snapshotFacts) (string, *Problem) {
		if f.ready() || f.content != nil || f.claimName() == "" {
			return "", nil
		}
		return f.claimWaits()
	},
	func(f *snapshotFacts) (string, *Problem) {
		if f.ready() || f.content != nil || f.pv == nil {
			return "", nil
		}
		return f.classWaits()
	},
	func(f *snapshotFacts) (string, *Problem) {
		switch {
		case f.ready():
			return "", nil
		case f.group() != "":
			return "driver " + f.driver() + " to take the group snapshot " + f.group(), f.driverMissing()
		case f.content == nil && !(f.contentName() != "" && slices.Contains(f.unread, "volumesnapshotcontents")):
			return "the snapshot controller to take it up", nil
		}
		return "driver " + f.driver() + " to take the snapshot", f.driverMissing()
	},
}

// claimWaits: what is wrong with the claim that the snapshot is of.
func (f *snapshotFacts) claimWaits() (string, *Problem) {
	name := f.claimName()
	switch {
	case f.claim == nil && slices.Contains(f.unread, "persistentvolumeclaims"), f.pv == nil && slices.Contains(f.unread, "persistentvolumes"):
		return "", nil
	case f.claim == nil:
		return "claim " + name + " to be created", &Problem{Cause: "claim-missing", What: fmt.Sprintf("There is no claim %q in namespace %s.", name, f.snapshot.Namespace),
			Advice: "Create the claim, or delete the snapshot and make it again with the claim that is meant."}
	case f.claim.Status.Phase != v1.ClaimBound:
		return "claim " + name + " to be bound to a volume", &Problem{Cause: "claim-not-bound", What: fmt.Sprintf("Claim %s has no volume yet.", name),
			Advice: "See berth why pvc/" + name + "; the snapshot is taken as soon as it has."}
	case f.pv == nil:
		return "volume " + f.claim.Spec.VolumeName + " to come back", &Problem{Cause: "volume-missing", What: fmt.Sprintf("Claim %s names volume %s, which does not exist.", name, f.claim.Spec.VolumeName),
			Advice: "See berth why pvc/" + name + "."}
	case f.pv.Spec.CSI == nil:
		return "a driver that takes snapshots of such volumes", &Problem{Cause: "no-snapshots-of-these", What: fmt.Sprintf("The volume of claim %s belongs to no CSI driver: there are no snapshots of such volumes.", name),
			Advice: "Delete the snapshot, and copy the data by other means."}
	case f.driverMissing() != nil:
		return "driver " + f.driver() + " to register", f.driverMissing()
	}
	return "", nil
}

// classWaits: what is wrong with the snapshot's class.
func (f *snapshotFacts) classWaits() (string, *Problem) {
	classes := make([]classOf, len(f.classes))
	for i := range f.classes {
		c := &f.classes[i]
		classes[i] = classOf{c.Name, c.Driver, c.Annotations[defaultSnapshotClass] == "true"}
	}
	return classWaits("snapshot", "VolumeSnapshotClass", defaultSnapshotClass, f.driver(), f.snapshot.Spec.VolumeSnapshotClassName, classes)
}

const (
	defaultSnapshotClass = "snapshot.storage.kubernetes.io/is-default-class"
	defaultGroupClass    = "groupsnapshot.storage.kubernetes.io/is-default-class"
)

// classOf is a class of snapshots, or of groups of them.
type classOf struct {
	name, driver string
	isDefault    bool
}

// classWaits: what is wrong with the class that an object (what) names, or does not name.
func classWaits(what, kind, defaultBy, driver string, name *string, classes []classOf) (string, *Problem) {
	var own []string
	defaults := 0
	for _, c := range classes {
		if c.driver == driver {
			own = append(own, c.name)
			if c.isDefault {
				defaults++
			}
		}
	}
	there := " Driver " + driver + " has no class: create one."
	if len(own) > 0 {
		there = " Driver " + driver + " has " + strings.Join(own, ", ") + "."
	}
	again := "Delete the " + what + " and make it again with a class that can be." + there
	if name == nil {
		if defaults == 1 {
			return "", nil
		}
		return "a default " + kind + " of driver " + driver, &Problem{Cause: "no-default-snapshot-class",
			What:   fmt.Sprintf("The %s names no class, and driver %s has %d that are the default.", what, driver, defaults),
			Advice: "Mark one, and one only, with the annotation " + defaultBy + "=true." + there}
	}
	at := slices.IndexFunc(classes, func(c classOf) bool { return c.name == *name })
	switch {
	case at < 0:
		return fmt.Sprintf("%s %q to be created", kind, *name), &Problem{Cause: "unknown-snapshot-class", What: fmt.Sprintf("There is no %s %q.", kind, *name),
			Advice: "Create it. Or: " + again}
	case classes[at].driver != driver:
		volume := "the volume is"
		if what != "snapshot" {
			volume = "the volumes are"
		}
		return "a class of driver " + driver, &Problem{Cause: "snapshot-class-of-another",
			What: fmt.Sprintf("%s %q is of driver %s, and %s of driver %s.", kind, *name, classes[at].driver, volume, driver), Advice: again}
	}
	return "", nil
}

func (f *snapshotFacts) driverMissing() *Problem {
	return driverMissing("snapshot", f.driver(), f.drivers, f.unread)
}

func driverMissing(what, driver string, registered, unread []string) *Problem {
	if driver != "" && !slices.Contains(registered, driver) && !slices.Contains(unread, "csinodes") {
		return &Problem{Cause: "driver-unknown", What: fmt.Sprintf("CSI driver %s is registered on no node.", driver), Advice: "Start the driver; the " + what + " goes on as soon as it has registered."}
	}
	return nil
}

// nearOf names objects of the target's kind that may have been meant: of nearly the same name here, or of the same name elsewhere.
func nearOf(t Target, there []types.NamespacedName) []string {
	type candidate struct {
		arg      string
		distance int
	}
	var found []candidate
	for _, o := range there {
		switch d := distance(t.Name, o.Name); {
		case o.Namespace == t.Namespace && (d <= max(1, len(t.Name)/4) || len(t.Name) >= 3 && strings.Contains(o.Name, t.Name)):
			found = append(found, candidate{string(t.Kind) + "/" + o.Name, d})
		case d == 0:
			found = append(found, candidate{strings.TrimSpace(namespaceFlag(t, o.Namespace) + " " + string(t.Kind) + "/" + o.Name), 1})
		}
	}
	slices.SortFunc(found, func(a, b candidate) int { return cmp.Or(a.distance-b.distance, strings.Compare(a.arg, b.arg)) })
	var args []string
	for _, c := range found[:min(nearLimit, len(found))] {
		args = append(args, c.arg)
	}
	return args
}

// snapshot prints a snapshot's part.
func (p *printer) snapshot(j *Journey) {
	s := j.Snapshot
	line := []string{s.State}
	add(&line, s.Size, "%s")
	add(&line, s.Class, "class %s")
	add(&line, s.Driver, "driver %s")
	add(&line, s.Handle, "handle %s")
	p.printf("%s  %s\n", p.paint(bold, "snapshot "+s.Namespace+"/"+s.Name), strings.Join(line, "  "))
	if s.Claim != "" {
		p.printf("of claim %s/%s\n", s.Namespace, s.Claim)
	}
	if s.Group != "" {
		p.printf("of group snapshot %s\n", s.Group)
	}
	if s.Content != "" {
		p.printf("%s\n", joined("content "+s.Content, strings.TrimSuffix("deletion policy "+s.Policy, "deletion policy ")))
	}
	if len(s.UsedBy) > 0 {
		p.printf("being restored as %s\n", strings.Join(s.UsedBy, ", "))
	}
	p.steps(s.Steps)
	p.trouble(j.Waiting, j.Problem)
	p.printf("\n")
}
