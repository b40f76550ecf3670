package try

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"berth.io/berth/internal/boundary"
)

// reader is the part of a typed client that waits need.
type reader[T runtime.Object] interface {
	Get(ctx context.Context, name string, o metav1.GetOptions) (T, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

// await returns the object when done says so; state is what a reader is told when it never does. An object that does
// not exist is passed as found=false.
func await[T runtime.Object](ctx context.Context, r reader[T], what, name string, done func(o T, found bool) (ok bool, state string)) (T, error) {
	state := "not looked at yet"
	for {
		o, ok, err := watched(ctx, r, name, &state, done)
		if ok {
			return o, nil
		}
		if ctx.Err() != nil {
			return o, fmt.Errorf("%s %s: %w; it is: %s", what, name, context.Cause(ctx), state)
		}
		if err != nil { // the API is away for a moment: the instance is being restarted
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}
}

// watched follows one watch to its end.
func watched[T runtime.Object](ctx context.Context, r reader[T], name string, state *string, done func(T, bool) (bool, string)) (o T, ok bool, err error) {
	w, err := r.Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()})
	if err != nil {
		return o, false, err
	}
	defer w.Stop()
	// After the watch has begun, so that nothing falls between the two.
	o, err = r.Get(ctx, name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return o, false, err
	}
	if ok, *state = done(o, err == nil); ok {
		return o, true, nil
	}
	for {
		select {
		case e, open := <-w.ResultChan():
			if !open {
				return o, false, nil
			}
			seen, is := e.Object.(T)
			if !is {
				return o, false, errors.New("the watch failed")
			}
			if ok, *state = done(seen, e.Type != watch.Deleted); ok {
				return seen, true, nil
			}
		case <-ctx.Done():
			return o, false, ctx.Err()
		}
	}
}

// gone is a done for await.
func gone[T metav1.Object](o T, found bool) (bool, string) {
	if !found {
		return true, ""
	}
	if fs := o.GetFinalizers(); len(fs) > 0 {
		return false, fmt.Sprintf("still there, held by the finalizers %q", fs)
	}
	return false, "still there"
}

// create makes an object; one that is there is left.
func create[T any](ctx context.Context, f func(context.Context, T, metav1.CreateOptions) (T, error), o T) (out T, err error) {
	err = boundary.Do("try/create", func() error {
		out, err = f(ctx, o, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			out, err = o, nil
		}
		return err
	})
	return out, err
}

// update writes an object.
func update[T any](ctx context.Context, f func(context.Context, T, metav1.UpdateOptions) (T, error), o T) (out T, err error) {
	err = boundary.Do("try/update", func() error {
		out, err = f(ctx, o, metav1.UpdateOptions{})
		return err
	})
	return out, err
}

// remove deletes an object; one that is not there is fine.
func remove(ctx context.Context, f func(context.Context, string, metav1.DeleteOptions) error, name string) error {
	return boundary.Do("try/delete", func() error {
		now := int64(0)
		if err := f(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now}); !apierrors.IsNotFound(err) {
			return err
		}
		return nil
	})
}

// eachWorkers ask the API at once.
const eachWorkers = 8

// each does the same with all items, several at a time, and returns every error.
func each[T any](items []T, do func(T) error) error {
	var work errgroup.Group
	work.SetLimit(eachWorkers)
	errs := make([]error, len(items))
	for i, item := range items {
		work.Go(func() error {
			errs[i] = do(item)
			return nil
		})
	}
	_ = work.Wait()
	return errors.Join(errs...)
}
