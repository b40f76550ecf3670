//go:build component

package cluster_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"berth.io/berth/internal/backend/block"
	"berth.io/berth/internal/backend/cluster"
	"berth.io/berth/internal/block/agent"
	"berth.io/berth/internal/block/objects"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/driver"
	"berth.io/berth/internal/host/loop"
	"berth.io/berth/test/apart"
	"berth.io/berth/test/realapi"
)

func TestMain(m *testing.M) { apart.Run(m) }

const (
	mib   = int64(1) << 20
	nodeA = "node-a"
	nodeB = "node-b.example.com"
)

// world is a real API server with the definitions of deploy/kubernetes/crds, and two Nodes.
type world struct {
	server     *realapi.Server // nil in another process than the one that started it
	kubeconfig string
	config     *rest.Config
	kube       kubernetes.Interface
	objects    *objects.Client
}

func startWorld(t testing.TB) *world {
	t.Helper()
	server := realapi.Start(t, "berth")
	w := worldAt(t, server.Kubeconfig)
	w.server = server
	server.Define(t, "../../../deploy/kubernetes/crds/storage.berth.io_*.yaml")
	w.served(t)
	for _, n := range []string{nodeA, nodeB} {
		w.addNode(t, n)
	}
	return w
}

// worldAt is the API of a kubeconfig.
func worldAt(t testing.TB, kubeconfig string) *world {
	t.Helper()
	w := &world{kubeconfig: kubeconfig}
	var err error
	if w.config, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		t.Fatal(err)
	}
	w.config.QPS = -1
	if w.kube, err = kubernetes.NewForConfig(w.config); err != nil {
		t.Fatal(err)
	}
	if w.objects, err = objects.NewClient(w.config); err != nil {
		t.Fatal(err)
	}
	return w
}

// served waits until the API serves the block store's kinds.
func (w *world) served(t testing.TB) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		_, err := w.objects.Volumes.List(t.Context(), metav1.ListOptions{})
		if err == nil {
			_, err = w.objects.Snapshots.List(t.Context(), metav1.ListOptions{})
		}
		if err == nil {
			_, err = w.objects.Pools.List(t.Context(), metav1.ListOptions{})
		}
		return err
	})
}

func (w *world) addNode(t testing.TB, name string) {
	t.Helper()
	n, err := w.kube.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.setReady(t, n.Name, corev1.ConditionTrue)
}

func (w *world) setReady(t testing.TB, name string, ready corev1.ConditionStatus) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		n, err := w.kube.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready, Reason: "Test", Message: "the test says so", LastTransitionTime: metav1.Now(), LastHeartbeatTime: metav1.Now()}}
		_, err = w.kube.CoreV1().Nodes().UpdateStatus(t.Context(), n, metav1.UpdateOptions{})
		return err
	})
}

// eventually waits, in small steps, for what the test itself has no event of.
func eventually(t testing.TB, within time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", within, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// storage is a node: its pool, its backend, and its agent.
type storage struct {
	node, dir string
	pool      *pool.Pool
	backend   *block.Backend
	agent     *agent.Agent
	stopOnce  sync.Once
	stopAgent func()
}

// serve starts a node's storage in dir, with its agent.
func (w *world) serve(t testing.TB, node, dir string, limit int64) *storage {
	t.Helper()
	s := &storage{node: node, dir: dir}
	loops, err := loop.NewTable()
	if err != nil {
		t.Fatal(err)
	}
	if s.pool, err = pool.Open(t.Context(), pool.Options{Dir: filepath.Join(dir, "pools"), LimitBytes: limit, Loops: loops}); err != nil {
		t.Fatal(err)
	}
	if s.backend, err = block.New(block.Options{Pool: s.pool, Loops: loops, Node: node}); err != nil {
		t.Fatal(err)
	}
	if s.agent, err = agent.New(agent.Options{Node: node, Backend: s.backend, Objects: w.objects, Log: logTo(t)}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { s.agent.Run(ctx); close(ended) }()
	s.stopAgent = func() { cancel(); <-ended }
	t.Cleanup(s.stop)
	eventually(t, 20*time.Second, s.agent.Ready)
	return s
}

// stop ends it as a process that ends.
func (s *storage) stop() {
	s.stopOnce.Do(func() {
		s.stopAgent()
		s.backend.Close()
		s.pool.Close()
	})
}

// newDir is a short directory, emptied of pools at the end.
func newDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pool.Teardown(filepath.Join(dir, "pools")); err != nil {
			t.Error(err)
			return
		}
		os.RemoveAll(dir)
	})
	return dir
}

// control starts the controller's backend.
func (w *world) control(t testing.TB) *cluster.Backend {
	t.Helper()
	factory := informers.NewSharedInformerFactory(w.kube, 0)
	b, err := cluster.New(cluster.Options{Objects: w.objects, Kube: w.kube, Nodes: factory.Core().V1().Nodes(), Log: logTo(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	factory.Start(ctx.Done())
	go func() { b.Run(ctx); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended; factory.Shutdown() })
	eventually(t, 20*time.Second, func() error {
		if !b.Synced() {
			return fmt.Errorf("not synced")
		}
		return nil
	})
	return b
}

// offers waits until the controller knows that a node has room.
func offers(t testing.TB, b *cluster.Backend, node string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		if c, err := b.CapacityOf(t.Context(), node); err != nil || c.Available == 0 {
			return fmt.Errorf("node %s: %+v, %v", node, c, err)
		}
		return nil
	})
}

// run serves a driver on its socket.
func run(t testing.TB, o driver.Options) *grpc.ClientConn {
	t.Helper()
	d, err := driver.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	select {
	case <-d.Serving():
	case err := <-ended:
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix://"+o.SocketPath, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return conn
}

func logTo(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(output(t), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func output(t testing.TB) io.Writer {
	if t, ok := t.(*testing.T); ok {
		return t.Output()
	}
	return io.Discard
}

// counted counts the writes of a client.
type counted struct {
	next http.RoundTripper
	mu   sync.Mutex
	all  map[string]int
}

func (c *counted) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	c.all[r.Method]++
	c.mu.Unlock()
	return c.next.RoundTrip(r)
}
