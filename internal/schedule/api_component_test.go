//go:build component

package schedule

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	storagehelpers "k8s.io/component-helpers/storage/volume"

	"berth.io/berth/test/realapi"
)

// apiServer is a real one, which takes pods.
func apiServer(t *testing.T) kubernetes.Interface {
	t.Helper()
	client := realapi.Start(t, "berth").Client(t)
	var err error
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if _, err = client.CoreV1().ServiceAccounts("default").Get(t.Context(), "default", metav1.GetOptions{}); err == nil {
			return client
		}
	}
	t.Fatalf("no account for pods: %v", err)
	return nil
}

// stamps notes when something was first seen, by name.
type stamps struct {
	mu   sync.Mutex
	seen map[string]time.Time
}

func (s *stamps) see(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.seen[name]; !ok {
		s.seen[name] = time.Now()
	}
}

func (s *stamps) at(name string) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[name]
}

func (s *stamps) count(prefix string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.seen {
		if strings.HasPrefix(name, prefix) {
			n++
		}
	}
	return n
}

// TestWithRealAPI: claims that are provisioned and claims that take volumes which are there, one at a time for the
// latency, then 200 at once; a stand-in binds the claims. At the end a refusal, its report and its end.
func TestWithRealAPI(t *testing.T) {
	client := apiServer(t)
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	node, err := client.CoreV1().Nodes().Create(ctx, testNode("n1"), metav1.CreateOptions{})
	must(err)
	node.Status.Allocatable, node.Status.Capacity = testNode("n1").Status.Allocatable, testNode("n1").Status.Allocatable
	_, err = client.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{})
	must(err)
	node, err = client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
	must(err)
	if len(node.Spec.Taints) > 0 { // put on by admission until the node is Ready
		node.Spec.Taints = nil
		_, err = client.CoreV1().Nodes().Update(ctx, node, metav1.UpdateOptions{})
		must(err)
	}
	for _, c := range []string{"late", "static"} {
		provisioner := map[string]string{"late": "d.csi", "static": "kubernetes.io/no-provisioner"}[c]
		_, err = client.StorageV1().StorageClasses().Create(ctx, testClass(c, late, provisioner), metav1.CreateOptions{})
		must(err)
	}

	factory := informers.NewSharedInformerFactory(client, 0)
	events := record.NewFakeRecorder(10000)
	s, err := New(Options{Client: client, Informers: factory, Events: events})
	must(err)
	st := &stamps{seen: map[string]time.Time{}}
	binder := standIn{client: client, stamps: st}
	_, err = factory.Core().V1().PersistentVolumeClaims().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		UpdateFunc: func(_, o any) { binder.claim(ctx, o.(*v1.PersistentVolumeClaim)) },
	})
	must(err)
	_, err = factory.Core().V1().PersistentVolumes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		UpdateFunc: func(_, o any) { binder.volume(ctx, o.(*v1.PersistentVolume)) },
	})
	must(err)
	_, err = factory.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { st.see("pod " + o.(*v1.Pod).Name) },
		UpdateFunc: func(_, o any) {
			if p := o.(*v1.Pod); p.Spec.NodeName != "" {
				st.see("placed " + p.Name)
			}
		},
	})
	must(err)
	run, cancel := context.WithCancel(ctx)
	factory.Start(run.Done())
	done := make(chan error, 1)
	go func() { done <- s.Run(run) }()
	defer func() { cancel(); must(<-done); factory.Shutdown() }()
	factory.WaitForCacheSync(run.Done())

	make := func(name, class string) {
		if class == "static" {
			pv := testVolume("pv-"+name, class, "1Gi")
			pv.UID = ""
			pv, err := client.CoreV1().PersistentVolumes().Create(ctx, pv, metav1.CreateOptions{})
			must(err)
			pv.Status.Phase = v1.VolumeAvailable
			_, err = client.CoreV1().PersistentVolumes().UpdateStatus(ctx, pv, metav1.UpdateOptions{})
			must(err)
		}
		claim := testClaim(name, class, "1Gi")
		claim.Namespace, claim.UID = "default", ""
		_, err := client.CoreV1().PersistentVolumeClaims("default").Create(ctx, claim, metav1.CreateOptions{})
		must(err)
		_, err = client.CoreV1().Pods("default").Create(ctx, realPod(name, name), metav1.CreateOptions{})
		must(err)
	}
	wait := func(what string, n int) {
		t.Helper()
		for end := time.Now().Add(60 * time.Second); st.count(what) < n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				w, _ := s.Waiting(ctx)
				t.Fatalf("%d of %d %s; waiting: %v", st.count(what), n, what, w)
			}
		}
	}
	for _, class := range []string{"late", "static"} {
		var toClaim, toPlace []time.Duration
		for i := range 20 {
			name := fmt.Sprintf("%s-one-%d", class, i)
			make(name, class)
			wait("placed "+name, 1)
			toClaim = append(toClaim, st.at("asked "+name).Sub(st.at("pod "+name)))
			toPlace = append(toPlace, st.at("placed "+name).Sub(st.at("bound "+name)))
		}
		t.Logf("%s: pod seen → decision seen %v; claim bound seen → pod's node seen %v (median of 20, a write and its event within each)", class, median(toClaim), median(toPlace))
	}
	began := time.Now()
	for i := range 100 {
		make(fmt.Sprintf("late-many-%d", i), "late")
		make(fmt.Sprintf("static-many-%d", i), "static")
	}
	wait("placed late-many-", 100)
	wait("placed static-many-", 100)
	t.Logf("200 pods and claims created, bound and placed in %v", time.Since(began))

	_, err = client.CoreV1().Pods("default").Create(ctx, realPod("lonely", "nobody"), metav1.CreateOptions{})
	must(err)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		p, err := client.CoreV1().Pods("default").Get(ctx, "lonely", metav1.GetOptions{})
		must(err)
		if m := reportedMessage(p); m == `0/1 nodes are available: persistentvolumeclaim "nobody" not found.` {
			break
		} else if time.Now().After(end) {
			t.Fatalf("condition says %q", m)
		}
	}
	late := testClaim("nobody", "late", "1Gi")
	late.Namespace, late.UID = "default", ""
	_, err = client.CoreV1().PersistentVolumeClaims("default").Create(ctx, late, metav1.CreateOptions{})
	must(err)
	wait("placed lonely", 1)
}

