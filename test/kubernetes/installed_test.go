//go:build kubernetes

package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// Names in deploy/.
const (
	system     = "berth-system"
	controller = "deployment/berth-controller"
	agents     = "daemonset/berth-node"
	driverName = "block.csi.berth.io"
)

// installation is Berth in the cluster, as deploy/ installs it.
type installation struct {
	manifests string // a file with all of them
}

// theInstallation is that of all stories, made by the first that wants it.
var theInstallation = sync.OnceValues(func() (*installation, error) {
	in := &installation{manifests: shared.run("berth.yaml")}
	if _, err := os.Stat(in.manifests); err != nil { // not what tests before on this cluster have installed, perhaps of another version
		// A `berth up` has the node's data directory, the pool in it and the drivers' sockets.
		_, _ = output(shared.inside(context.Background(), "pkill", "--signal", "KILL", "--exact", "berth"))
		if err := emptyNode(); err != nil {
			return nil, err
		}
	}
	text, err := rendered()
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(in.manifests, []byte(text), 0o644); err != nil {
		return nil, err
	}
	if err := importImage(); err != nil {
		return nil, err
	}
	return in, in.apply()
})

// uninstall takes away what theInstallation has made, if it is there, with its data: for a `berth up` on the same node.
func uninstall() error {
	manifests := shared.run("berth.yaml")
	if _, err := os.Stat(manifests); err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if _, err := output(shared.inside(ctx, "kubectl", "delete", "--ignore-not-found", "--timeout=120s", "-f", manifests)); err != nil {
		return err
	}
	if err := os.Remove(manifests); err != nil {
		return err
	}
	return emptyNode()
}

// emptyNode removes the node's data directory, and what is mounted in it.
func emptyNode() error {
	_, err := output(shared.inside(context.Background(), "bash", "-c", `
		set -euo pipefail
		for tries in {1..100}; do pgrep --exact berth >/dev/null || break; sleep 0.1; done # one that was killed takes its time to end
		# A volume keeps its pool busy. Names do not tell whose it is: other nodes of this machine have the same.
		for image in /var/lib/berth/pools/*.img; do
			[ -e "$image" ] || continue
			losetup --list --noheadings --output MAJ:MIN --associated "$image" | while read -r pool; do
				losetup --list --noheadings --output NAME,BACK-MAJ:MIN | while read -r device of; do
					if [ "$of" = "$pool" ]; then losetup --detach "$device"; fi
				done
			done
		done
		while read -r dir; do umount "$dir"; done < <(findmnt --raw --noheadings --output TARGET | grep ^/var/lib/berth/ | sort --reverse)
		for image in /var/lib/berth/pools/*.img; do
			[ -e "$image" ] || continue
			losetup --list --noheadings --output NAME --associated "$image" | while read -r device; do losetup --detach "$device"; done
		done
		rm -rf --one-file-system /var/lib/berth`))
	return err
}

// installed is a story's installation.
func (s *story) installed() *installation {
	s.Helper()
	in, err := theInstallation()
	if err != nil {
		s.Fatal(err)
	}
	return in
}

// rendered is what a user applies with `kubectl apply -k deploy/kubernetes`, with this cluster's directory of FlexVolume drivers, and no more of this
// machine's disk than the tests need. That directory is in the kubelet's, which the agent has anyway: it is not mounted by itself.
func rendered() (string, error) {
	text, err := output(exec.Command(filepath.Join(shared.state, "bin", "kubectl"), "kustomize", "../../deploy/kubernetes"))
	for _, change := range []struct{ from, to string }{
		{"        - mountPath: /usr/libexec/kubernetes/kubelet-plugins/volume/exec\n          name: flexvolume\n", ""},
		{"      - hostPath:\n          path: /usr/libexec/kubernetes/kubelet-plugins/volume/exec\n          type: DirectoryOrCreate\n        name: flexvolume\n", ""},
		{"/usr/libexec/kubernetes/kubelet-plugins/volume/exec", "/var/lib/kubelet/volumeplugins"},
		{"- --kubernetes\n", "- --kubernetes\n        - --pool-size=12Gi\n"},
	} {
		if err == nil && !strings.Contains(text, change.from) {
			err = fmt.Errorf("deploy/kubernetes has no %q", change.from)
		}
		text = strings.ReplaceAll(text, change.from, change.to)
	}
	return text, err
}

