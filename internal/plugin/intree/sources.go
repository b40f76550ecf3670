package intree

import (
	"context"
	"fmt"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"berth.io/berth/internal/apiclient"
)

// objectKind is the kind of object that a volume can show, as the API spells it in a pod.
type objectKind string

const (
	configMaps objectKind = "configMap"
	secrets    objectKind = "secret"
)

type objectKey struct {
	kind            objectKind
	namespace, name string
}

func (k objectKey) String() string { return fmt.Sprintf("%s %q", k.kind, k.name) }

// linger keeps a watch after its last pod, because the next pod of the namespace wants the same root certificates.
const linger = 2 * time.Minute

// sources reads config maps and secrets, and watches those that a pod of this node refers to: one watch per object, as
// the kubelet's watch-based manager, so that a node never holds, and need not be allowed to list, all secrets.
type sources struct {
	client   kubernetes.Interface
	onChange func(podUID types.UID, volumeName string)

	mu      sync.Mutex
	objects map[objectKey]*object
	pods    map[types.UID]map[objectKey]bool
	stopped bool
	running sync.WaitGroup
}

// user is a volume that shows an object.
type user struct {
	pod    types.UID
	volume string
}

// object is one watched object.
type object struct {
	store  cache.Store
	synced func() bool
	cancel context.CancelFunc
	// users: the version that each was served last; absent means never, empty means "not there".
	users   map[user]*served
	expires *time.Timer
}

// served is what a volume shows now.
type served struct {
	yet      bool
	version  string
	optional bool
}

func newSources(client kubernetes.Interface, onChange func(types.UID, string)) *sources {
	return &sources{client: client, onChange: onChange, objects: map[objectKey]*object{}, pods: map[types.UID]map[objectKey]bool{}}
}

// setPod watches what the pod's volumes show. The sources of a pod never change after it was made.
func (s *sources) setPod(pod *v1.Pod) {
	if s.client == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.pods[pod.UID]; known || s.stopped {
		return
	}
	keys := map[objectKey]bool{}
	references(pod, func(key objectKey, volume string, optional bool) {
		keys[key] = true
		o := s.objects[key]
		if o == nil {
			o = s.watch(key)
		}
		if o.expires != nil {
			o.expires.Stop()
			o.expires = nil
		}
		o.users[user{pod.UID, volume}] = &served{optional: optional}
	})
	s.pods[pod.UID] = keys
}

func (s *sources) releasePod(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.pods[uid] {
		o := s.objects[key]
		if o == nil {
			continue
		}
		for u := range o.users {
			if u.pod == uid {
				delete(o.users, u)
			}
		}
		if len(o.users) == 0 && o.expires == nil {
			o.expires = time.AfterFunc(linger, func() { s.expire(key, o) })
		}
	}
	delete(s.pods, uid)
}

// expire ends the watch of an object that no pod uses any more.
func (s *sources) expire(key objectKey, o *object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects[key] != o || len(o.users) > 0 {
		return
	}
	delete(s.objects, key)
	o.cancel()
}

// watch starts the watch of one object; s.mu is held.
func (s *sources) watch(key objectKey) *object {
	ctx, cancel := context.WithCancel(context.Background())
	o := &object{cancel: cancel, users: map[user]*served{}}
	// The name is checked once more: a server may ignore the field selector (client-go's fake does).
	changed := func(obj any, gone bool) {
		if m, err := meta.Accessor(obj); err != nil || m.GetName() != key.name {
			return
		}
		if gone {
			obj = nil
		}
		s.changed(o, obj)
	}
	store, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: s.listWatch(key),
		ObjectType:    key.newObject(),
		Transform:     apiclient.WithoutManagedFields, // a config map's are often larger than its data
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { changed(obj, false) },
			UpdateFunc: func(_, obj any) { changed(obj, false) },
			DeleteFunc: func(obj any) {
				if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
					obj = last.Obj
				}
				changed(obj, true)
			},
		},
	})
	o.store, o.synced = store, informer.HasSynced
	s.objects[key] = o
	s.running.Go(func() { informer.RunWithContext(ctx) })
	return o
}

