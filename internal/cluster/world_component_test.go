//go:build component

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"berth.io/berth/test/realapi"
)

// world is a real API server with upstream's controllers, and a directory for sockets and state.
type world struct {
	*testing.T
	dir    string
	bin    string
	server *realapi.Server
	api    kubernetes.Interface
	config string // kubeconfig
	// volume that mountVolume made, and its open file.
	volume    string
	closeFile func() error
}

func newWorld(t *testing.T) *world {
	t.Helper()
	bin := realapi.Programs(t, "berth")
	dir, err := os.MkdirTemp("", "bc-") // short: there are unix sockets in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	server := realapi.Start(t, "upstream")
	return &world{T: t, dir: dir, bin: bin, server: server, api: server.Client(t), config: server.Kubeconfig}
}

// process is a program that the test started.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
	mu    sync.Mutex
	out   bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

func (w *world) start(env []string, program string, args ...string) *process {
	w.Helper()
	p := &process{cmd: exec.Command(program, args...), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		w.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	w.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
		if w.Failed() {
			w.Logf("%s %s:\n%s", filepath.Base(program), strings.Join(args, " "), p.output())
		}
	})
	return p
}

// end sends a signal and returns the exit code.
func (p *process) end(t *testing.T, sig syscall.Signal) int {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	return p.exit(t, 30*time.Second)
}

func (p *process) exit(t *testing.T, within time.Duration) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(within):
		t.Fatalf("still running after %s:\n%s", within, p.output())
	}
	return p.cmd.ProcessState.ExitCode()
}

// foreign starts a third party's driver and returns its socket.
func (w *world) foreign(args ...string) (socket, state string) {
	w.Helper()
	program := filepath.Join(w.dir, "foreign")
	if _, err := os.Stat(program); err != nil {
		if out, err := exec.Command("go", "build", "-o", program, "../../test/foreign").CombinedOutput(); err != nil {
			w.Fatalf("%v\n%s", err, out)
		}
	}
	socket, state = filepath.Join(w.dir, "f", "csi.sock"), filepath.Join(w.dir, "volumes")
	w.start(nil, program, append([]string{"--endpoint", socket, "--state", state, "--registry", filepath.Join(w.dir, "reg"), "--node", "n1"}, args...)...)
	return socket, state
}

// controller starts `berth controller` and returns its HTTP address.
func (w *world) controller(name string, args ...string) (*process, string) {
	w.Helper()
	http := realapi.FreeAddress(w.T)
	return w.start([]string{"POD_NAME=" + name, "POD_NAMESPACE=default", "KUBECONFIG="}, filepath.Join(w.bin, "berth"),
		append([]string{"controller", "--kubeconfig", w.config, "--http-endpoint", http}, args...)...), http
}

func (w *world) eventually(what string, within time.Duration, fact func() error) {
	w.Helper()
	var err error
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = fact(); err == nil {
			return
		}
	}
	w.Fatalf("never: %s: %v", what, err)
}

func get(url string) (int, string) {
	c := http.Client{Timeout: 5 * time.Second}
	resp, err := c.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// answers waits until a path answers with a code.
func (w *world) answers(url string, code int) string {
	w.Helper()
	var body string
	w.eventually(fmt.Sprintf("%s to answer %d", url, code), time.Minute, func() error {
		got, b := get(url)
		if body = b; got != code {
			return fmt.Errorf("%d %s", got, b)
		}
		return nil
	})
	return body
}

func (w *world) class(driver string) {
	w.Helper()
	if _, err := w.api.StorageV1().StorageClasses().Create(w.Context(), &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Provisioner: driver}, metav1.CreateOptions{}); err != nil {
		w.Fatal(err)
	}
}

func (w *world) claim(name string) {
	w.Helper()
	class := "c"
	if _, err := w.api.CoreV1().PersistentVolumeClaims("default").Create(w.Context(), &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}}, metav1.CreateOptions{}); err != nil {
		w.Fatal(err)
	}
}

func (w *world) bound(name string) {
	w.Helper()
	w.eventually("claim "+name+" to be bound", time.Minute, func() error {
		c, err := w.api.CoreV1().PersistentVolumeClaims("default").Get(context.Background(), name, metav1.GetOptions{})
		if err == nil && c.Status.Phase != corev1.ClaimBound {
			err = fmt.Errorf("it is %s", c.Status.Phase)
		}
		return err
	})
}

func (w *world) volumes() []corev1.PersistentVolume {
	w.Helper()
	list, err := w.api.CoreV1().PersistentVolumes().List(context.Background(), metav1.ListOptions{})
	if err != nil {
		w.Fatal(err)
	}
	return list.Items
}
