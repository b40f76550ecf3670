//go:build component

package cluster_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"berth.io/berth/internal/backend/block"
	"berth.io/berth/internal/backend/cluster"
	"berth.io/berth/internal/block/agent"
	"berth.io/berth/internal/block/objects"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/driver"
	"berth.io/berth/internal/host/loop"
	"berth.io/berth/test/apart"
)

func TestMain(m *testing.M) { apart.Run(m) }

const (
	mib   = int64(1) << 20
	nodeA = "node-a"
	nodeB = "node-b.example.com"
)

// world is a real API server (berth-apiserver in bin/, or the one that BERTH_APISERVER names) with the definitions of
// deploy/kubernetes/crds, and two Nodes.
type world struct {
	kubeconfig string
	config     *rest.Config
	kube       kubernetes.Interface
	objects    *objects.Client
	start      func() *exec.Cmd
	server     *exec.Cmd
}

// stop kills the API server; restart starts it again, with what it had, at the same address.
func (w *world) stop() { w.server.Process.Kill(); w.server.Wait() }

func (w *world) restart() { w.server = w.start() }

func startWorld(t testing.TB) *world {
	t.Helper()
	bin := os.Getenv("BERTH_APISERVER")
	if bin == "" {
		bin, _ = filepath.Abs("../../../bin/berth-apiserver")
	}
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("no API server: %v; run `make component`, which builds it", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	dir, err := os.MkdirTemp("", "bc") // short: there are unix sockets in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	start := func() *exec.Cmd {
		cmd := exec.Command(bin, "--data-dir", dir, "--listen", addr)
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	server := start()
	var w *world
	t.Cleanup(func() {
		if w != nil {
			server = w.server
		}
		server.Process.Kill()
		server.Wait()
	})
	w = worldAt(t, filepath.Join(dir, "kubeconfig"))
	w.start, w.server = start, server
	w.define(t)
	for _, n := range []string{nodeA, nodeB} {
		w.addNode(t, n)
	}
	return w
}

// worldAt is the API of a kubeconfig, as soon as it answers.
func worldAt(t testing.TB, kubeconfig string) *world {
	t.Helper()
	w := &world{kubeconfig: kubeconfig}
	eventually(t, time.Minute, func() (err error) {
		w.config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
		return err
	})
	w.config.QPS = -1
	var err error
	if w.kube, err = kubernetes.NewForConfig(w.config); err != nil {
		t.Fatal(err)
	}
	if w.objects, err = objects.NewClient(w.config); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func() error {
		_, err := w.kube.CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	return w
}

// define installs the definitions, and waits until the API serves them.
func (w *world) define(t testing.TB) {
	t.Helper()
	client, err := dynamic.NewForConfig(w.config)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../../../deploy/kubernetes/crds/storage.berth.io_*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("definitions: %v, %v", files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(b, &u.Object); err != nil {
			t.Fatal(err)
		}
		crds := client.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
		if _, err := crds.Create(t.Context(), u, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatalf("%s: %v", f, err)
		}
	}
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
