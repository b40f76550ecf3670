package standalone

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery/cached/memory"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/restmapper"
	clienttesting "k8s.io/client-go/testing"
)

// slowAPI takes definitions and does not serve what they define until the test says so.
type slowAPI struct {
	mu      sync.Mutex
	applied map[string]*unstructured.Unstructured
	waited  map[string]*watch.FakeWatcher
}

func newSlowAPI(t *testing.T) (*slowAPI, *fake.Clientset, *applier) {
	t.Helper()
	a := &slowAPI{applied: map[string]*unstructured.Unstructured{}, waited: map[string]*watch.FakeWatcher{}}
	client := fake.NewClientset()
	client.Resources = []*metav1.APIResourceList{{GroupVersion: "apiextensions.k8s.io/v1", APIResources: []metav1.APIResource{
		{Name: "customresourcedefinitions", Kind: "CustomResourceDefinition", Verbs: metav1.Verbs{"get", "list", "watch", "patch"}}}}}
	kinds := map[schema.GroupVersionResource]string{{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}: "CustomResourceDefinitionList"}
	objects := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), kinds)
	objects.PrependReactor("patch", "customresourcedefinitions", func(act clienttesting.Action) (bool, runtime.Object, error) {
		u := &unstructured.Unstructured{Object: map[string]any{}}
		u.SetName(act.(clienttesting.PatchAction).GetName())
		a.mu.Lock()
		defer a.mu.Unlock()
		a.applied[u.GetName()] = u
		return true, u, nil
	})
	objects.PrependWatchReactor("customresourcedefinitions", func(act clienttesting.Action) (bool, watch.Interface, error) {
		w := watch.NewFake()
		name := strings.TrimPrefix(act.(clienttesting.WatchActionImpl).ListOptions.FieldSelector, "metadata.name=")
		a.mu.Lock()
		defer a.mu.Unlock()
		a.waited[name] = w
		return true, w, nil
	})
	return a, client, &applier{client: objects, mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery()))}
}

// serveNext establishes one definition that is waited for and returns its name; "" when there is none.
func (a *slowAPI) serveNext() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, w := range a.waited {
		delete(a.waited, name)
		u := &unstructured.Unstructured{Object: map[string]any{"status": map[string]any{"conditions": []any{map[string]any{"type": "Established", "status": "True"}}}}}
		u.SetName(name)
		w.Modify(u)
		return name
	}
	return ""
}

// The rooms of a bare instance start with the kinds of snapshots served: nothing is installed that is not waited for.
func TestBareBootstrapWaitsForItsDefinitions(t *testing.T) {
	a, client, applier := newSlowAPI(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := bootstrap(ctx, client, applier, true)
		done <- err
	}()
	served := map[string]bool{}
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			for name := range a.applied {
				if !served[name] {
					t.Errorf("%s was not waited for", name)
				}
			}
			if len(a.applied) < 6 {
				t.Errorf("%d definitions were applied; three of snapshots and three of groups are needed", len(a.applied))
			}
			return
		case <-time.After(time.Millisecond):
			served[a.serveNext()] = true
		}
	}
}
