// Package apiclient is how Berth's programs read the Kubernetes API: the encoding of their clients, and what their informers keep.
package apiclient

import (
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
)

// Protobuf is a copy of c for the kinds that are built in. It is half the work of JSON on both sides; custom resources and errors still
// come as JSON.
func Protobuf(c *rest.Config) *rest.Config {
	c = rest.CopyConfig(c)
	c.ContentType = runtime.ContentTypeProtobuf
	c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	return c
}

// WithoutManagedFields is an informer's transform. It drops what nobody here reads and what is half of an object's memory. Whoever writes
// the object back loses nothing: an update without managedFields leaves them as they are.
func WithoutManagedFields(o any) (any, error) {
	if m, err := meta.Accessor(o); err == nil {
		m.SetManagedFields(nil)
	}
	return o, nil
}
