package why

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"

	"berth.io/berth/internal/node/holder"
)

// StatusSources are what Survey may ask. What only a running instance knows is given by the caller.
type StatusSources struct {
	Client     kubernetes.Interface
	Components []Component
	Pools      []Pool
	Holders    []Holder
	// FlexVolumes are the node's FlexVolume drivers, which the API knows nothing of.
	FlexVolumes []FlexVolumeDriver
	// Unwell are the mounted volumes whose drivers say that they are not well.
	Unwell []Unwell
	// Notes are passed on, such as that no instance answers.
	Notes []string
	// Now is the time of the question; zero is the time now.
	Now time.Time
}

// Component is a part of the instance.
type Component struct {
	Name   string    `json:"name"`
	Ready  bool      `json:"ready"`
	Detail string    `json:"detail,omitempty"`
	Since  time.Time `json:"since,omitzero"`
}

// Pool is storage that volumes are made of; sizes in bytes.
type Pool struct {
	Name      string `json:"name"`
	Driver    string `json:"driver,omitempty"`
	Path      string `json:"path,omitempty"` // file, device or mount point
	Size      int64  `json:"sizeBytes"`
	Used      int64  `json:"usedBytes"`
	Available int64  `json:"availableBytes"`
	Volumes   int    `json:"volumes"`
	Detail    string `json:"detail,omitempty"`
}

// Status is the whole at a glance.
type Status struct {
	Asked      time.Time      `json:"asked"`
	Components []Component    `json:"components,omitempty"`
	Nodes      []NodeStatus   `json:"nodes"`
	Pools      []Pool         `json:"pools,omitempty"`
	Drivers    []DriverStatus `json:"drivers"`
	// FlexVolumes are the directories of the node's FlexVolume drivers.
	FlexVolumes []FlexVolumeDriver `json:"flexVolumeDrivers,omitempty"`
	// Counts by phase; pods on no node yet are Pending like in the API.
	Volumes map[string]int `json:"volumes"`
	Claims  map[string]int `json:"claims"`
	Pods    map[string]int `json:"pods"`
	// Capacity promised to claims that are bound, bytes.
	Requested int64 `json:"requestedBytes"`
	// Attention names what does not get on; ask why about it.
	Attention []Attention `json:"attention,omitempty"`
	// More counts what Attention leaves out.
	More int `json:"more,omitempty"`
	// Operations under way.
	Operations []Holder `json:"operations,omitempty"`
	Notes      []string `json:"notes,omitempty"`
}

// NodeStatus is one node.
type NodeStatus struct {
	Name     string `json:"name"`
	Ready    bool   `json:"ready"`
	Detail   string `json:"detail,omitempty"`
	Pods     int    `json:"pods"`
	Attached int    `json:"attached"` // VolumeAttachments
}

// DriverStatus is one CSI driver: of a CSIDriver object, registered on a node, or one whose registration failed.
type DriverStatus struct {
	Name string `json:"name"`
	// Nodes on which it is registered.
	Nodes []string `json:"nodes,omitempty"`
	// Volumes that it serves.
	Volumes int `json:"volumes"`
	// Available is what its CSIStorageCapacity objects tell, the largest of each topology; -1 when they tell nothing.
	Available      int64  `json:"availableBytes"`
	AttachRequired bool   `json:"attachRequired"`
	Limit          *int32 `json:"volumesPerNode,omitempty"`
	// Problem is why it is not usable.
	Problem string `json:"problem,omitempty"`
}

// Attention is one object that does not get on.
type Attention struct {
	Kind      Kind      `json:"kind"`
	Namespace string    `json:"namespace,omitempty"`
	Name      string    `json:"name"`
	State     string    `json:"state"`
	Since     time.Time `json:"since,omitzero"`
}

// WaitsForFirstPod is the phase in Status.Claims of a Pending claim whose class makes the volume when a pod uses it,
// and which no pod uses yet. That is as it should be.
const WaitsForFirstPod = "WaitsForFirstPod"

// attentionLimit keeps the status on one screen.
const attentionLimit = 10

// patience is how long something may take before it needs attention.
const patience = 10 * time.Second

// Survey looks at everything once.
func Survey(ctx context.Context, s StatusSources) (*Status, error) {
	if s.Now.IsZero() {
		s.Now = time.Now()
	}
	st := &Status{Asked: s.Now, Components: s.Components, Pools: s.Pools, Operations: s.Holders, FlexVolumes: s.FlexVolumes, Notes: s.Notes,
		Volumes: map[string]int{}, Claims: map[string]int{}, Pods: map[string]int{}}
	w := surveyor{Status: st, ctx: ctx, core: s.Client, drivers: map[string]*DriverStatus{}}
	for _, look := range []func() error{w.nodes, w.csi, w.volumes, w.pods, w.claims, w.registrations} {
		if err := look(); err != nil {
			return nil, err
		}
	}
	w.unwell(s.Unwell)
	for _, d := range w.drivers {
		st.Drivers = append(st.Drivers, *d)
	}
	slices.SortFunc(st.Drivers, func(a, b DriverStatus) int { return strings.Compare(a.Name, b.Name) })
	slices.SortStableFunc(st.Attention, func(a, b Attention) int { return a.Since.Compare(b.Since) })
	if n := len(st.Attention); n > attentionLimit {
		st.Attention, st.More = st.Attention[:attentionLimit], n-attentionLimit
	}
	return st, nil
}

