package cluster

import (
	"testing"

	"berth.io/berth/internal/host/mountpoint"
)

// A plugin directory that is mounted by itself within the kubelet's or the pool's is told of; one beside them is as it should be.
func TestPiledMounts(t *testing.T) {
	const kubelet, data = "/var/lib/kubelet", "/var/lib/berth"
	mounts := []mountpoint.Entry{{Path: "/"}, {Path: kubelet}, {Path: data}, {Path: "/usr/libexec/exec"}, {Path: kubelet + "/exec"}, {Path: kubelet + "/exec"}, {Path: kubelet + "/exec"}, {Path: data + "/exec"},
		{Path: kubelet + "/pods/a/volumes/b"}}
	for _, c := range []struct {
		name, dir, within string
		times             int
	}{
		{"beside them", "/usr/libexec/exec", "", 0},
		{"within the kubelet's", kubelet + "/exec", kubelet, 3},
		{"written in another way", kubelet + "//exec/", kubelet, 3},
		{"within the pool's", data + "/exec", data, 1},
		{"within, and not mounted", kubelet + "/volumeplugins", kubelet, 0},
		{"with the same letters", kubelet + "-exec", "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			if within, times := piled(mounts, c.dir, kubelet, data); within != c.within || times != c.times {
				t.Errorf("%d mounts within %q, not %d within %q", times, within, c.times, c.within)
			}
		})
	}
}
