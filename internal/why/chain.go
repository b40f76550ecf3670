package why

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Chains is the answer about many: each pod's volumes, from the pod to the disk.
type Chains struct {
	Asked time.Time `json:"asked"`
	Links []Link    `json:"links"`
	Notes []string  `json:"notes,omitempty"`
}

// Link is one volume of one pod, or a claim that no pod uses. What is not known is empty.
type Link struct {
	Namespace string   `json:"namespace"`
	Pod       string   `json:"pod,omitempty"`
	PodPhase  string   `json:"podPhase,omitempty"`
	PodReady  bool     `json:"podReady,omitempty"`
	Volume    string   `json:"volume,omitempty"` // pod.spec.volumes[].name
	Claim     string   `json:"claim,omitempty"`
	Phase     string   `json:"claimPhase,omitempty"`
	Size      string   `json:"size,omitempty"`
	Class     string   `json:"class,omitempty"`
	Driver    string   `json:"driver,omitempty"`
	PV        string   `json:"pv,omitempty"`
	Attached  string   `json:"attached,omitempty"` // "yes", "no", "not needed", "elsewhere: n2"; empty when nobody may say
	Object    string   `json:"volumeAttachment,omitempty"`
	Node      string   `json:"node,omitempty"`
	Disk      string   `json:"disk,omitempty"` // pool, path or the driver's handle
	Waiting   *Waiting `json:"waiting,omitempty"`
	Problem   *Problem `json:"problem,omitempty"`
}

// ExplainAll answers for the pods with the labels, and the claims with the labels that no such pod uses; namespace is empty for all.
// It asks for each kind once, however many there are.
func ExplainAll(ctx context.Context, s Sources, namespace, selector string) (*Chains, error) {
	if s.Now.IsZero() {
		s.Now = time.Now()
	}
	pods, err := s.Client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, fmt.Errorf("read pods: %w", err)
	}
	r := newReader(ctx, s.Client, true)
	claims, err := s.Client.CoreV1().PersistentVolumeClaims(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		if err := r.absent("persistentvolumeclaims", err); err != nil {
			return nil, err
		}
		claims = &v1.PersistentVolumeClaimList{}
	}
	if namespace == metav1.NamespaceAll {
		if err := r.spreadAll(); err != nil {
			return nil, err
		}
	}
	all := &Chains{Asked: s.Now}
	used := map[string]bool{}
	for i := range pods.Items {
		p := &pods.Items[i]
		j, err := explain(r, s, Target{Kind: Pod, Namespace: p.Namespace, Name: p.Name})
		if err != nil {
			return nil, err
		}
		if j.Gone || j.Pod == nil {
			continue // it went between the lists
		}
		all.addPod(j)
		for k := range j.Volumes {
			if c := j.Volumes[k].Claim; c != nil {
				used[c.Namespace+"/"+c.Name] = true
			}
		}
	}
	for i := range claims.Items {
		c := &claims.Items[i]
		if used[c.Namespace+"/"+c.Name] {
			continue
		}
		j, err := explain(r, s, Target{Kind: PVC, Namespace: c.Namespace, Name: c.Name})
		if err != nil {
			return nil, err
		}
		if !j.Gone {
			all.addPod(j)
		}
	}
	for _, kind := range r.unreadable {
		all.Notes = append(all.Notes, "you may not read "+kind+"; what follows leaves them out")
	}
	slices.SortStableFunc(all.Links, func(a, b Link) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Pod, b.Pod))
	})
	return all, nil
}

// addPod adds the volumes that have a claim or a driver. A pod without any is told, too: that it has none is an answer.
func (all *Chains) addPod(j *Journey) {
	first := len(all.Links)
	for i := range j.Volumes {
		v := &j.Volumes[i]
		if v.Source != "" && v.Driver == "" && v.Problem == nil {
			continue
		}
		l := Link{Volume: v.Name, Class: v.Class, Driver: v.Driver, Attached: v.Attached, Object: v.Attachment, Node: v.Node, Disk: v.Disk, Waiting: v.Waiting, Problem: v.Problem}
		if v.Claim != nil {
			l.Namespace, l.Claim, l.Phase, l.Size = v.Claim.Namespace, v.Claim.Name, v.Claim.Phase, v.Claim.Requested
		}
		if v.PV != nil {
			l.PV, l.Size = v.PV.Name, cmp.Or(v.PV.Capacity, l.Size)
		}
		l.ofPod(j)
		all.Links = append(all.Links, l)
	}
	if len(all.Links) == first && j.Pod != nil {
		l := Link{Waiting: j.Waiting, Problem: j.Problem}
		l.ofPod(j)
		all.Links = append(all.Links, l)
		return
	}
	for i := first; i < len(all.Links); i++ { // what the pod itself waits for holds all of its volumes back
		if l := &all.Links[i]; l.Waiting == nil && l.Problem == nil {
			l.Waiting, l.Problem = j.Waiting, j.Problem
		} else if l.Problem == nil && j.Problem != nil && l.Pod != "" {
			l.Problem = j.Problem
		}
	}
}

