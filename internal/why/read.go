package why

import (
	"context"
	"fmt"
	"slices"

	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
)

// pageSize is how many objects one answer of the API has at most, as kubectl asks for them.
const pageSize = 500

// reader asks the API, each list once. A question about one object gets what it names; one about many (whole) takes
// everything from the lists, so that the number of requests does not grow with the number of pods.
type reader struct {
	ctx        context.Context
	client     kubernetes.Interface
	whole      bool
	lists      map[string]any                   // by kind and namespace
	spread     map[string]bool                  // kinds of which all namespaces are in lists
	users      map[string]map[string][]v1.Pod   // by namespace and claim
	told       map[string]map[string][]v1.Event // by namespace and kind/name
	unreadable []string                         // kinds that the user may not read
}

func newReader(ctx context.Context, client kubernetes.Interface, whole bool) *reader {
	return &reader{ctx: ctx, client: client, whole: whole, lists: map[string]any{}, spread: map[string]bool{},
		users: map[string]map[string][]v1.Pod{}, told: map[string]map[string][]v1.Event{}}
}

// absent turns "not found" into no error; forbidden is noted and tolerated, as the rest of the answer is still good.
func (r *reader) absent(kind string, err error) error {
	switch {
	case err == nil || apierrors.IsNotFound(err):
		return nil
	case apierrors.IsForbidden(err):
		if !slices.Contains(r.unreadable, kind) {
			r.unreadable = append(r.unreadable, kind)
		}
		return nil
	}
	return fmt.Errorf("read %s: %w", kind, err)
}

// listed returns all pages of a list, and the same again when it is asked for again. Kinds that may not be read are empty.
func listed[L runtime.Object, T any](r *reader, kind, namespace string, list func(context.Context, metav1.ListOptions) (L, error), items func(L) []T) ([]T, error) {
	key := kind + "/" + namespace
	if had, ok := r.lists[key]; ok {
		return had.([]T), nil
	}
	if r.spread[kind] && namespace != metav1.NamespaceAll {
		return nil, nil
	}
	var all []T
	options := metav1.ListOptions{Limit: pageSize}
	for {
		page, err := list(r.ctx, options)
		if apierrors.IsResourceExpired(err) && options.Continue != "" { // the list is longer than its snapshot lives: all at once
			all, options = nil, metav1.ListOptions{}
			continue
		}
		if err != nil {
			all = nil
			if err := r.absent(kind, err); err != nil {
				return nil, err
			}
			break
		}
		all = append(all, items(page)...)
		if options.Continue = any(page).(metav1.ListInterface).GetContinue(); options.Continue == "" {
			break
		}
	}
	r.lists[key] = all
	return all, nil
}

func (r *reader) pods(namespace string) ([]v1.Pod, error) {
	return listed(r, "pods", namespace, r.client.CoreV1().Pods(namespace).List, func(l *v1.PodList) []v1.Pod { return l.Items })
}

func (r *reader) claims(namespace string) ([]v1.PersistentVolumeClaim, error) {
	return listed(r, "persistentvolumeclaims", namespace, r.client.CoreV1().PersistentVolumeClaims(namespace).List,
		func(l *v1.PersistentVolumeClaimList) []v1.PersistentVolumeClaim { return l.Items })
}

func (r *reader) volumes() ([]v1.PersistentVolume, error) {
	return listed(r, "persistentvolumes", "", r.client.CoreV1().PersistentVolumes().List, func(l *v1.PersistentVolumeList) []v1.PersistentVolume { return l.Items })
}

func (r *reader) nodes() ([]v1.Node, error) {
	return listed(r, "nodes", "", r.client.CoreV1().Nodes().List, func(l *v1.NodeList) []v1.Node { return l.Items })
}

func (r *reader) classes() ([]storagev1.StorageClass, error) {
	return listed(r, "storageclasses", "", r.client.StorageV1().StorageClasses().List, func(l *storagev1.StorageClassList) []storagev1.StorageClass { return l.Items })
}

func (r *reader) drivers() ([]storagev1.CSIDriver, error) {
	return listed(r, "csidrivers", "", r.client.StorageV1().CSIDrivers().List, func(l *storagev1.CSIDriverList) []storagev1.CSIDriver { return l.Items })
}

func (r *reader) csiNodes() ([]storagev1.CSINode, error) {
	return listed(r, "csinodes", "", r.client.StorageV1().CSINodes().List, func(l *storagev1.CSINodeList) []storagev1.CSINode { return l.Items })
}