type surveyor struct {
	*Status
	ctx     context.Context
	core    kubernetes.Interface
	drivers map[string]*DriverStatus
	late    map[string]bool // classes that make a volume for its first pod
	allPods []v1.Pod        // those that are not finished
}

// refused notes what the user may not read and goes on without it.
func (w *surveyor) refused(kind string, err error) error {
	if apierrors.IsForbidden(err) {
		w.Notes = append(w.Notes, "you may not read "+kind)
		return nil
	}
	return fmt.Errorf("read %s: %w", kind, err)
}

func (w *surveyor) driver(name string) *DriverStatus {
	if w.drivers[name] == nil {
		w.drivers[name] = &DriverStatus{Name: name, Available: -1, AttachRequired: true}
	}
	return w.drivers[name]
}

func (w *surveyor) node(name string) *NodeStatus {
	for i := range w.Nodes {
		if w.Nodes[i].Name == name {
			return &w.Nodes[i]
		}
	}
	return &NodeStatus{}
}

func (w *surveyor) nodes() error {
	list, err := w.core.CoreV1().Nodes().List(w.ctx, metav1.ListOptions{})
	if err != nil {
		return w.refused("nodes", err)
	}
	for i := range list.Items {
		n := NodeStatus{Name: list.Items[i].Name, Detail: "has not reported"}
		for _, c := range list.Items[i].Status.Conditions {
			if c.Type == v1.NodeReady {
				n.Ready, n.Detail = c.Status == v1.ConditionTrue, c.Message
			}
		}
		if list.Items[i].Spec.Unschedulable {
			n.Detail = "cordoned; " + n.Detail
		}
		w.Nodes = append(w.Nodes, n)
	}
	return nil
}

func (w *surveyor) csi() error {
	drivers, err := w.core.StorageV1().CSIDrivers().List(w.ctx, metav1.ListOptions{})
	if err != nil {
		return w.refused("csidrivers", err)
	}
	for i := range drivers.Items {
		d := w.driver(drivers.Items[i].Name)
		d.AttachRequired = ptr.Deref(drivers.Items[i].Spec.AttachRequired, true)
	}
	nodes, err := w.core.StorageV1().CSINodes().List(w.ctx, metav1.ListOptions{})
	if err != nil {
		return w.refused("csinodes", err)
	}
	for i := range nodes.Items {
		for _, n := range nodes.Items[i].Spec.Drivers {
			d := w.driver(n.Name)
			d.Nodes = append(d.Nodes, nodes.Items[i].Name)
			if n.Allocatable != nil {
				d.Limit = n.Allocatable.Count
			}
		}
	}
	attachments, err := w.core.StorageV1().VolumeAttachments().List(w.ctx, metav1.ListOptions{})
	if err != nil {
		return w.refused("volumeattachments", err)
	}
	for i := range attachments.Items {
		w.node(attachments.Items[i].Spec.NodeName).Attached++
	}
	return w.capacities()
}

// capacities adds up what drivers tell; classes of one driver on one topology tell of the same space.
func (w *surveyor) capacities() error {
	classes, err := w.core.StorageV1().StorageClasses().List(w.ctx, metav1.ListOptions{})
	if err != nil {
		return w.refused("storageclasses", err)
	}
	provisioners := map[string]string{}
	w.late = map[string]bool{}
	for i := range classes.Items {
		provisioners[classes.Items[i].Name] = classes.Items[i].Provisioner
		w.late[classes.Items[i].Name] = late(&classes.Items[i])
	}
	list, err := w.core.StorageV1().CSIStorageCapacities("").List(w.ctx, metav1.ListOptions{})
	if err != nil {
		return w.refused("csistoragecapacities", err)
	}
	largest := map[[2]string]int64{}
	for i := range list.Items {
		o := &list.Items[i]
		if driver := provisioners[o.StorageClassName]; driver != "" && o.Capacity != nil {
			key := [2]string{driver, metav1.FormatLabelSelector(o.NodeTopology)}
			largest[key] = max(largest[key], o.Capacity.Value())
		}
	}
	for key, n := range largest {
		d := w.driver(key[0])
		d.Available = max(d.Available, 0) + n
	}
	return nil
}