func (l *Link) ofPod(j *Journey) {
	if p := j.Pod; p != nil {
		l.Namespace, l.Pod, l.PodPhase, l.PodReady, l.Node = p.Namespace, p.Name, p.Phase, p.Ready, cmp.Or(l.Node, p.Node)
	}
}

// spreadAll reads what has a namespace from all of them at once, and lays it by namespace.
func (r *reader) spreadAll() error {
	pods, err := r.pods(metav1.NamespaceAll)
	if err != nil {
		return err
	}
	claims, err := r.claims(metav1.NamespaceAll)
	if err != nil {
		return err
	}
	events, err := r.allEvents(metav1.NamespaceAll)
	if err != nil {
		return err
	}
	spread(r, "pods", pods, func(o *v1.Pod) string { return o.Namespace })
	spread(r, "persistentvolumeclaims", claims, func(o *v1.PersistentVolumeClaim) string { return o.Namespace })
	spread(r, "events", events, func(o *v1.Event) string { return o.Namespace })
	return nil
}

func spread[T any](r *reader, kind string, all []T, namespaceOf func(*T) string) {
	by := map[string][]T{}
	for i := range all {
		n := namespaceOf(&all[i])
		by[n] = append(by[n], all[i])
	}
	for n, list := range by {
		r.lists[kind+"/"+n] = list
	}
	r.spread[kind] = true
}

// tellPlace adds where the volume is: its attachment, and the pool, path or handle that has the data.
func tellPlace(f *facts, vf *volumeFacts, v *Volume) {
	if vf.pv == nil {
		return
	}
	v.Disk = diskOf(vf.pv)
	node := ""
	if f.pod != nil {
		node = f.pod.Spec.NodeName
	}
	list := f.attachmentsOf(vf.pvName)
	own := slices.IndexFunc(list, func(a *storagev1.VolumeAttachment) bool { return a.Spec.NodeName == node || node == "" })
	switch {
	case f.unread("volumeattachments") && f.attaches(vf):
	case own >= 0:
		a := list[own]
		v.Attachment, v.Attached = a.Name, "no"
		if a.Status.Attached {
			v.Attached = "yes"
		}
		if a.DeletionTimestamp != nil {
			v.Attached = "detaching"
		}
		if node == "" {
			v.Node = a.Spec.NodeName
		}
	case len(list) > 0:
		v.Attachment, v.Attached = list[0].Name, "elsewhere: "+list[0].Spec.NodeName
	case f.attaches(vf):
		v.Attached = "no"
	default:
		v.Attached = "not needed"
	}
}

// poolKeys are the volume attributes by which drivers name the pool that a volume is in: Ceph RBD and others, OpenEBS LVM and ZFS,
// TopoLVM, LINSTOR.
var poolKeys = []string{"pool", "poolName", "storagePool", "openebs.io/volgroup", "openebs.io/poolname", "topolvm.io/device-class", "linstor.csi.linbit.com/storage-pool"}

// diskOf names what holds the data, as far as the PersistentVolume tells.
func diskOf(pv *v1.PersistentVolume) string {
	s := &pv.Spec.PersistentVolumeSource
	switch {
	case s.Local != nil:
		return s.Local.Path
	case s.HostPath != nil:
		return s.HostPath.Path
	case s.NFS != nil:
		return s.NFS.Server + ":" + s.NFS.Path
	case s.ISCSI != nil:
		return fmt.Sprintf("%s %s lun %d", s.ISCSI.TargetPortal, s.ISCSI.IQN, s.ISCSI.Lun)
	case s.CSI == nil:
		return ""
	}
	for _, k := range poolKeys {
		if pool := s.CSI.VolumeAttributes[k]; pool != "" {
			return "pool " + pool
		}
	}
	if n := nodeOf(pv); n != "" && strings.HasSuffix(s.CSI.Driver, ".csi.berth.io") {
		return "pool of " + n
	}
	return s.CSI.VolumeHandle
}

// nodeOf is the one node on which the volume can be used; empty when there are more, or it does not say.
func nodeOf(pv *v1.PersistentVolume) string {
	if pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil || len(pv.Spec.NodeAffinity.Required.NodeSelectorTerms) != 1 {
		return ""
	}
	for _, r := range pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions {
		if r.Operator == v1.NodeSelectorOpIn && len(r.Values) == 1 && (r.Key == v1.LabelHostname || strings.HasSuffix(r.Key, "/node")) {
			return r.Values[0]
		}
	}
	return ""
}
