//go:build kubernetes

package kubernetes

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"

	"berth.io/berth/test/conformance"
)

// csi-sanity against the node's socket, and with the controller's calls against the controller's own: there each of them goes through
// the cluster's objects to the node's agent and back.
func TestInstalledSanity(t *testing.T) {
	s := tell(t)
	s.installed()
	// The node's files as they are seen from here: through its first process.
	first, err := os.ReadFile(shared.run("pid"))
	if err != nil {
		t.Fatal(err)
	}
	root := "/proc/" + strings.TrimSpace(string(first)) + "/root"
	nodeSocket := root + "/var/lib/kubelet/plugins/" + driverName + "/csi.sock"
	// The first process of its container, in whose temporary directory the socket is.
	controllerSocket := root + "/proc/" + s.processOf(s.leader()) + "/root/tmp/berth-controller-1/csi.sock"
	before := s.onDisk()
	for _, who := range []struct{ name, controller string }{{"the node's own controller service", nodeSocket}, {"the cluster's controller", controllerSocket}} {
		for _, access := range conformance.Accesses {
			config := conformance.Config(access)
			config.Address = "unix://" + nodeSocket
			config.ControllerAddress = "unix://" + who.controller
			config.TargetPath, config.StagingPath = "/var/lib/kubelet/sanity/target", "/var/lib/kubelet/sanity/staging"
			config.CreateTargetDir = func(path string) (string, error) { return path, os.MkdirAll(root+path, 0o755) }
			config.CreateStagingDir = config.CreateTargetDir
			config.RemoveTargetPath = func(path string) error { return os.RemoveAll(root + path) }
			config.RemoveStagingPath = config.RemoveTargetPath
			config.CheckPath = func(path string) (sanity.PathKind, error) {
				switch st, err := os.Lstat(root + path); {
				case errors.Is(err, os.ErrNotExist):
					return sanity.PathIsNotFound, nil
				case err != nil:
					return "", err
				case st.IsDir():
					return sanity.PathIsDir, nil
				case st.Mode().IsRegular():
					return sanity.PathIsFile, nil
				default:
					return sanity.PathIsOther, nil
				}
			}
			conformance.Describe(fmt.Sprintf("%s, volumes as %s", who.name, access), config)
		}
	}
	// The limit is 1000 volumes here, more than the pool has room for; TestSanity of internal/backend/cluster has one of 8.
	conformance.Run(t, "csi-sanity in the cluster", "more volumes than the node max attach limit")
	s.until("no volume left", func() error {
		if left := s.onDisk(); len(left) != len(before) {
			return fmt.Errorf("there were %q and are %q", before, left)
		}
		return nil
	})
}
