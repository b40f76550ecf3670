package provision

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// kinds says which snapshots the API has.
type kinds struct{ single, group bool }

// snapshotKinds knows which kinds of snapshots the API serves. They are custom resources: they may come after the drivers,
// and one after the other. What was served once counts as served: the informers wait until it is again.
type snapshotKinds struct {
	m           *Manager
	queue       workqueue.TypedRateLimitingInterface[string] // group versions
	definitions cache.SharedIndexInformer                    // all CustomResourceDefinitions of the API, their metadata alone

	mu      sync.Mutex
	served  kinds
	changed chan struct{} // closed when served changes, and another one made
}

// snapshotResources are the resources that must be served, by group version.
var snapshotResources = map[string][]string{
	snapv1.SchemeGroupVersion.String():  {"volumesnapshots", "volumesnapshotcontents", "volumesnapshotclasses"},
	groupv1.SchemeGroupVersion.String(): {"volumegroupsnapshots", "volumegroupsnapshotcontents", "volumegroupsnapshotclasses"},
}

var definitionsResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

func newSnapshotKinds(m *Manager) (*snapshotKinds, error) {
	k := &snapshotKinds{m: m, queue: newQueue("provision-snapshot-kinds"), changed: make(chan struct{})}
	k.definitions = metadatainformer.NewFilteredMetadataInformer(m.opts.Definitions, definitionsResource, "", 0, cache.Indexers{}, nil).Informer()
	seen := func(o any) {
		if d, ok := o.(*metav1.PartialObjectMetadata); ok {
			for version, resources := range snapshotResources {
				if defines(version, resources, d.Name) {
					k.queue.Add(version)
				}
			}
		}
	}
	_, err := k.definitions.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: seen, UpdateFunc: func(_, o any) { seen(o) }})
	return k, err
}

// defines says whether a CustomResourceDefinition, which is named PLURAL.GROUP, is one of the group version's resources.
func defines(version string, resources []string, definition string) bool {
	group, _, _ := strings.Cut(version, "/")
	for _, r := range resources {
		if definition == r+"."+group {
			return true
		}
	}
	return false
}

// run asks until every kind is served, and again whenever a definition of one comes or changes.
func (k *snapshotKinds) run(ctx context.Context) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { k.definitions.Run(ctx.Done()) })
	for version := range snapshotResources {
		k.queue.Add(version)
	}
	work(ctx, k.queue, 1, func(_ context.Context, version string) error {
		err := k.look(version)
		if have, _ := k.now(); have.single && have.group {
			stop()
		}
		return err
	})
	wg.Wait()
}

var errNotServed = errors.New("its definition is there, and the API does not serve it yet")

// look asks the API whether it serves a group version. An error says that it is to be asked again.
func (k *snapshotKinds) look(version string) error {
	served, err := serves(k.m.opts.Snap.Discovery(), version, snapshotResources[version])
	switch {
	case err != nil:
		k.m.opts.Log.Warn("cannot serve snapshots yet", "err", err)
		return err
	case served:
		k.learn(version)
	case k.defined(version):
		return errNotServed // the API begins to serve what is defined a moment later, and tells nobody
	}
	return nil
}

func (k *snapshotKinds) defined(version string) bool {
	for _, name := range k.definitions.GetStore().ListKeys() {
		if defines(version, snapshotResources[version], name) {
			return true
		}
	}
	return false
}

func (k *snapshotKinds) learn(version string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	is := &k.served.single
	if version == groupv1.SchemeGroupVersion.String() {
		is = &k.served.group
	}
	if !*is {
		*is = true
		close(k.changed)
		k.changed = make(chan struct{})
	}
}

// now returns the kinds that are served, and a channel that is closed when they change.
func (k *snapshotKinds) now() (kinds, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.served, k.changed
}

// during starts what works with snapshots for the kinds that are served, from the moment on at which snapshots are, and anew
// when there are more kinds. It returns when ctx has ended, and what was started with it: what start registers with
// the scope is taken off, and who joined the wait group is waited for.
func (k *snapshotKinds) during(ctx context.Context, driver string, start func(ctx context.Context, have kinds, s *scope, wg *sync.WaitGroup)) {
	for ctx.Err() == nil {
		have, changed := k.now()
		current, stop := context.WithCancel(ctx)
		s, wg := newScope(driver), &sync.WaitGroup{}
		have.group = have.group && !k.m.opts.WithoutGroups
		if have.single {
			start(current, have, s, wg)
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
		stop()
		s.close()
		wg.Wait()
	}
}

// serves says whether the API has all resources of a group version.
func serves(d interface {
	ServerResourcesForGroupVersion(string) (*metav1.APIResourceList, error)
}, version string, resources []string) (bool, error) {
	list, err := d.ServerResourcesForGroupVersion(version)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask the API for %s: %w", version, err)
	}
	have := map[string]bool{}
	for _, r := range list.APIResources {
		have[r.Name] = true
	}
	for _, r := range resources {
		if !have[r] {
			return false, nil
		}
	}
	return true, nil
}
