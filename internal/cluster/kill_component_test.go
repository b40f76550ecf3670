//go:build component

package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/driver"
)

// diesAt waits until a process has died at its boundary.
func (p *process) diesAt(t *testing.T, point string) {
	t.Helper()
	p.exit(t, time.Minute)
	if s, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !s.Signaled() || s.Signal() != syscall.SIGKILL || !strings.Contains(p.output(), "killed at "+point) {
		t.Fatalf("%s: ended with %s:\n%s", point, p.cmd.ProcessState, p.output())
	}
}

// Killed at each of its own boundaries, the next controller of the same pod leads at once and serves; and it ends as it should.
func TestControllerKilledAtItsBoundaries(t *testing.T) {
	w := newWorld(t)
	w.server.Define(t, "../../deploy/kubernetes/crds/storage.berth.io_block*.yaml")
	tmp := filepath.Join(w.dir, "tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", tmp)
	flags := []string{"--controllers=block,provision", "--leader-election-lease-duration=4s", "--leader-election-renew-deadline=3s", "--leader-election-retry-period=300ms"}
	for _, point := range []string{"cluster/take-lease:before", "cluster/take-lease:after", "cluster/renew-lease:before", "cluster/renew-lease:after",
		"cluster/make-socket-directory:before", "cluster/make-socket-directory:after", "cluster/remove-socket-directory:before", "cluster/remove-socket-directory:after"} {
		t.Setenv(boundary.EnvKillAt, point)
		p, http := w.controller("a", flags...)
		if strings.HasPrefix(point, "cluster/remove-") {
			w.answers("http://"+http+"/readyz", 200)
			w.eventually("it to lead", time.Minute, func() error { return leads(http) })
			if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
		p.diesAt(t, point)
		if err := os.Unsetenv(boundary.EnvKillAt); err != nil {
			t.Fatal(err)
		}
		next, http := w.controller("a", flags...)
		w.eventually("the next to lead after "+point, time.Minute, func() error { return leads(http) })
		w.answers("http://"+http+"/readyz", 200)
		if code := next.end(t, syscall.SIGTERM); code != 0 {
			t.Errorf("%s: the next ended with %d:\n%s", point, code, next.output())
		}
		if err := w.api.CoordinationV1().Leases("default").Delete(t.Context(), "berth-controller", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// over says whether a process has ended.
func (p *process) over() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// asAtFirst gives the node its taint again, and takes the driver from CSINode.
func (w *world) asAtFirst() {
	w.Helper()
	w.eventually("the node as at first", 20*time.Second, func() error {
		n, err := w.api.CoreV1().Nodes().Get(w.Context(), "n1", metav1.GetOptions{})
		if err != nil {
			return err
		}
		n.Spec.Taints = append(n.Spec.Taints[:0:0], others, notReady)
		if _, err := w.api.CoreV1().Nodes().Update(w.Context(), n, metav1.UpdateOptions{}); err != nil {
			return err
		}
		c, err := w.api.StorageV1().CSINodes().Get(w.Context(), "n1", metav1.GetOptions{})
		if err != nil {
			return err
		}
		c.Spec.Drivers = nil
		_, err = w.api.StorageV1().CSINodes().Update(w.Context(), c, metav1.UpdateOptions{})
		return err
	})
}

// The same for a node: the taint goes, and the FlexVolume drivers find their socket.
func TestNodeKilledAtItsBoundaries(t *testing.T) {
	w := newWorld(t)
	w.server.Define(t, "../../deploy/kubernetes/crds/storage.berth.io_block*.yaml")
	w.nodeObject()
	kubelet, data, flex := filepath.Join(w.dir, "kubelet"), filepath.Join(w.dir, "data"), filepath.Join(w.dir, "exec")
	for _, dir := range []string{kubelet, flex} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { tearDown(t, data) })
	flags := []string{"--pool-size", "2Gi", "--install-flexvolume", flex}
	for _, point := range []string{"cluster/name-flexvolume-socket:before", "cluster/name-flexvolume-socket:after", "cluster/remove-taint:before", "cluster/remove-taint:after"} {
		t.Setenv(boundary.EnvKillAt, point)
		taint := strings.HasPrefix(point, "cluster/remove-taint")
		if taint {
			w.asAtFirst()
		}
		p, _ := w.node(kubelet, data, flags...)
		for end := time.Now().Add(time.Minute); taint && time.Now().Before(end) && !p.over(); time.Sleep(50 * time.Millisecond) {
			_ = w.kubelet(kubelet, driver.BlockName) // which the process may not live to see the end of
		}
		p.diesAt(t, point)
		if err := os.Unsetenv(boundary.EnvKillAt); err != nil {
			t.Fatal(err)
		}
		next, http := w.node(kubelet, data, flags...)
		w.answers("http://"+http+"/healthz", 200)
		if b, err := os.ReadFile(filepath.Join(flex, "berth~block", ".berth-socket")); err != nil || strings.TrimSpace(string(b)) != filepath.Join(data, "run", "flexvolume.sock") {
			w.eventually("the socket's name after "+point, 20*time.Second, func() error {
				b, err = os.ReadFile(filepath.Join(flex, "berth~block", ".berth-socket"))
				if err == nil && strings.TrimSpace(string(b)) != filepath.Join(data, "run", "flexvolume.sock") {
					err = errors.New(string(b))
				}
				return err
			})
		}
		if taint {
			w.eventually("the registration", time.Minute, func() error { return w.kubelet(kubelet, driver.BlockName) })
			w.eventually("the taint to go", 20*time.Second, func() error {
				if got := w.taints(); got != others.Key+" " {
					return errors.New(got)
				}
				return nil
			})
		}
		if code := next.end(t, syscall.SIGTERM); code != 0 {
			t.Errorf("%s: the next ended with %d:\n%s", point, code, next.output())
		}
	}
	if _, err := os.Stat(pool.ImagePath(filepath.Join(data, "pools"), "default")); err != nil {
		t.Error(err)
	}
}
