package objects

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/apiclient"
)

// Client of the objects of storage.berth.io: the block store's, and the schedules of a namespace (empty: of all).
type Client struct {
	Pools     *gentype.ClientWithList[*api.BlockPool, *api.BlockPoolList]
	Volumes   *gentype.ClientWithList[*api.BlockVolume, *api.BlockVolumeList]
	Snapshots *gentype.ClientWithList[*api.BlockSnapshot, *api.BlockSnapshotList]
	Schedules func(namespace string) *gentype.ClientWithList[*api.SnapshotSchedule, *api.SnapshotScheduleList]
}

// NewClient makes one from the configuration of any client; its limits of rate do not count, since each write here is one that a
// user waits for. Custom resources are spoken of in JSON.
func NewClient(config *rest.Config) (*Client, error) {
	scheme := runtime.NewScheme()
	if err := api.AddToScheme(scheme); err != nil {
		return nil, err
	}
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	c := rest.CopyConfig(config)
	c.QPS, c.RateLimiter = -1, nil
	c.GroupVersion, c.APIPath = &api.GroupVersion, "/apis"
	c.ContentType, c.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("client of %s: %w", api.Group, err)
	}
	parameters := runtime.NewParameterCodec(scheme)
	return &Client{
		Pools: gentype.NewClientWithList(api.BlockPoolResource.Resource, client, parameters, "",
			func() *api.BlockPool { return &api.BlockPool{} }, func() *api.BlockPoolList { return &api.BlockPoolList{} }),
		Volumes: gentype.NewClientWithList(api.BlockVolumeResource.Resource, client, parameters, "",
			func() *api.BlockVolume { return &api.BlockVolume{} }, func() *api.BlockVolumeList { return &api.BlockVolumeList{} }),
		Snapshots: gentype.NewClientWithList(api.BlockSnapshotResource.Resource, client, parameters, "",
			func() *api.BlockSnapshot { return &api.BlockSnapshot{} }, func() *api.BlockSnapshotList { return &api.BlockSnapshotList{} }),
		Schedules: func(namespace string) *gentype.ClientWithList[*api.SnapshotSchedule, *api.SnapshotScheduleList] {
			return gentype.NewClientWithList(api.SnapshotScheduleResource.Resource, client, parameters, namespace,
				func() *api.SnapshotSchedule { return &api.SnapshotSchedule{} }, func() *api.SnapshotScheduleList { return &api.SnapshotScheduleList{} })
		},
	}, nil
}

// Select says which objects an informer sees: those with the label, those of the name; empty: all.
type Select struct{ Label, Name string }

func (s Select) in(o *metav1.ListOptions) {
	o.LabelSelector = s.Label
	if s.Name != "" {
		o.FieldSelector = "metadata.name=" + s.Name
	}
}

type reader[L runtime.Object] interface {
	List(ctx context.Context, opts metav1.ListOptions) (L, error)
	Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)
}

// Informer of one of the client's kinds, of which example is an empty one. It is to be run by its caller.
func Informer[L runtime.Object](client reader[L], example runtime.Object, s Select, indexers cache.Indexers) (cache.SharedIndexInformer, error) {
	informer := cache.NewSharedIndexInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			s.in(&o)
			return client.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			s.in(&o)
			return client.Watch(ctx, o)
		},
	}, example, 0, indexers)
	return informer, informer.SetTransform(apiclient.WithoutManagedFields)
}

// Last is the object of a deletion that an informer may have seen too late.
func Last(o any) any {
	if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
		return gone.Obj
	}
	return o
}

// Get reads an object of an informer's cache; nil when it has none of that name.
func Get[T any](informer cache.SharedIndexInformer, name string) *T {
	o, found, err := informer.GetIndexer().GetByKey(name)
	if err != nil || !found {
		return nil
	}
	t, _ := o.(*T)
	return t
}

// Of reads what an informer's index has under key; all when index is empty.
func Of[T any](informer cache.SharedIndexInformer, index, key string) []*T {
	found := informer.GetIndexer().List
	if index != "" {
		found = func() []any {
			some, _ := informer.GetIndexer().ByIndex(index, key)
			return some
		}
	}
	var out []*T
	for _, o := range found() {
		if t, ok := o.(*T); ok {
			out = append(out, t)
		}
	}
	return out
}
