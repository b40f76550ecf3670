package why

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/trace"
)

// GroupState is a VolumeGroupSnapshot as the API shows it.
type GroupState struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// State is "ready", "being taken", "waiting" or "being deleted".
	State string `json:"state"`
	// Selector chooses the claims, Claims are those that it chooses now.
	Selector string   `json:"selector,omitempty"`
	Claims   []string `json:"claims,omitempty"`
	// Members are the VolumeSnapshots that it has.
	Members []GroupMember `json:"members,omitempty"`
	Class   string        `json:"class,omitempty"`
	Driver  string        `json:"driver,omitempty"`
	Content string        `json:"content,omitempty"`
	Handle  string        `json:"handle,omitempty"`
	Policy  string        `json:"deletionPolicy,omitempty"`
	Taken   time.Time     `json:"taken,omitzero"`
	Steps   []Step        `json:"steps,omitempty"`
}

// GroupMember is one VolumeSnapshot of a group.
type GroupMember struct {
	Name  string `json:"name"`
	Claim string `json:"claim,omitempty"`
	Ready bool   `json:"ready"`
	// UsedBy names the claims that are made from it and have no volume yet.
	UsedBy []string `json:"usedBy,omitempty"`
}

// groupFacts are the objects around a group snapshot; those that are not there are nil.
type groupFacts struct {
	group    *groupv1.VolumeGroupSnapshot
	content  *groupv1.VolumeGroupSnapshotContent
	classes  []groupv1.VolumeGroupSnapshotClass
	selected []volumeFacts // the claims that the selector chooses
	members  []GroupMember
	drivers  []string // registered on some node
	unread   []string // kinds that the user may not read
	events   []v1.Event
}

// explainGroup answers for a VolumeGroupSnapshot.
func explainGroup(ctx context.Context, s Sources, t Target) (*Journey, error) {
	if s.Snapshots == nil {
		return nil, fmt.Errorf("%s: snapshots cannot be asked for here", t)
	}
	if s.Now.IsZero() {
		s.Now = time.Now()
	}
	group, err := s.Snapshots.GroupsnapshotV1().VolumeGroupSnapshots(t.Namespace).Get(ctx, t.Name, metav1.GetOptions{})
	if err != nil {
		return nil, s.notRead(ctx, t, err, "VolumeGroupSnapshots (their CRDs, group groupsnapshot.storage.k8s.io, are not installed)", func() []types.NamespacedName {
			list, err := s.Snapshots.GroupsnapshotV1().VolumeGroupSnapshots("").List(ctx, metav1.ListOptions{})
			if err != nil {
				return nil
			}
			return namesOf(list.Items)
		})
	}
	c := collector{reader: newReader(ctx, s.Client, false), facts: &facts{}}
	f, err := c.group(s, group)
	if err != nil {
		return nil, err
	}
	j := &Journey{Target: t, Asked: s.Now, Group: f.state()}
	j.leftOut(c.unreadable)
	for _, why := range groupCauses {
		if waits, problem := why(f); waits != "" {
			since := group.CreationTimestamp.Time
			if group.DeletionTimestamp != nil {
				since = group.DeletionTimestamp.Time
			}
			j.Waiting, j.Problem = &Waiting{For: waits, Since: since}, problem
			break
		}
	}
	j.Problem = f.told(j.Problem, j.Waiting != nil)
	j.retell(&s)
	return j, nil
}

func (c *collector) group(s Sources, group *groupv1.VolumeGroupSnapshot) (*groupFacts, error) {
	f := &groupFacts{group: group}
	api := s.Snapshots.GroupsnapshotV1()
	if name := f.contentName(); name != "" {
		content, err := api.VolumeGroupSnapshotContents().Get(c.ctx, name, metav1.GetOptions{})
		if err == nil {
			f.content = content
		} else if err := c.absent("volumegroupsnapshotcontents", err); err != nil {
			return nil, err
		}
	}
	classes, err := api.VolumeGroupSnapshotClasses().List(c.ctx, metav1.ListOptions{})
	if err == nil {
		f.classes = classes.Items
	} else if err := c.absent("volumegroupsnapshotclasses", err); err != nil {
		return nil, err
	}
	claims, err := c.claims(group.Namespace)
	if err != nil {
		return nil, err
	}
	if err := c.chosen(f, claims); err != nil {
		return nil, err
	}
	snapshots, err := s.Snapshots.SnapshotV1().VolumeSnapshots(group.Namespace).List(c.ctx, metav1.ListOptions{})
	if err == nil {
		f.members = membersOf(group.Name, snapshots.Items, claims)
	} else if err := c.absent("volumesnapshots", err); err != nil {
		return nil, err
	}
	if f.drivers, err = c.registered(); err != nil {
		return nil, err
	}
	f.unread = c.unreadable
	if f.events, err = c.events(group.Namespace, "VolumeGroupSnapshot", group.Name, group.CreationTimestamp.Time); err != nil {
		return nil, err
	}
	if name := f.contentName(); name != "" {
		events, err := c.events(metav1.NamespaceDefault, "VolumeGroupSnapshotContent", name, group.CreationTimestamp.Time)
		if err != nil {
			return nil, err
		}
		f.events = append(f.events, events...)
	}
	return f, nil
}

