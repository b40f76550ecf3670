package deploy

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
)

// bin is the directory of the programs (`make build`).
func bin(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("BERTH_BIN")
	if dir == "" {
		t.Skip("BERTH_BIN does not say where the programs are: `make build`, then BERTH_BIN=$PWD/bin")
	}
	return dir
}

// TestArgumentsAreFlags: whatever the chart gives to a program is a flag of it.
func TestArgumentsAreFlags(t *testing.T) {
	program := filepath.Join(bin(t), "berth")
	objects := render(t, values(t, everything))
	sets := map[string][]string{
		"controller": workload[appsv1.Deployment](t, objects, "Deployment", "berth-controller").Spec.Template.Spec.Containers[0].Args,
		"node":       workload[appsv1.DaemonSet](t, objects, "DaemonSet", "berth-node").Spec.Template.Spec.Containers[0].Args,
	}
	for command, args := range sets {
		if args[0] != command {
			t.Errorf("the first argument is %q, want %q", args[0], command)
		}
		help, err := exec.Command(program, command, "--help").CombinedOutput()
		if err != nil {
			t.Fatalf("berth %s --help: %v: %s", command, err, help)
		}
		for _, arg := range args[1:] {
			flag, _, _ := strings.Cut(arg, "=")
			if !strings.Contains(string(help), flag+" ") && !strings.Contains(string(help), flag+"\n") {
				t.Errorf("berth %s has no flag %s", command, flag)
			}
		}
	}
}

// TestApply: one `kubectl apply -k` on an empty cluster makes everything, a second one nothing, and the API server has no warning.
func TestApply(t *testing.T) {
	kubectl := startAPI(t, bin(t))
	first := kubectl("apply", "-k", filepath.Join(root, "deploy/kubernetes"))
	if !strings.Contains(first, "daemonset.apps/berth-node created") || strings.Contains(first, "Warning") {
		t.Errorf("first apply: %s", first)
	}
	kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
	second := kubectl("apply", "-k", filepath.Join(root, "deploy/kubernetes"))
	if strings.Contains(second, "created") {
		t.Errorf("second apply: %s", second)
	}
	// What the Job would do.
	classes := kubectl("get", "configmap", "-n", "berth-system", "berth-snapshot-classes", "-o", `jsonpath={.data.classes\.yaml}`)
	file := filepath.Join(t.TempDir(), "classes.yaml")
	if err := os.WriteFile(file, []byte(classes), 0o600); err != nil {
		t.Fatal(err)
	}
	made := kubectl("apply", "--server-side", "--force-conflicts", "--field-manager=berth", "-f", file)
	for _, kind := range []string{"volumesnapshotclass", "volumegroupsnapshotclass"} {
		if !strings.Contains(made, kind) {
			t.Errorf("%s is not made: %s", kind, made)
		}
	}
}

// startAPI runs an API server for the test; the function runs kubectl on it and fails the test when that fails.
func startAPI(t *testing.T, bin string) func(args ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "deploy") // short: etcd listens on a unix socket in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ready, tell, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	api := exec.Command(filepath.Join(bin, "berth-apiserver"), "--data-dir", dir, "--listen", "127.0.0.1:7655", "--ready-fd", "3")
	api.ExtraFiles = []*os.File{tell}
	api.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := api.Start(); err != nil {
		t.Fatal(err)
	}
	tell.Close()
	t.Cleanup(func() {
		_ = api.Process.Signal(syscall.SIGTERM)
		_ = api.Wait()
	})
	if err := ready.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(ready).ReadString('\n'); err != nil {
		t.Fatalf("the API server does not get ready: %v", err)
	}
	return func(args ...string) string {
		t.Helper()
		out, err := exec.Command(filepath.Join(bin, "berth"), append([]string{"kubectl", "--kubeconfig", filepath.Join(dir, "kubeconfig")}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
}