func (r *reader) attachments() ([]storagev1.VolumeAttachment, error) {
	return listed(r, "volumeattachments", "", r.client.StorageV1().VolumeAttachments().List, func(l *storagev1.VolumeAttachmentList) []storagev1.VolumeAttachment { return l.Items })
}

func (r *reader) capacities() ([]storagev1.CSIStorageCapacity, error) {
	return listed(r, "csistoragecapacities", "", r.client.StorageV1().CSIStorageCapacities("").List,
		func(l *storagev1.CSIStorageCapacityList) []storagev1.CSIStorageCapacity { return l.Items })
}

// leases are read where that is allowed. Few roles allow it, and no answer needs them: that they may not be read is not told.
func (r *reader) leases() []coordinationv1.Lease {
	had := slices.Clone(r.unreadable)
	list := func(ctx context.Context, o metav1.ListOptions) (*coordinationv1.LeaseList, error) {
		o.FieldSelector = "metadata.namespace!=" + v1.NamespaceNodeLease // one for each node
		return r.client.CoordinationV1().Leases("").List(ctx, o)
	}
	leases, err := listed(r, "leases", "", list, func(l *coordinationv1.LeaseList) []coordinationv1.Lease { return l.Items })
	if r.unreadable = had; err != nil {
		return nil
	}
	return leases
}

// allEvents are those of a namespace.
func (r *reader) allEvents(namespace string) ([]v1.Event, error) {
	return listed(r, "events", namespace, r.client.CoreV1().Events(namespace).List, func(l *v1.EventList) []v1.Event { return l.Items })
}

// eventsIndexed are those of a namespace about one object ("Pod/app").
func (r *reader) eventsIndexed(namespace, object string) ([]v1.Event, error) {
	if by, had := r.told[namespace]; had {
		return by[object], nil
	}
	all, err := r.allEvents(namespace)
	if err != nil {
		return nil, err
	}
	by := map[string][]v1.Event{}
	for i := range all {
		about := all[i].InvolvedObject.Kind + "/" + all[i].InvolvedObject.Name
		by[about] = append(by[about], all[i])
	}
	r.told[namespace] = by
	return by[object], nil
}

// usersOf are the pods that use a claim.
func (r *reader) usersOf(namespace, claim string) ([]v1.Pod, error) {
	by, had := r.users[namespace]
	if !had {
		pods, err := r.pods(namespace)
		if err != nil {
			return nil, err
		}
		by = map[string][]v1.Pod{}
		for i := range pods {
			for name := range claimsOf(&pods[i]) {
				by[name] = append(by[name], pods[i])
			}
		}
		r.users[namespace] = by
	}
	return slices.Clone(by[claim]), nil
}

func (r *reader) pod(namespace, name string) (*v1.Pod, error) {
	return one(r, "pods", name, func() ([]v1.Pod, error) { return r.pods(namespace) }, r.client.CoreV1().Pods(namespace).Get,
		func(o *v1.Pod) string { return o.Name })
}

func (r *reader) claim(namespace, name string) (*v1.PersistentVolumeClaim, error) {
	return one(r, "persistentvolumeclaims", name, func() ([]v1.PersistentVolumeClaim, error) { return r.claims(namespace) },
		r.client.CoreV1().PersistentVolumeClaims(namespace).Get, func(o *v1.PersistentVolumeClaim) string { return o.Name })
}

func (r *reader) node(name string) (*v1.Node, error) {
	return one(r, "nodes", name, r.nodes, r.client.CoreV1().Nodes().Get, func(o *v1.Node) string { return o.Name })
}

func (r *reader) volume(name string) (*v1.PersistentVolume, error) {
	return one(r, "persistentvolumes", name, r.volumes, r.client.CoreV1().PersistentVolumes().Get, func(o *v1.PersistentVolume) string { return o.Name })
}

// one returns the object, nil when it is not there or may not be read.
func one[T any](r *reader, kind, name string, list func() ([]T, error), get func(context.Context, string, metav1.GetOptions) (*T, error), nameOf func(*T) string) (*T, error) {
	if r.whole {
		all, err := list()
		if err != nil {
			return nil, err
		}
		if at := slices.IndexFunc(all, func(o T) bool { return nameOf(&o) == name }); at >= 0 {
			return &all[at], nil
		}
		return nil, nil
	}
	o, err := get(r.ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, r.absent(kind, err)
	}
	return o, nil
}
