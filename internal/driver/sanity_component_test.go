//go:build component

package driver_test

import (
	"os"
	"path/filepath"
	"testing"

	"berth.io/berth/internal/driver"
	"berth.io/berth/test/conformance"
)

// The official conformance suite, once with filesystems and once with raw block volumes, against a real pool, real
// loop devices and real mounts.
func TestSanity(t *testing.T) {
	s := startWith(t, 8<<30, driver.Options{MaxVolumes: 8})
	if err := os.Mkdir(filepath.Join(s.dir, "sanity"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, access := range conformance.Accesses {
		config := conformance.Config(access)
		config.Address = "unix://" + s.socket
		config.TargetPath = filepath.Join(s.dir, "sanity", "target")
		config.StagingPath = filepath.Join(s.dir, "sanity", "staging")
		config.TestNodeVolumeAttachLimit = true
		conformance.Describe("volumes as "+access, config)
	}
	conformance.Run(t, "csi-sanity")
	if busy := s.backend.Busy(); len(busy) > 0 {
		t.Errorf("still busy: %v", busy)
	}
	if left := s.pool.List(); len(left) > 0 {
		t.Errorf("volumes left: %v", left)
	}
}
