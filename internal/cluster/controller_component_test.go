//go:build component

package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/test/realapi"
)

const foreignDriver = "foreign.example.com"

// A user adds a driver's socket and nothing else: its claims get volumes, which go with the claims. The driver may come after the
// controller.
func TestADriverBehindASocket(t *testing.T) {
	w := newWorld(t)
	socket := filepath.Join(w.dir, "f", "csi.sock")
	p, http := w.controller("a", "--csi-address", socket, "--controllers=*,-block")
	w.answers("http://"+http+"/healthz", 200)
	if body := w.answers("http://"+http+"/readyz", 503); !strings.Contains(body, "informers") {
		w.eventually("readyz to name the driver", 10*time.Second, func() error {
			if _, body := get("http://" + http + "/readyz"); !strings.Contains(body, socket) {
				return errors.New(body)
			}
			return nil
		})
	}
	_, state := w.foreign()
	w.answers("http://"+http+"/readyz", 200)
	w.class(foreignDriver)
	for i := range 5 {
		w.claim(fmt.Sprintf("c%d", i))
	}
	for i := range 5 {
		w.bound(fmt.Sprintf("c%d", i))
	}
	if body := w.answers("http://"+http+"/metrics", 200); !strings.Contains(body, `berth_lane_items{driver_name="foreign.example.com",lane="provision"} 0`) {
		t.Error("the lanes are not among the metrics")
	}
	if err := w.api.CoreV1().PersistentVolumeClaims("default").DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("the volumes to go", time.Minute, func() error {
		left, err := os.ReadDir(state)
		if n := len(w.volumes()); n > 0 || len(left) > 0 {
			return fmt.Errorf("%d PersistentVolumes, %d at the driver", n, len(left))
		}
		return err
	})
	if code := p.end(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d after SIGTERM:\n%s", code, p.output())
	}
	lease, err := w.api.CoordinationV1().Leases("default").Get(t.Context(), "berth-controller", metav1.GetOptions{})
	if err != nil || lease.Spec.HolderIdentity != nil && *lease.Spec.HolderIdentity != "" {
		t.Errorf("the lease was not given back: %+v, %v", lease.Spec, err)
	}
}

// Two controllers. The one that leads is stopped for longer than its lease lasts, in the middle of work; the other takes over. When the first
// runs again it ends, with an error, and there is one volume for each claim.
func TestTwoControllersAfterALostLease(t *testing.T) {
	w := newWorld(t)
	socket, state := w.foreign()
	w.class(foreignDriver)
	short := []string{"--csi-address", foreignDriver + "=" + socket, "--controllers=provision,attach", "--leader-election-lease-duration=4s", "--leader-election-renew-deadline=3s",
		"--leader-election-retry-period=500ms"}
	a, aHTTP := w.controller("a", short...)
	w.answers("http://"+aHTTP+"/readyz", 200)
	w.eventually("a to lead", time.Minute, func() error { return leads(aHTTP) })
	b, bHTTP := w.controller("b", short...)
	w.answers("http://"+bHTTP+"/readyz", 200) // it stands by
	if leads(bHTTP) == nil {
		t.Fatal("both lead")
	}
	for i := range 20 {
		w.claim(fmt.Sprintf("c%d", i))
	}
	w.eventually("work to begin", time.Minute, func() error {
		if len(w.volumes()) == 0 {
			return errors.New("no volume")
		}
		return nil
	})
	if err := a.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	w.eventually("b to lead", time.Minute, func() error { return leads(bHTTP) })
	for i := 20; i < 40; i++ {
		w.claim(fmt.Sprintf("c%d", i))
	}
	if err := a.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if code := a.exit(t, 20*time.Second); code != 1 || !strings.Contains(a.output(), ErrNoLease.Error()) {
		t.Errorf("a ended with %d:\n%s", code, a.output())
	}
	for i := range 40 {
		w.bound(fmt.Sprintf("c%d", i))
	}
	at, err := os.ReadDir(state)
	if n := len(w.volumes()); err != nil || n != 40 || len(at) != 40 {
		t.Errorf("%d PersistentVolumes and %d volumes for 40 claims (%v)", n, len(at), err)
	}
	if code := b.end(t, syscall.SIGTERM); code != 0 {
		t.Errorf("b ended with %d", code)
	}
}

func leads(http string) error {
	if code, body := get("http://" + http + "/debug/status"); code != 200 || !strings.Contains(body, `"Leader":true`) {
		return fmt.Errorf("%d %s", code, body)
	}
	return nil
}

// The API is away for longer than the lease lasts: the controller ends with an error, and does not hang.
func TestAnAPIThatStaysAway(t *testing.T) {
	w := newWorld(t)
	socket, _ := w.foreign()
	a, http := w.controller("a", "--csi-address", socket, "--controllers=provision", "--leader-election-lease-duration=4s", "--leader-election-renew-deadline=3s",
		"--leader-election-retry-period=500ms")
	w.answers("http://"+http+"/readyz", 200)
	w.eventually("a to lead", time.Minute, func() error { return leads(http) })
	w.server.Kill()
	if code := a.exit(t, 20*time.Second); code != 1 || !strings.Contains(a.output(), ErrNoLease.Error()) {
		t.Errorf("ended with %d:\n%s", code, a.output())
	}
}

// What is typed wrong is said at once, with the name of the flag, and exit code 2.
func TestWrongFlags(t *testing.T) {
	w := &world{T: t, bin: realapi.Programs(t, "berth")}
	for _, c := range []struct {
		want string
		args []string
	}{
		{"--controllers", []string{"controller", "--controllers=atach"}},
		{"--feature-gates", []string{"controller", "--feature-gates=Nothing=true"}},
		{"--csi-address", []string{"controller", "--csi-address=relative.sock"}},
		{"--worker-threads", []string{"controller", "--worker-threads=0"}},
		{"--kube-api-qps", []string{"controller", "--kube-api-qps=-1"}},
		{"--leader-election-renew-deadline", []string{"controller", "--leader-election-renew-deadline=1m"}},
		{"--logging-format", []string{"controller", "--logging-format=xml"}},
		{"-v 99", []string{"controller", "-v=99"}},
		{"--kubernetes", []string{"node"}},
		{"--node-name", []string{"node", "--kubernetes"}},
		{"--pool-size", []string{"node", "--kubernetes", "--node-name=n", "--pool-size=banana"}},
		{"--kubelet-dir", []string{"node", "--kubernetes", "--node-name=n", "--kubelet-dir=x"}},
	} {
		p := w.start([]string{"KUBECONFIG=", "KUBE_NODE_NAME=", "NODE_NAME="}, filepath.Join(w.bin, "berth"), c.args...)
		if code := p.exit(t, 20*time.Second); code != 2 || !strings.Contains(p.output(), c.want) || strings.Count(p.output(), "\n") != 1 {
			t.Errorf("berth %s: exit code %d, %q; want 2 and %s", strings.Join(c.args, " "), code, p.output(), c.want)
		}
	}
}