func realPod(name, claim string) *v1.Pod {
	p := testPod(name, claim)
	p.Namespace, p.UID = "default", ""
	p.Spec.Containers[0].Image = "none"
	return p
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2].Round(10 * time.Microsecond)
}

// standIn binds claims the moment that it sees them ready for it, with the same last write as the PV controller.
type standIn struct {
	client kubernetes.Interface
	*stamps
}

func (b standIn) claim(ctx context.Context, c *v1.PersistentVolumeClaim) {
	switch {
	case fullyBound(c):
		b.see("bound " + c.Name)
	case c.Annotations[storagehelpers.AnnSelectedNode] != "" && c.Spec.VolumeName == "":
		b.see("asked " + c.Name)
		go func() {
			pv := testVolume("pvc-"+c.Name, "late", "1Gi", refTo(c.Name))
			pv.UID, pv.Spec.ClaimRef.Namespace, pv.Spec.ClaimRef.UID = "", c.Namespace, c.UID
			if _, err := b.client.CoreV1().PersistentVolumes().Create(ctx, pv, metav1.CreateOptions{}); err == nil {
				b.bind(ctx, c.Namespace, c.Name, pv.Name)
			}
		}()
	}
}

func (b standIn) volume(ctx context.Context, pv *v1.PersistentVolume) {
	if r := pv.Spec.ClaimRef; r != nil && strings.HasPrefix(pv.Name, "pv-") {
		b.mu.Lock()
		_, known := b.seen["asked "+r.Name]
		b.mu.Unlock()
		if b.see("asked " + r.Name); !known {
			go b.bind(ctx, r.Namespace, r.Name, pv.Name)
		}
	}
}

func (b standIn) bind(ctx context.Context, namespace, claim, pv string) {
	body := fmt.Sprintf(`{"metadata":{"annotations":{%q:"yes"}},"spec":{"volumeName":%q}}`, storagehelpers.AnnBindCompleted, pv)
	_, _ = b.client.CoreV1().PersistentVolumeClaims(namespace).Patch(ctx, claim, types.MergePatchType, []byte(body), metav1.PatchOptions{})
}