// importImage puts the image that `make image` makes where the kubelet finds it.
func importImage() error {
	file := os.Getenv("BERTH_IMAGE")
	if file == "" {
		return errors.New("BERTH_IMAGE is not set: run the tests through make")
	}
	// The node does not see all of this machine.
	seen := shared.run("berth-image.tar")
	if _, err := output(exec.Command("cp", "--", file, seen)); err != nil {
		return err
	}
	defer os.Remove(seen)
	_, err := output(shared.inside(context.Background(), "ctr", "--namespace", "k8s.io", "images", "import", seen))
	return err
}

// apply installs what is not there or is another version, and returns when everything is Ready and the node's driver registered.
func (in *installation) apply() error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	// The definitions come first: what is of their kinds is refused until they are there.
	var err error
	for range 3 {
		if _, err = output(shared.inside(ctx, "kubectl", "apply", "--server-side", "--force-conflicts", "-f", in.manifests)); err == nil {
			break
		}
		_, _ = output(shared.inside(ctx, "kubectl", "wait", "--for=condition=Established", "--timeout=20s", "crd", "--all"))
	}
	if err != nil {
		return err
	}
	return in.ready(ctx)
}

// ready waits for the controller, the node's agent and the driver's registration.
func (in *installation) ready(ctx context.Context) error {
	for _, workload := range []string{controller, agents} {
		if _, err := output(shared.inside(ctx, "kubectl", "-n", system, "rollout", "status", "--timeout=120s", workload)); err != nil {
			return errors.Join(err, in.state())
		}
	}
	_, err := output(shared.inside(ctx, "kubectl", "wait", "--timeout=60s", "--for=jsonpath={.spec.drivers[?(@.name=='"+driverName+"')].nodeID}", "csinode/node1"))
	if err != nil {
		return errors.Join(err, in.state())
	}
	return nil
}

// state is what is known of an installation that is not ready, as an error.
func (in *installation) state() error {
	var said strings.Builder
	for _, args := range [][]string{
		{"get", "pods", "-o", "wide"}, {"describe", "pods"}, {"logs", controller, "--all-containers", "--tail=40"}, {"logs", agents, "--all-containers", "--tail=40"},
	} {
		out, err := output(shared.inside(context.Background(), append([]string{"kubectl", "-n", system}, args...)...))
		fmt.Fprintf(&said, "kubectl %s: %v\n%s\n", strings.Join(args, " "), err, out)
	}
	return errors.New(said.String())
}

// pods are those of a workload that are not about to end.
func (s *story) podsOf(workload string) []corev1.Pod {
	s.Helper()
	var w appsv1.DaemonSet // of both kinds, the selector is in the same place
	s.get(&w, "-n", system, workload)
	var list corev1.PodList
	var labels []string
	for key, value := range w.Spec.Selector.MatchLabels {
		labels = append(labels, key+"="+value)
	}
	s.get(&list, "-n", system, "pods", "-l", strings.Join(labels, ","))
	var alive []corev1.Pod
	for _, pod := range list.Items {
		if pod.DeletionTimestamp == nil {
			alive = append(alive, pod)
		}
	}
	return alive
}

// get reads an object, or a list of them, as kubectl's arguments name it.
func (s *story) get(into any, args ...string) {
	s.Helper()
	if err := s.read(into, args...); err != nil {
		s.Fatal(err)
	}
}

func (s *story) read(into any, args ...string) error {
	out, err := output(shared.inside(s.ctx, append([]string{"kubectl", "-n", s.ns, "get", "-o", "json"}, args...)...))
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(out), into)
}

// onDisk are the names of the volumes that the node's pool has.
func (s *story) onDisk() []string {
	s.Helper()
	return strings.Fields(s.inside("ls", "/var/lib/berth/pools/default/volumes"))
}
