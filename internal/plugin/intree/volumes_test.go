package intree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"berth.io/berth/internal/plugin"
)

// paper is a disk without root: mounts are noted, not made.
type paper struct {
	mu     sync.Mutex
	mounts map[string]medium
	binds  map[string]string
	ro     map[string]bool
}

func (d *paper) Mounted(dir string) (bool, medium, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m, ok := d.mounts[dir]; ok {
		return true, m, nil
	}
	_, ok := d.binds[dir]
	return ok, onDisk, nil
}

func (d *paper) Memory(dir string, m medium, _ []string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !exists(dir) {
		return os.ErrNotExist
	}
	d.mounts[dir] = m
	return nil
}

func (d *paper) Bind(source, dir string, ro bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.binds[dir], d.ro[dir] = source, ro
	return nil
}

func (d *paper) Unmount(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.mounts[dir]; ok {
		delete(d.mounts, dir)
		// What was in memory is gone.
		return errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755))
	}
	delete(d.binds, dir)
	return nil
}

// world is a Volumes with a fake API and a paper disk.
type world struct {
	*Volumes
	t       *testing.T
	client  *fake.Clientset
	paper   *paper
	dir     string
	changes chan string
	issued  int
	refuse  error
	expires time.Duration
}

func newWorld(t *testing.T, objects ...runtime.Object) *world {
	w := &world{t: t, client: fake.NewClientset(objects...), dir: t.TempDir(), changes: make(chan string, 100), expires: time.Hour}
	w.paper = &paper{mounts: map[string]medium{}, binds: map[string]string{}, ro: map[string]bool{}}
	w.client.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if a.GetSubresource() != "token" {
			return false, nil, nil
		}
		if w.refuse != nil {
			return true, nil, w.refuse
		}
		r := a.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenRequest).DeepCopy()
		w.issued++
		seconds := int64(w.expires / time.Second)
		r.Spec.ExpirationSeconds = &seconds
		r.Status.Token = fmt.Sprintf("token-%d-%s-%s", w.issued, r.Spec.BoundObjectRef.Name, strings.Join(r.Spec.Audiences, ","))
		r.Status.ExpirationTimestamp = metav1.NewTime(time.Now().Add(w.expires))
		return true, r, nil
	})
	w.Volumes = New(Options{Client: w.client, DataDir: w.dir,
		Allocatable: func() v1.ResourceList {
			return v1.ResourceList{v1.ResourceCPU: resource.MustParse("4"), v1.ResourceMemory: resource.MustParse("1Gi")}
		},
		OnChange: func(uid types.UID, volume string) { w.changes <- string(uid) + "/" + volume }})
	w.disk = w.paper
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

func pod(volumes ...v1.Volume) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "uid", Labels: map[string]string{"l": "v"}},
		Spec: v1.PodSpec{ServiceAccountName: "sa", Volumes: volumes, Containers: []v1.Container{{Name: "c",
			Resources: v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("250m")}}}}},
	}
}

func (w *world) mounter(p *v1.Pod, i int) (plugin.Mounter, *plugin.Volume) {
	w.t.Helper()
	v := &plugin.Volume{Name: p.Spec.Volumes[i].Name, Pod: p, Source: &p.Spec.Volumes[i]}
	found, err := plugin.NewRegistry(w.Plugins()...).Find(v)
	if err != nil {
		w.t.Fatal(err)
	}
	return found.(plugin.Mounter), v
}

func (w *world) publish(p *v1.Pod, i int) (string, error) {
	m, v := w.mounter(p, i)
	out, err := m.Publish(w.t.Context(), plugin.PublishRequest{Volume: v})
	return out.Path, err
}

func (w *world) unpublish(p *v1.Pod, i int) error {
	m, v := w.mounter(p, i)
	return m.Unpublish(w.t.Context(), plugin.UnpublishRequest{PodUID: p.UID, SpecName: v.SpecName(), Mode: v1.PersistentVolumeFilesystem})
}

func ptr[T any](v T) *T { return &v }

func volumeOf(s v1.VolumeSource) v1.Volume { return v1.Volume{Name: "vol", VolumeSource: s} }

