package intree

import (
	"context"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// listWatch lists and watches the one object of key.
func (s *sources) listWatch(key objectKey) cache.ListerWatcher {
	only := fields.OneTermEqualSelector(metav1.ObjectNameField, key.name).String()
	core := s.client.CoreV1()
	list := func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		o.FieldSelector = only
		if key.kind == secrets {
			return core.Secrets(key.namespace).List(ctx, o)
		}
		return core.ConfigMaps(key.namespace).List(ctx, o)
	}
	watch := func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		o.FieldSelector = only
		if key.kind == secrets {
			return core.Secrets(key.namespace).Watch(ctx, o)
		}
		return core.ConfigMaps(key.namespace).Watch(ctx, o)
	}
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{ListWithContextFunc: list, WatchFuncWithContext: watch}, s.client)
}

func (k objectKey) newObject() runtime.Object {
	if k.kind == secrets {
		return &v1.Secret{}
	}
	return &v1.ConfigMap{}
}

// newerThan compares resource versions; a version that cannot be compared counts as newer, so that nothing is missed.
func newerThan(a, b runtime.Object) bool {
	va, vb := versionOf(a), versionOf(b)
	if va == vb {
		return false
	}
	order, err := resourceversion.CompareResourceVersion(va, vb)
	return err != nil || order > 0
}