// chosen finds the claims of the group's selector, and their volumes.
func (c *collector) chosen(f *groupFacts, claims []v1.PersistentVolumeClaim) error {
	selector, err := metav1.LabelSelectorAsSelector(f.group.Spec.Source.Selector) // of nil: chooses nothing
	if err != nil {
		return nil // its status tells it
	}
	for i := range claims {
		if !selector.Matches(labels.Set(claims[i].Labels)) {
			continue
		}
		vf := volumeFacts{namespace: claims[i].Namespace, claimName: claims[i].Name, claim: &claims[i], pvName: claims[i].Spec.VolumeName}
		if vf.pvName != "" {
			if vf.pv, err = c.volume(vf.pvName); err != nil {
				return err
			}
		}
		f.selected = append(f.selected, vf)
	}
	return nil
}

func membersOf(group string, snapshots []snapv1.VolumeSnapshot, claims []v1.PersistentVolumeClaim) (members []GroupMember) {
	for i := range snapshots {
		st := snapshots[i].Status
		if st == nil || st.VolumeGroupSnapshotName == nil || *st.VolumeGroupSnapshotName != group {
			continue
		}
		m := GroupMember{Name: snapshots[i].Name, Ready: st.ReadyToUse != nil && *st.ReadyToUse, UsedBy: beingMadeFrom(snapshots[i].Name, claims)}
		if of := snapshots[i].Spec.Source.PersistentVolumeClaimName; of != nil {
			m.Claim = *of
		}
		members = append(members, m)
	}
	slices.SortFunc(members, func(a, b GroupMember) int { return strings.Compare(a.Name, b.Name) })
	return members
}

func (f *groupFacts) contentName() string {
	if n := f.group.Spec.Source.VolumeGroupSnapshotContentName; n != nil {
		return *n
	}
	if st := f.group.Status; st != nil && st.BoundVolumeGroupSnapshotContentName != nil {
		return *st.BoundVolumeGroupSnapshotContentName
	}
	return ""
}

func (f *groupFacts) ready() bool {
	return f.group.Status != nil && f.group.Status.ReadyToUse != nil && *f.group.Status.ReadyToUse
}

// driver is the content's, else that of the claims' volumes where it is one.
func (f *groupFacts) driver() string {
	if f.content != nil {
		return f.content.Spec.Driver
	}
	if of := f.driversOfClaims(); len(of) == 1 {
		return of[0]
	}
	return ""
}

func (f *groupFacts) driversOfClaims() (drivers []string) {
	for i := range f.selected {
		if pv := f.selected[i].pv; pv != nil && pv.Spec.CSI != nil && !slices.Contains(drivers, pv.Spec.CSI.Driver) {
			drivers = append(drivers, pv.Spec.CSI.Driver)
		}
	}
	slices.Sort(drivers)
	return drivers
}

func (f *groupFacts) selector() string {
	if of := f.group.Spec.Source.Selector; of != nil {
		return selectorText(of)
	}
	return ""
}

// selectorText is a selector as kubectl writes it; {} selects all.
func selectorText(s *metav1.LabelSelector) string {
	if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
		return "any labels"
	}
	return metav1.FormatLabelSelector(s)
}

