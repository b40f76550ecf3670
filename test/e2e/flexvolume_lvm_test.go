package e2e

import (
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"berth.io/berth/test/flexdriver"
)

// The machine of these tests may have no device-mapper, and has no volume group kube-vg: what can be seen here is that the volume comes
// to the real driver, and that the pod's event says what is missing. test/vm mounts it.
func init() {
	examples["flexvolume-lvm.yaml"] = example{prepare: func(s *story, text string) string {
		f := flexOn(s)
		program, err := os.ReadFile(filepath.Join(s.in.Bin, "berth-flexvolume"))
		f.must(err)
		f.must(flexdriver.InstallText(f.dir, "berth/lvm", string(program)))
		f.loaded("berth/lvm")
		return text
	}, then: func(s *story) {
		s.until("an event that names the volume group", func() (bool, string) {
			said := s.kubectl("get", "events", "-o", "jsonpath={.items[*].message}")
			return strings.Contains(said, "kube-vg: the volume group is not on this machine") || strings.Contains(said, "install the package lvm2"), said
		})
		if phase := s.claim("example-flexvolume-lvm").Status.Phase; phase != corev1.ClaimBound {
			s.Errorf("the claim is %s", phase)
		}
	}, delete: "pv/example-flexvolume-lvm"}
}