func (w *surveyor) volumes() error {
	list, err := w.core.CoreV1().PersistentVolumes().List(w.ctx, metav1.ListOptions{})
	if err != nil {
		return w.refused("persistentvolumes", err)
	}
	for i := range list.Items {
		pv := &list.Items[i]
		w.Volumes[phaseOf(string(pv.Status.Phase), pv.DeletionTimestamp)]++
		if pv.Spec.CSI != nil {
			w.driver(pv.Spec.CSI.Driver).Volumes++
		}
		if pv.Spec.FlexVolume != nil {
			w.flexVolume(pv.Spec.FlexVolume.Driver)
		}
		since := pv.CreationTimestamp.Time
		if t := pv.Status.LastPhaseTransitionTime; t != nil {
			since = t.Time
		}
		failed := pv.Status.Phase == v1.VolumeFailed
		leaving := pv.DeletionTimestamp != nil || pv.Status.Phase == v1.VolumeReleased && pv.Spec.PersistentVolumeReclaimPolicy == v1.PersistentVolumeReclaimDelete
		if failed || leaving && w.Asked.Sub(since) > patience {
			w.attend(PV, "", pv.Name, phaseOf(string(pv.Status.Phase), pv.DeletionTimestamp), since)
		}
	}
	return nil
}

func (w *surveyor) claims() error {
	list, err := w.core.CoreV1().PersistentVolumeClaims("").List(w.ctx, metav1.ListOptions{})
	if err != nil {
		return w.refused("persistentvolumeclaims", err)
	}
	for i := range list.Items {
		c := &list.Items[i]
		if w.waitsForFirstPod(c) {
			w.Claims[WaitsForFirstPod]++
			continue
		}
		w.Claims[phaseOf(string(c.Status.Phase), c.DeletionTimestamp)]++
		if c.Status.Phase == v1.ClaimBound {
			w.Requested += c.Status.Capacity.Storage().Value()
			continue
		}
		if c.Status.Phase == v1.ClaimLost || w.Asked.Sub(c.CreationTimestamp.Time) > patience {
			w.attend(PVC, c.Namespace, c.Name, string(c.Status.Phase), c.CreationTimestamp.Time)
		}
	}
	return nil
}

func (w *surveyor) waitsForFirstPod(c *v1.PersistentVolumeClaim) bool {
	if c.Status.Phase != v1.ClaimPending || c.DeletionTimestamp != nil || c.Spec.VolumeName != "" ||
		c.Annotations[storagehelpers.AnnSelectedNode] != "" || !w.late[storagehelpers.GetPersistentVolumeClaimClass(c)] {
		return false
	}
	return !slices.ContainsFunc(w.allPods, func(p v1.Pod) bool {
		_, uses := usesClaim(&p, c.Name)
		return uses && p.Namespace == c.Namespace
	})
}

func (w *surveyor) pods() error {
	list, err := w.core.CoreV1().Pods("").List(w.ctx, metav1.ListOptions{})
	if err != nil {
		return w.refused("pods", err)
	}
	for i := range list.Items {
		p := &list.Items[i]
		w.Pods[phaseOf(string(p.Status.Phase), p.DeletionTimestamp)]++
		if finished(p) {
			continue
		}
		w.allPods = append(w.allPods, *p)
		for _, v := range p.Spec.Volumes {
			if v.FlexVolume != nil {
				w.flexVolume(v.FlexVolume.Driver)
			}
		}
		if p.Spec.NodeName != "" {
			w.node(p.Spec.NodeName).Pods++
		}
		since := p.CreationTimestamp.Time
		if p.DeletionTimestamp != nil {
			since = p.DeletionTimestamp.Time
		}
		if ready, _ := holder.Ready(p); (!ready || p.DeletionTimestamp != nil) && w.Asked.Sub(since) > patience {
			state := "not ready"
			if p.DeletionTimestamp != nil {
				state = "being deleted"
			} else if p.Spec.NodeName == "" {
				state = "has no node"
			}
			w.attend(Pod, p.Namespace, p.Name, state, since)
		}
	}
	return nil
}

// registrations finds drivers that tried to register and could not, from the node agents' events.
func (w *surveyor) registrations() error {
	list, err := w.core.CoreV1().Events("").List(w.ctx, metav1.ListOptions{FieldSelector: "reason=FailedPluginRegistration"})
	if err != nil {
		return w.refused("events", err)
	}
	last := map[string]*v1.Event{}
	for i := range list.Items {
		e := &list.Items[i]
		if e.Reason != "FailedPluginRegistration" {
			continue
		}
		name := pluginNamed(e.Message)
		if before := last[name]; before == nil || eventTime(before).Before(eventTime(e)) {
			last[name] = e
		}
	}
	for name, e := range last {
		if d := w.driver(name); len(d.Nodes) == 0 {
			d.Problem = e.Message
		}
	}
	return nil
}

// pluginNamed reads the driver's name off the event "plugin at SOCKET: …"; registration sockets are named after the
// driver, as NAME.sock or NAME-reg.sock.
func pluginNamed(message string) string {
	socket, found := strings.CutPrefix(message, "plugin at ")
	if !found {
		return message
	}
	socket, _, _ = strings.Cut(socket, ": ")
	name := strings.TrimSuffix(path.Base(socket), ".sock")
	return strings.TrimSuffix(name, "-reg")
}

func (w *surveyor) attend(kind Kind, namespace, name, state string, since time.Time) {
	w.Attention = append(w.Attention, Attention{Kind: kind, Namespace: namespace, Name: name, State: state, Since: since})
}

func phaseOf(phase string, deleted *metav1.Time) string {
	if deleted != nil {
		return "Terminating"
	}
	return cmp.Or(phase, "Pending")
}
