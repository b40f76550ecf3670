//go:build component

package cluster_test

import (
	"os"
	"path/filepath"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"berth.io/berth/internal/driver"
	"berth.io/berth/test/conformance"
)

// The official conformance suite: its controller half speaks to a driver on this backend, its node half to a driver on the node's
// pool, and between them there are a real API server and the node's agent.
func TestSanity(t *testing.T) {
	w := startWorld(t)
	dir := newDir(t)
	node := w.serve(t, nodeA, dir, 8<<30)
	b := w.control(t)
	offers(t, b, nodeA)
	controller, local := filepath.Join(dir, "c", "csi.sock"), filepath.Join(dir, "n", "csi.sock")
	run(t, driver.Options{Name: driver.BlockName, SocketPath: controller, Controller: b, MaxVolumes: 8})
	run(t, driver.Options{Name: driver.BlockName, SocketPath: local, Backend: node.backend, Node: nodeA, MaxVolumes: 8})
	if err := os.Mkdir(filepath.Join(dir, "sanity"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, access := range conformance.Accesses {
		config := conformance.Config(access)
		config.Address, config.ControllerAddress = "unix://"+local, "unix://"+controller
		config.TargetPath = filepath.Join(dir, "sanity", "target")
		config.StagingPath = filepath.Join(dir, "sanity", "staging")
		config.TestNodeVolumeAttachLimit = true
		conformance.Describe("volumes as "+access, config)
	}
	conformance.Run(t, "csi-sanity")
	if left := node.pool.List(); len(left) > 0 {
		t.Errorf("volumes left: %v", left)
	}
	volumes, err := w.objects.Volumes.List(t.Context(), metav1.ListOptions{})
	if err != nil || len(volumes.Items) > 0 {
		t.Errorf("objects of volumes left: %v, %v", volumes, err)
	}
	snapshots, err := w.objects.Snapshots.List(t.Context(), metav1.ListOptions{})
	if err != nil || len(snapshots.Items) > 0 {
		t.Errorf("objects of snapshots left: %v, %v", snapshots, err)
	}
}