// tokenVolume is what admission adds to every pod.
func tokenVolume() v1.Volume {
	return volumeOf(v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{DefaultMode: ptr(int32(0o644)), Sources: []v1.VolumeProjection{
		{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: ptr(int64(3607))}},
		{ConfigMap: &v1.ConfigMapProjection{LocalObjectReference: v1.LocalObjectReference{Name: "kube-root-ca.crt"}, Items: []v1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}},
		{DownwardAPI: &v1.DownwardAPIProjection{Items: []v1.DownwardAPIVolumeFile{{Path: "namespace", FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.namespace"}}}}},
	}}})
}

func configMap(name string, data map[string]string) *v1.ConfigMap {
	return &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, ResourceVersion: "1"}, Data: data}
}

func TestWhatPodVolumesShow(t *testing.T) {
	objects := []runtime.Object{
		configMap("cm", map[string]string{"a": "1", "b": "2"}), configMap("kube-root-ca.crt", map[string]string{"ca.crt": "CA"}),
		&v1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}, Data: map[string][]byte{"k": []byte("secret")}},
	}
	ref := func(name string) v1.LocalObjectReference { return v1.LocalObjectReference{Name: name} }
	for _, c := range []struct {
		name   string
		source v1.VolumeSource
		dir    string
		want   map[string]string
		memory bool
		err    string
	}{
		{name: "configMap", source: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: ref("cm")}},
			dir: "kubernetes.io~configmap", want: map[string]string{"a": "1", "b": "2"}},
		{name: "configMap items", source: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: ref("cm"), Items: []v1.KeyToPath{{Key: "b", Path: "x/y"}}}},
			dir: "kubernetes.io~configmap", want: map[string]string{"x/y": "2"}},
		{name: "missing key", source: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: ref("cm"), Items: []v1.KeyToPath{{Key: "zz", Path: "x"}}}},
			err: `configMap "cm" has no key "zz"`},
		{name: "missing optional key", source: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: ref("cm"), Optional: ptr(true), Items: []v1.KeyToPath{{Key: "zz", Path: "x"}}}},
			dir: "kubernetes.io~configmap", want: map[string]string{}},
		{name: "missing configMap", source: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: ref("none")}}, err: `configMap "none"`},
		{name: "missing optional configMap", source: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: ref("none"), Optional: ptr(true)}},
			dir: "kubernetes.io~configmap", want: map[string]string{}},
		{name: "secret", source: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "s"}}, dir: "kubernetes.io~secret", want: map[string]string{"k": "secret"}, memory: true},
		{name: "path out of the volume", source: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "s", Items: []v1.KeyToPath{{Key: "k", Path: "../../x"}}}}, err: "must not start with"},
		{name: "projected", source: tokenVolume().VolumeSource, dir: "kubernetes.io~projected", want: map[string]string{"token": "token-1-p-", "ca.crt": "CA", "namespace": "ns"}, memory: true},
		{name: "downwardAPI", source: v1.VolumeSource{DownwardAPI: &v1.DownwardAPIVolumeSource{Items: []v1.DownwardAPIVolumeFile{
			{Path: "labels", FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
			{Path: "one", FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.labels['l']"}},
			{Path: "cpu", ResourceFieldRef: &v1.ResourceFieldSelector{ContainerName: "c", Resource: "requests.cpu", Divisor: resource.MustParse("1m")}},
			{Path: "cpus", ResourceFieldRef: &v1.ResourceFieldSelector{ContainerName: "c", Resource: "requests.cpu"}},
			{Path: "limit", ResourceFieldRef: &v1.ResourceFieldSelector{ContainerName: "c", Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}},
		}}}, dir: "kubernetes.io~downward-api", want: map[string]string{"labels": `l="v"`, "one": "v", "cpu": "250", "cpus": "1", "limit": "1024"}, memory: true},
		{name: "downwardAPI of an unknown field", source: v1.VolumeSource{DownwardAPI: &v1.DownwardAPIVolumeSource{Items: []v1.DownwardAPIVolumeFile{
			{Path: "x", FieldRef: &v1.ObjectFieldSelector{FieldPath: "spec.nodeName"}}}}}, err: "unsupported field path"},
		{name: "clusterTrustBundle", source: v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{{ClusterTrustBundle: &v1.ClusterTrustBundleProjection{}}}}}, err: "clusterTrustBundle is not served"},
		{name: "emptyDir", source: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}, dir: "kubernetes.io~empty-dir", want: map[string]string{}},
		{name: "emptyDir in memory", source: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}}, dir: "kubernetes.io~empty-dir", want: map[string]string{}, memory: true},
		{name: "emptyDir of an unknown medium", source: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: "Tape"}}, err: `unknown storage medium "Tape"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, objects...)
			p := pod(volumeOf(c.source))
			w.SetPod(p)
			path, err := w.publish(p, 0)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q", err, c.err)
				}
				if left, _ := filepath.Glob(filepath.Join(w.dir, "pods/uid/volumes/*/*")); len(left) > 0 {
					t.Errorf("a failed publish left %v", left)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if want := filepath.Join(w.dir, "pods/uid/volumes", c.dir, "vol"); path != want {
				t.Errorf("path %s, want %s", path, want)
			}
			if got := look(t, path); !equal(got, c.want) {
				t.Errorf("shows %v, want %v", got, c.want)
			}
			if info, _ := os.Stat(path); info.Mode().Perm() != 0o777 {
				t.Errorf("mode %v", info.Mode())
			}
			if (w.paper.mounts[path] == onMemory) != c.memory {
				t.Errorf("medium %q", w.paper.mounts[path])
			}
			if _, err := w.publish(p, 0); err != nil {
				t.Errorf("publish again: %v", err)
			}
			if w.issued > 1 {
				t.Error("a publish without need asked for another token")
			}
			for range 2 {
				if err := w.unpublish(p, 0); err != nil {
					t.Errorf("unpublish: %v", err)
				}
			}
			if exists(path) || len(w.paper.mounts) > 0 {
				t.Error("unpublish left something")
			}
		})
	}
}

// A config map changes, one appears for which a pod waits: the volume is to be published again, once, and then shows it.
func TestVolumesFollowTheirObjects(t *testing.T) {
	w := newWorld(t, configMap("cm", map[string]string{"a": "1"}))
	p := pod(volumeOf(v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}}}),
		v1.Volume{Name: "late", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "late"}}}})
	w.SetPod(p)
	path, err := w.publish(p, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.publish(p, 1); err == nil {
		t.Fatal("published without its config map")
	}
	maps := w.client.CoreV1().ConfigMaps("ns")
	next := configMap("cm", map[string]string{"a": "2"})
	next.ResourceVersion = "2"
	time.Sleep(50 * time.Millisecond) // the fake API loses events between a list and the watch that follows
	if _, err := maps.Update(t.Context(), next, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.expect("uid/vol")
	if _, err := w.publish(p, 0); err != nil {
		t.Fatal(err)
	}
	if got := look(t, path); got["a"] != "2" {
		t.Errorf("shows %v", got)
	}
	if _, err := maps.Create(t.Context(), configMap("late", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.expect("uid/late")
	if _, err := w.publish(p, 1); err != nil {
		t.Error(err)
	}
	// Deleted: the files stay, as with the kubelet.
	if err := maps.Delete(t.Context(), "cm", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	select {
	case c := <-w.changes:
		t.Errorf("asked to publish %s again", c)
	case <-time.After(50 * time.Millisecond):
	}
	w.ReleasePod(p.UID)
}

func (w *world) expect(change string) {
	w.t.Helper()
	select {
	case got := <-w.changes:
		if got != change {
			w.t.Errorf("asked to publish %s again, want %s", got, change)
		}
	case <-time.After(5 * time.Second):
		w.t.Fatalf("nobody asked to publish %s again", change)
	}
}

func TestTokenIsReplacedInTime(t *testing.T) {
	w := newWorld(t, configMap("kube-root-ca.crt", map[string]string{"ca.crt": "CA"}))
	w.expires = time.Second
	p := pod(tokenVolume())
	path, err := w.publish(p, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.expect("uid/vol")
	time.Sleep(time.Until(w.tokens.issued[tokenKey{"uid", "vol", "", "token"}].renewal))
	if _, err := w.publish(p, 0); err != nil {
		t.Fatal(err)
	}
	if got := look(t, path)["token"]; got != "token-2-p-" {
		t.Errorf("token %q", got)
	}
	w.refuse = errors.New("no")
	time.Sleep(time.Until(w.tokens.issued[tokenKey{"uid", "vol", "", "token"}].renewal))
	if _, err := w.publish(p, 0); err != nil {
		t.Errorf("a token that is still good must be kept: %v", err)
	}
}

func TestRenewal(t *testing.T) {
	issued := time.Unix(1000, 0)
	if got := renewal(issued, time.Hour, 0).Sub(issued); got != 48*time.Minute {
		t.Errorf("an hour's token: %v", got)
	}
	if got := renewal(issued, 365*24*time.Hour, 0).Sub(issued); got != 24*time.Hour {
		t.Errorf("a year's token: %v", got)
	}
}

func TestHostPathTypes(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		kind v1.HostPathType
		err  string
		make bool
	}{
		{path: dir, kind: v1.HostPathDirectory},
		{path: dir, kind: v1.HostPathFile, err: "is not a file"},
		{path: dir + "/file", kind: v1.HostPathFile},
		{path: dir + "/file", kind: v1.HostPathDirectoryOrCreate, err: "is not a directory"},
		{path: dir + "/new/dir", kind: v1.HostPathDirectoryOrCreate, make: true},
		{path: dir + "/new/file", kind: v1.HostPathFileOrCreate, make: true},
		{path: dir + "/no", kind: v1.HostPathDirectory, err: "does not exist"},
		{path: dir + "/no"},
		{path: "/dev/null", kind: v1.HostPathCharDev},
		{path: "/dev/null", kind: v1.HostPathBlockDev, err: "is not a block device"},
		{path: "/dev/null", kind: v1.HostPathSocket, err: "is not a socket file"},
		{path: "/a/../etc", err: "must not contain '..'"},
		{path: dir, kind: "Nonsense", err: "Nonsense is not a type"},
	} {
		w := newWorld(t)
		p := pod(volumeOf(v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: c.path, Type: ptr(c.kind)}}))
		path, err := w.publish(p, 0)
		if c.err == "" && (err != nil || path != c.path) || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s %q: path %q, error %v, want %q", c.path, c.kind, path, err, c.err)
		}
		if c.make && !exists(c.path) {
			t.Errorf("%s was not made", c.path)
		}
	}
}

func TestNestedMountPoints(t *testing.T) {
	p := pod()
	p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{
		{Name: "a", MountPath: "/etc/x/"}, {Name: "b", MountPath: "/etc/x/sub"}, {Name: "c", MountPath: "/etc/x/sub/deep"}, {Name: "d", MountPath: "/etc/xy"},
	}
	if got := nestedMountPoints(p, "a"); !slices.Equal(got, []string{"sub", "sub/deep"}) {
		t.Errorf("nested %v", got)
	}
}

func TestSoleUser(t *testing.T) {
	for _, c := range []struct {
		name string
		pod  *int64
		ctrs []*int64
		want *int64
	}{
		{"nobody says", nil, []*int64{nil}, nil},
		{"pod says", ptr(int64(5)), []*int64{nil, nil}, ptr(int64(5))},
		{"containers agree", nil, []*int64{ptr(int64(6)), ptr(int64(6))}, ptr(int64(6))},
		{"containers differ", nil, []*int64{ptr(int64(6)), ptr(int64(7))}, nil},
		{"one does not say", nil, []*int64{ptr(int64(6)), nil}, nil},
	} {
		p := &v1.Pod{Spec: v1.PodSpec{SecurityContext: &v1.PodSecurityContext{RunAsUser: c.pod}}}
		for _, u := range c.ctrs {
			p.Spec.Containers = append(p.Spec.Containers, v1.Container{SecurityContext: &v1.SecurityContext{RunAsUser: u}})
		}
		got := soleUser(p)
		if (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