// changed tells the volumes that show another version of the object than obj (nil: it was deleted).
func (s *sources) changed(o *object, obj any) {
	version := ""
	if obj != nil {
		version = versionOf(obj)
	}
	var tell []user
	s.mu.Lock()
	for u, was := range o.users {
		// A volume that was never served reads the new version by itself. A volume whose object was deleted keeps its
		// files, as with the kubelet, unless the object is optional: then it becomes empty.
		if was.yet && was.version != version && (obj != nil || was.optional) {
			tell = append(tell, u)
		}
	}
	s.mu.Unlock()
	for _, u := range tell {
		s.onChange(u.pod, u.volume)
	}
}

// read returns the object's data for one volume: from the watch when that has the object, else from the API (the watch
// may not have heard of it yet). The error is the API's.
func (s *sources) read(ctx context.Context, key objectKey, pod types.UID, volume string) (map[string][]byte, error) {
	obj, watched := s.cached(key)
	var err error
	if obj == nil {
		if obj, err = s.get(ctx, key); err != nil {
			obj = nil
		}
	}
	version := ""
	if obj != nil {
		version = versionOf(obj)
	}
	if watched != nil {
		s.mu.Lock()
		if now, ok := watched.users[user{pod, volume}]; ok {
			now.yet, now.version = true, version
		}
		s.mu.Unlock()
		// The watch may have brought a newer version between the read and the note: look once more.
		if newer := watched.get(key); newer != nil && obj != nil && newerThan(newer, obj) || newer != nil && obj == nil {
			s.onChange(pod, volume)
		}
	}
	if err != nil {
		return nil, err
	}
	return dataOf(obj), nil
}

// cached returns the watched object, and what the watch has of it.
func (s *sources) cached(key objectKey) (runtime.Object, *object) {
	s.mu.Lock()
	o := s.objects[key]
	s.mu.Unlock()
	if o == nil || !o.synced() {
		return nil, o
	}
	return o.get(key), o
}

func (o *object) get(key objectKey) runtime.Object {
	obj, ok, err := o.store.GetByKey(key.namespace + "/" + key.name)
	if err != nil || !ok {
		return nil
	}
	return obj.(runtime.Object)
}

func (s *sources) get(ctx context.Context, key objectKey) (runtime.Object, error) {
	if key.kind == secrets {
		return s.client.CoreV1().Secrets(key.namespace).Get(ctx, key.name, metav1.GetOptions{})
	}
	return s.client.CoreV1().ConfigMaps(key.namespace).Get(ctx, key.name, metav1.GetOptions{})
}

// stop ends all watches and waits for them.
func (s *sources) stop() {
	s.mu.Lock()
	s.stopped = true
	for key, o := range s.objects {
		if o.expires != nil {
			o.expires.Stop()
		}
		o.cancel()
		delete(s.objects, key)
	}
	s.mu.Unlock()
	s.running.Wait()
}

// references calls fn for each config map and secret that a volume of the pod shows.
func references(pod *v1.Pod, fn func(key objectKey, volume string, optional bool)) {
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		ref := func(kind objectKind, name string, optional *bool) {
			fn(objectKey{kind, pod.Namespace, name}, v.Name, optional != nil && *optional)
		}
		switch {
		case v.ConfigMap != nil:
			ref(configMaps, v.ConfigMap.Name, v.ConfigMap.Optional)
		case v.Secret != nil:
			ref(secrets, v.Secret.SecretName, v.Secret.Optional)
		case v.Projected != nil:
			for _, p := range v.Projected.Sources {
				if p.ConfigMap != nil {
					ref(configMaps, p.ConfigMap.Name, p.ConfigMap.Optional)
				}
				if p.Secret != nil {
					ref(secrets, p.Secret.Name, p.Secret.Optional)
				}
			}
		}
	}
}

func versionOf(obj any) string {
	if m, err := meta.Accessor(obj); err == nil {
		return m.GetResourceVersion()
	}
	return ""
}

// dataOf returns the object's keys as bytes.
func dataOf(obj runtime.Object) map[string][]byte {
	switch o := obj.(type) {
	case *v1.Secret:
		return o.Data
	case *v1.ConfigMap:
		data := make(map[string][]byte, len(o.Data)+len(o.BinaryData))
		for k, v := range o.Data {
			data[k] = []byte(v)
		}
		for k, v := range o.BinaryData {
			data[k] = v
		}
		return data
	}
	return nil
}
