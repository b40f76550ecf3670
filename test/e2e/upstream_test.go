package e2e

import (
	"os"
	"path/filepath"
	"testing"
)

// `berth up --controllers=upstream`: upstream's own volume controllers on the same machine, API and drivers.
func TestUpstreamsControllers(t *testing.T) {
	s := tellOn(t, own(t, "--controllers", "upstream"))
	s.apply(claimYAML("data", "32Mi") + podYAML("app", "data"))
	dir := paths(s, s.ready("app"))["data"]
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	volume := s.claim("data").Spec.VolumeName
	s.kubectl("delete", "pod/app", "pvc/data")
	s.volumeGone(volume)
}