func (f *groupFacts) state() *GroupState {
	s := &GroupState{Namespace: f.group.Namespace, Name: f.group.Name, State: "waiting", Selector: f.selector(), Members: f.members, Content: f.contentName(), Driver: f.driver()}
	for i := range f.selected {
		s.Claims = append(s.Claims, f.selected[i].claimName)
	}
	if n := f.group.Spec.VolumeGroupSnapshotClassName; n != nil {
		s.Class = *n
	}
	asked := "of the claims with " + s.Selector
	if s.Selector == "" {
		asked = "with content " + s.Content
	}
	add := func(step trace.Step, at time.Time, detail string) {
		s.Steps = append(s.Steps, Step{Step: step, State: trace.Done, Time: at, Coarse: true, Detail: detail})
	}
	add(stepAsked, f.group.CreationTimestamp.Time, asked)
	if f.content != nil {
		s.State, s.Policy = "being taken", string(f.content.Spec.DeletionPolicy)
		switch {
		case f.content.Status != nil && f.content.Status.VolumeGroupSnapshotHandle != nil:
			s.Handle = *f.content.Status.VolumeGroupSnapshotHandle
		case f.content.Spec.Source.GroupSnapshotHandles != nil:
			s.Handle = f.content.Spec.Source.GroupSnapshotHandles.VolumeGroupSnapshotHandle
		}
	}
	if st := f.group.Status; st != nil && st.CreationTime != nil {
		s.Taken = st.CreationTime.Time
		add(trace.Snapshotted, s.Taken, "the data of all is of this moment")
	}
	if f.ready() {
		s.State = "ready"
		add(stepReady, told(f.events, "GroupSnapshotReady"), "claims can be made from its snapshots")
	}
	if f.group.DeletionTimestamp != nil {
		s.State = "being deleted"
	}
	between(s.Steps)
	return s
}

// told adds the last error that stands, in plain words: of the group's status, its content's, or of the events on both.
func (f *groupFacts) told(p *Problem, waits bool) *Problem {
	var list []complaint
	if st := f.group.Status; st != nil && !f.ready() {
		list = statusError(list, st.Error, "VolumeGroupSnapshot "+f.group.Name)
	}
	if c := f.content; c != nil && c.Status != nil && !f.ready() {
		list = statusError(list, c.Status.Error, "VolumeGroupSnapshotContent "+c.Name)
	}
	if waits {
		list = warnings(list, f.events, f.group.DeletionTimestamp)
	}
	return lastTold(p, list)
}

// groupCauses are asked in order: what the group waits for, and what is wrong, where something is. The first that has an answer is told.
var groupCauses = []func(f *groupFacts) (waits string, p *Problem){
	func(f *groupFacts) (string, *Problem) {
		if f.group.DeletionTimestamp == nil {
			return "", nil
		}
		for i := range f.members {
			if m := &f.members[i]; len(m.UsedBy) > 0 {
				return "the claims that are being made from snapshot " + m.Name + ": " + strings.Join(m.UsedBy, ", "), &Problem{Cause: "snapshot-in-use",
					What:   "The group is being deleted, and volumes are being made from a snapshot of it.",
					Advice: "Nothing to do if they get on (berth why pvc/" + m.UsedBy[0] + "); otherwise delete those claims."}
			}
		}
		if f.content != nil && f.content.Spec.DeletionPolicy == snapv1.VolumeSnapshotContentDelete {
			return "driver " + f.driver() + " to delete the group and its snapshots", f.driverMissing()
		}
		return "finalizers: " + strings.Join(f.group.Finalizers, ", "), nil
	},
	func(f *groupFacts) (string, *Problem) {
		n := f.group.Spec.Source.VolumeGroupSnapshotContentName
		if f.ready() || n == nil || f.content != nil || slices.Contains(f.unread, "volumegroupsnapshotcontents") {
			return "", nil
		}
		return "VolumeGroupSnapshotContent " + *n + " to be created", &Problem{Cause: "content-missing", What: fmt.Sprintf("There is no VolumeGroupSnapshotContent %q.", *n),
			Advice: "Create it, with volumeGroupSnapshotRef naming this group and source.groupSnapshotHandles naming the driver's."}
	},
	func(f *groupFacts) (string, *Problem) {
		if f.ready() || f.content != nil || f.selector() == "" || slices.Contains(f.unread, "persistentvolumeclaims") {
			return "", nil
		}
		return f.claimsWait()
	},
	func(f *groupFacts) (string, *Problem) {
		if f.ready() || f.content != nil || f.driver() == "" {
			return "", nil
		}
		classes := make([]classOf, len(f.classes))
		for i := range f.classes {
			c := &f.classes[i]
			classes[i] = classOf{c.Name, c.Driver, c.Annotations[defaultGroupClass] == "true"}
		}
		return classWaits("group snapshot", "VolumeGroupSnapshotClass", defaultGroupClass, f.driver(), f.group.Spec.VolumeGroupSnapshotClassName, classes)
	},
	func(f *groupFacts) (string, *Problem) {
		switch {
		case f.ready():
			return "", nil
		case f.content == nil && !(f.contentName() != "" && slices.Contains(f.unread, "volumegroupsnapshotcontents")):
			return "the snapshot controller to take it up", nil
		}
		return "driver " + f.driver() + " to take the group snapshot", f.driverMissing()
	},
}

