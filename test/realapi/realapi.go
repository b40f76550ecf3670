// Package realapi gives a test a real API server: berth-apiserver from the directory that BERTH_BIN names, or from bin/.
package realapi

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"berth.io/berth/internal/apiclient"
	"berth.io/berth/internal/apiserver"
)

// Server is an API server that ends with its test.
type Server struct {
	Kubeconfig string
	// Config has no limit of rate.
	Config *rest.Config

	options apiserver.Options
	process *apiserver.Process
}

// Programs is the directory of the project's programs, all of which must be there.
func Programs(t testing.TB, names ...string) string {
	t.Helper()
	bin := os.Getenv("BERTH_BIN")
	if bin == "" {
		_, self, _, _ := runtime.Caller(0)
		bin = filepath.Join(filepath.Dir(self), "../../bin")
	}
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			t.Fatalf("no %s: %v; run `make component`, which builds it", name, err)
		}
	}
	return bin
}

// Start returns when the API is ready. controllers says who runs the volume controllers: "berth" (nobody does, here) or "upstream".
func Start(t testing.TB, controllers string) *Server {
	t.Helper()
	bin := Programs(t, apiserver.Program)
	dir, err := os.MkdirTemp("", "api-") // short: there are unix sockets in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	s := &Server{Kubeconfig: filepath.Join(dir, "kubeconfig")}
	s.options = apiserver.Options{Binary: filepath.Join(bin, apiserver.Program), Dir: filepath.Join(dir, "api"), Listen: FreeAddress(t),
		Kubeconfig: s.Kubeconfig, Controllers: controllers, Log: log}
	s.Restart(t)
	t.Cleanup(s.Kill)
	if s.Config, err = clientcmd.BuildConfigFromFlags("", s.Kubeconfig); err != nil {
		t.Fatal(err)
	}
	s.Config.QPS = -1
	return s
}

// Kill is kill -9. It may be called again.
func (s *Server) Kill() {
	select {
	case <-s.process.Done(): // its number may be another's by now
		return
	default:
	}
	_ = syscall.Kill(s.process.PID(), syscall.SIGKILL)
	<-s.process.Done()
}

// Restart starts a server that was killed, with what it had, at the same address.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	var err error
	if s.process, err = apiserver.Start(t.Context(), s.options); err != nil {
		t.Fatal(err)
	}
}

// Client for the kinds that are built in.
func (s *Server) Client(t testing.TB) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(apiclient.Protobuf(s.Config))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// Define installs the CustomResourceDefinitions of the files; it does not wait until they are served.
func (s *Server) Define(t testing.TB, pattern string) {
	t.Helper()
	client, err := dynamic.NewForConfig(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	definitions := client.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no definitions at %s (%v)", pattern, err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(b, &u.Object); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if _, err := definitions.Create(t.Context(), u, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatalf("%s: %v", file, err)
		}
	}
}

// FreeAddress is one of the loopback that nobody listens on now.
func FreeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
