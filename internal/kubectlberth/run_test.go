package kubectlberth

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth.io/berth/internal/why"
)

func run(t *testing.T, args ...string) (out, errOut string, code int) {
	t.Helper()
	var b, e bytes.Buffer
	code = Run(t.Context(), "v1", append([]string{"kubectl-berth"}, args...), &b, &e)
	return b.String(), e.String(), code
}

// TestCommandLine: what cannot be meant ends with 2 and says what is wrong, before anybody is asked.
func TestCommandLine(t *testing.T) {
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"version"}, 0, "v1"},
		{[]string{"why", "--help"}, 0, "kubectl berth why -l app=db"},
		{[]string{"why"}, 2, "name an object"},
		{[]string{"why", "node/x"}, 2, "say pvc/NAME"},
		{[]string{"why", "pvc", "a", "pod/b"}, 2, "there is a kind before it already"},
		{[]string{"why", "pvc/a", "-A"}, 2, "not both"},
		{[]string{"why", "-l", "app=db", "-w"}, 2, "--watch follows one object"},
		{[]string{"why", "-l", "a in"}, 2, "-l: "},
		{[]string{"why", "pvc/a", "-o", "xml"}, 2, "want json, yaml or wide"},
		{[]string{"why", "pvc/a", "--no-such"}, 2, "unknown flag"},
		{[]string{"why", "pvc/a", "pvc/b", "-w"}, 2, "--watch follows one object"},
		{[]string{"why", "pvc/a"}, 1, "no cluster is configured: set KUBECONFIG"},
		{[]string{"why", "pvc/a", "--kubeconfig", "/nonexistent/config"}, 1, "/nonexistent/config"},
		{[]string{"why", "pvc/a", "--context", "none"}, 1, "none"},
	} {
		out, errOut, code := run(t, c.args...)
		if code != c.code || !strings.Contains(out+errOut, c.says) {
			t.Errorf("%s: %d, want %d and %q:\n%s%s", c.args, code, c.code, c.says, out, errOut)
		}
	}
}

// TestTargets: kinds before names, as kubectl has them, and names alone.
func TestTargets(t *testing.T) {
	for line, want := range map[string]string{
		"data":         "pvc/data",
		"pvc a b":      "pvc/a pvc/b",
		"po a":         "pod/a",
		"pv/x pod/y":   "pv/x pod/y",
		"a b":          "pvc/a pvc/b",
		"vs/s":         "volumesnapshot/s",
		"PVC/a":        "pvc/a",
		"snapshot a b": "volumesnapshot/a volumesnapshot/b",
	} {
		targets, err := parseTargets("shop", strings.Fields(line))
		if err != nil {
			t.Errorf("%s: %v", line, err)
		}
		var got []string
		for _, x := range targets {
			got = append(got, string(x.Kind)+"/"+x.Name)
			if (x.Namespace == "") != (x.Kind == why.PV) {
				t.Errorf("%s: namespace %q of %s", line, x.Namespace, x.Kind)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %s, want %s", line, got, want)
		}
	}
}

// TestArrived: --watch ends when nothing is waited for, nothing is wrong, and the pod runs.
func TestArrived(t *testing.T) {
	waits, wrong := &why.Waiting{For: "x"}, &why.Problem{What: "x"}
	for name, c := range map[string]struct {
		journey why.Journey
		want    bool
	}{
		"bound and unused":    {why.Journey{Volumes: []why.Volume{{}}}, true},
		"pod runs":            {why.Journey{Pod: &why.PodState{Ready: true}}, true},
		"pod is over":         {why.Journey{Pod: &why.PodState{Phase: "Succeeded"}}, true},
		"pod starts":          {why.Journey{Pod: &why.PodState{Phase: "Pending"}}, false},
		"volume waits":        {why.Journey{Volumes: []why.Volume{{}, {Waiting: waits}}}, false},
		"volume wrong":        {why.Journey{Volumes: []why.Volume{{Problem: wrong}}}, false},
		"pod waits":           {why.Journey{Pod: &why.PodState{Ready: true}, Waiting: waits}, false},
		"snapshot being made": {why.Journey{Snapshot: &why.SnapshotState{State: "being taken"}}, false},
		"snapshot ready":      {why.Journey{Snapshot: &why.SnapshotState{State: "ready"}}, true},
	} {
		if got := arrived(&c.journey); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestNoServerLinked: the plugin is small because it links client-go alone: no server, and none of kubectl's kustomize.
func TestNoServerLinked(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "berth.io/berth/cmd/kubectl-berth").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		for _, heavy := range []string{"k8s.io/apiserver", "k8s.io/kubectl", "k8s.io/kubernetes", "k8s.io/cli-runtime", "sigs.k8s.io/kustomize", "google.golang.org/grpc", "berth.io/berth/internal/standalone"} {
			if strings.HasPrefix(line, heavy) {
				t.Errorf("links %s", line)
			}
		}
	}
}
