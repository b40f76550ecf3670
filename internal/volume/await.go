package volume

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// object is what can be waited for: a pointer to an object of the API.
type object interface {
	comparable
	metav1.Object
	runtime.Object
}

// reader reads and watches one kind in one namespace.
type reader[T object] interface {
	Get(ctx context.Context, name string, o metav1.GetOptions) (T, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

// await follows one object from have on (nil: from what the API has) until done says so; done gets nil when the object
// is not there. It returns the object that satisfied done. What comes on tick asks done again between two events.
func await[T object](ctx context.Context, r reader[T], name string, have T, tick <-chan struct{}, done func(o T) (bool, error)) (T, error) {
	var none T
	for {
		if have == none {
			o, err := r.Get(ctx, name, metav1.GetOptions{})
			switch {
			case err == nil:
				have = o
			case !apierrors.IsNotFound(err):
				return none, err
			}
		}
		if ok, err := done(have); ok || err != nil {
			return have, err
		}
		o := metav1.ListOptions{FieldSelector: "metadata.name=" + name}
		if have != none {
			o.ResourceVersion = have.GetResourceVersion()
		}
		w, err := r.Watch(ctx, o)
		if err != nil {
			return have, err
		}
		found, ok, err := follow(ctx, w, have, tick, done)
		w.Stop()
		if ok || err != nil {
			return found, err
		}
		have = none // the watch has ended: look again
	}
}

// follow reads one watch; neither done nor an error says that it has ended.
func follow[T object](ctx context.Context, w watch.Interface, have T, tick <-chan struct{}, done func(o T) (bool, error)) (T, bool, error) {
	var none T
	for {
		select {
		case <-ctx.Done():
			return have, false, ctx.Err()
		case <-tick:
		case e, open := <-w.ResultChan():
			if !open || e.Type == watch.Error {
				return none, false, ctx.Err()
			}
			o, is := e.Object.(T)
			if !is {
				continue // a bookmark of another kind
			}
			if have = o; e.Type == watch.Deleted {
				have = none
			}
		}
		if ok, err := done(have); ok || err != nil {
			return have, ok, err
		}
	}
}

// accountIn waits for the account that the API wants before it takes a pod.
func (s *Service) accountIn(ctx context.Context, namespace string) error {
	_, err := await(ctx, s.client.CoreV1().ServiceAccounts(namespace), "default", nil, nil,
		func(a *corev1.ServiceAccount) (bool, error) { return a != nil, nil })
	if err != nil {
		return fmt.Errorf("the default service account of namespace %s: %w", namespace, err)
	}
	return nil
}

// ErrNotFound says that there is no volume of the name.
var ErrNotFound = errors.New("no such volume")