// claimsWait: what is wrong with the claims that the group is of.
func (f *groupFacts) claimsWait() (string, *Problem) {
	if len(f.selected) == 0 {
		return "a claim with " + f.selector(), &Problem{Cause: "no-claims-selected", What: fmt.Sprintf("No claim in namespace %s has the labels %s.", f.group.Namespace, f.selector()),
			Advice: "Label the claims that are meant (kubectl label pvc NAME …), or delete the group snapshot and make it again with another selector."}
	}
	for i := range f.selected {
		vf := &f.selected[i]
		switch {
		case vf.claim.Status.Phase != v1.ClaimBound:
			return "claim " + vf.claimName + " to be bound to a volume", &Problem{Cause: "claim-not-bound", What: fmt.Sprintf("Claim %s has no volume yet.", vf.claimName),
				Advice: "See berth why pvc/" + vf.claimName + "; the group is taken when all of its claims have one."}
		case vf.pv == nil && !slices.Contains(f.unread, "persistentvolumes"):
			return "volume " + vf.pvName + " to come back", &Problem{Cause: "volume-missing", What: fmt.Sprintf("Claim %s names volume %s, which does not exist.", vf.claimName, vf.pvName),
				Advice: "See berth why pvc/" + vf.claimName + "."}
		case vf.pv != nil && vf.pv.Spec.CSI == nil:
			return "a driver that takes snapshots of such volumes", &Problem{Cause: "no-snapshots-of-these",
				What:   fmt.Sprintf("The volume of claim %s belongs to no CSI driver: there are no snapshots of such volumes.", vf.claimName),
				Advice: "Delete the group snapshot, and make it again with labels that this claim does not have."}
		}
	}
	if drivers := f.driversOfClaims(); len(drivers) > 1 {
		return "claims of one driver", &Problem{Cause: "group-of-several-drivers", What: "The claims' volumes are of several drivers: " + strings.Join(drivers, ", ") + ".",
			Advice: "A group is of one driver: delete the group snapshot, and make one for each driver's claims, with labels that tell them apart."}
	}
	if p := f.driverMissing(); p != nil {
		return "driver " + f.driver() + " to register", p
	}
	return "", nil
}

func (f *groupFacts) driverMissing() *Problem {
	return driverMissing("group snapshot", f.driver(), f.drivers, f.unread)
}

// group prints a group's part.
func (p *printer) group(j *Journey) {
	s := j.Group
	line := []string{s.State}
	add(&line, s.Class, "class %s")
	add(&line, s.Driver, "driver %s")
	add(&line, s.Handle, "handle %s")
	p.printf("%s  %s\n", p.paint(bold, "group snapshot "+s.Namespace+"/"+s.Name), strings.Join(line, "  "))
	if len(s.Claims) > 0 {
		p.printf("claims with %s: %s\n", s.Selector, strings.Join(s.Claims, ", "))
	}
	if s.Content != "" {
		p.printf("%s\n", joined("content "+s.Content, strings.TrimSuffix("deletion policy "+s.Policy, "deletion policy ")))
	}
	for _, m := range s.Members {
		state := "not ready"
		if m.Ready {
			state = "ready"
		}
		if len(m.UsedBy) > 0 {
			state += ", being restored as " + strings.Join(m.UsedBy, ", ")
		}
		line := []string{"snapshot " + m.Name}
		add(&line, m.Claim, "of claim %s")
		p.printf("%s\n", strings.Join(append(line, state), "  "))
	}
	p.steps(s.Steps)
	p.trouble(j.Waiting, j.Problem)
	p.printf("\n")
}
