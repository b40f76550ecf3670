package cli

import (
	"bytes"
	"strings"
	"testing"
)

// berthSays runs a command line that must end by itself.
func berthSays(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.Execute()
	return out.String(), err
}

// A wrong command line of the cluster's programs is refused before anything is reached, and names the flag.
func TestClusterCommandsThatAreWrong(t *testing.T) {
	t.Setenv("KUBECONFIG", "")
	for want, args := range map[string][]string{
		"--controllers: no controller is called \"atach\"": {"controller", "--controllers", "provision,atach"},
		"--feature-gates: Topology is always true":         {"controller", "--feature-gates", "Topology=false"},
		"--csi-address ":                       {"controller", "--csi-address", "csi.sock"},
		"--worker-threads 0":                   {"controller", "--worker-threads", "0"},
		"--http-endpoint":                      {"controller", "--http-endpoint", "8080"},
		"-v 11":                                {"controller", "-v", "11"},
		"give --kubernetes":                    {"node"},
		"--node-name":                          {"node", "--kubernetes", "--node-name", ""},
		"--pool-size and --pool-device":        {"node", "--kubernetes", "--node-name", "n", "--pool-size", "1Gi", "--pool-device", "/dev/sdz"},
		"--logging-format \"xml\"":             {"node", "--kubernetes", "--node-name", "n", "--logging-format", "xml"},
		"takes no arguments":                   {"controller", "extra"},
		"unknown flag: --retry-interval-start": {"controller", "--retry-interval-start", "1s"},
	} {
		_, err := berthSays(t, args...)
		e, ok := err.(*exitError)
		if !ok || e.code != exitUsage || !strings.Contains(err.Error(), want) {
			t.Errorf("berth %s: %v; want %q", strings.Join(args, " "), err, want)
		}
	}
}

// The node's name comes from the variables that the sidecars have.
func TestNodeNameOfTheEnvironment(t *testing.T) {
	for _, env := range []string{EnvNodeName, EnvNodeNameOther} {
		t.Run(env, func(t *testing.T) {
			t.Setenv(EnvNodeName, "")
			t.Setenv(env, "n7")
			if got := newNode(&global{}).Flags().Lookup("node-name").DefValue; got != "n7" {
				t.Errorf("--node-name is %q", got)
			}
		})
	}
}

func TestCompletionOfTheClustersFlags(t *testing.T) {
	for flag, want := range map[string]string{"--controllers": "snapshot-controller", "--feature-gates": "VolumeAttributesClass"} {
		out, err := berthSays(t, "__complete", "controller", flag, "")
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v\n%s", flag, err, out)
		}
	}
	if out, err := berthSays(t, "controller", "--help"); err != nil || !strings.Contains(out, "--csi-address") {
		t.Errorf("help: %v", err)
	}
}
