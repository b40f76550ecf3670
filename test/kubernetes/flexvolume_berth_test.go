//go:build kubernetes

package kubernetes

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// berthBlock is a story with a volume of a node's pool, served by the driver berth/block to the kubelet and the controller manager,
// and claimed as "data".
func berthBlock(t *testing.T, size, fsType string) (s *story, a *agent, volume string) {
	t.Helper()
	s = tell(t)
	a = s.agent()
	id := a.volume(s, size, fsType)
	driver := s.installDriver("berth", "block", s.flexVolumeProgram())
	return s, a, s.claim(driver, size, fsType, fmt.Sprintf("{volumeID: %s}", id))
}

// A file that a pod wrote is there for the next one: attached by the controller manager, mounted by the kubelet, and in between
// neither attached nor mounted.
func TestBerthBlockKeepsAFile(t *testing.T) {
	s, _, volume := berthBlock(t, "64Mi", "ext4")
	s.apply(podYAML("first", "persistentVolumeClaim: {claimName: data}", "  securityContext: {fsGroup: 4711}"))
	s.ready("first")
	if view := s.mountInPod("first", "/data"); view[2] != "ext4" || !strings.HasPrefix(view[0], "/dev/loop") {
		t.Errorf("the pod has %q mounted", view)
	}
	if group := strings.TrimSpace(s.inPod("first", "stat", "-c", "%g", "/data")); group != "4711" {
		t.Errorf("the volume is of group %s", group)
	}
	s.inPod("first", "sh", "-c", "echo kept >/data/file")
	if got := s.attached(); !strings.Contains(got, volume) {
		t.Errorf("the node's attached volumes are %q", got)
	}
	s.deletePod("first")
	s.detached(volume)
	s.notMounted(volume)

	s.apply(podYAML("second", "persistentVolumeClaim: {claimName: data}"))
	s.ready("second")
	if got := s.inPod("second", "cat", "/data/file"); got != "kept\n" {
		t.Errorf("the second pod reads %q", got)
	}
}

// A pod goes on while the agent is dead. What needs it says so, and goes on when it is back.
func TestBerthBlockWithoutItsAgent(t *testing.T) {
	s, a, volume := berthBlock(t, "64Mi", "ext4")
	s.apply(podYAML("first", "persistentVolumeClaim: {claimName: data}"))
	s.ready("first")
	a.kill(s)
	s.inPod("first", "sh", "-c", "echo kept >/data/file; sync")
	s.kubectl("delete", "pod", "first", "--wait=false")
	a.restart(s)
	s.kubectl("wait", "--for=delete", "--timeout=120s", "pod/first")
	s.detached(volume)
	s.notMounted(volume)

	a.kill(s)
	s.apply(podYAML("second", "persistentVolumeClaim: {claimName: data}"))
	s.event("second", "FailedAttachVolume", "no node agent answers at /var/lib/berth/run/flexvolume.sock: start `berth up` on this node")
	a.restart(s)
	s.ready("second")
	if got := s.inPod("second", "cat", "/data/file"); got != "kept\n" {
		t.Errorf("the second pod reads %q", got)
	}
}

// A kubelet that was killed finds the volume of a running pod, and unmounts it when the pod goes.
func TestBerthBlockOutlivesTheKubelet(t *testing.T) {
	s, _, volume := berthBlock(t, "64Mi", "ext4")
	s.apply(podYAML("first", "persistentVolumeClaim: {claimName: data}"))
	s.ready("first")
	before := s.mountInPod("first", "/data")
	s.inside("pkill", "--signal", "KILL", "--exact", "kubelet")
	s.until("the kubelet again", func() error {
		_, err := output(shared.inside(s.ctx, "kubectl", "-n", s.ns, "exec", "first", "--", "sh", "-c", "echo kept >/data/file"))
		return err
	})
	if after := s.mountInPod("first", "/data"); after[0] != before[0] {
		t.Errorf("was on %s, is on %s", before[0], after[0])
	}
	s.deletePod("first")
	s.detached(volume)
	s.notMounted(volume)
}

// The claim grows while a pod uses it. A cluster leaves all of that to expandfs: the controller manager's expand controller knows
// no FlexVolume driver, so that expandvolume is never called (expand_controller.go: InitPlugins without a prober; plugins.go:
// IsKubeletExpandable).
func TestBerthBlockGrows(t *testing.T) {
	s, _, _ := berthBlock(t, "320Mi", "xfs")
	s.apply(podYAML("first", "persistentVolumeClaim: {claimName: data}"))
	s.ready("first")
	size := func() int64 {
		fields := strings.Fields(s.inPod("first", "stat", "-f", "-c", "%S %b", "/data"))
		block, err1 := strconv.ParseInt(fields[0], 10, 64)
		blocks, err2 := strconv.ParseInt(fields[1], 10, 64)
		if err1 != nil || err2 != nil {
			t.Fatalf("%q", fields)
		}
		return block * blocks
	}
	before := size()
	s.kubectl("patch", "persistentvolumeclaim", "data", "-p", `{"spec": {"resources": {"requests": {"storage": "512Mi"}}}}`)
	s.kubectl("wait", "--for=jsonpath={.status.capacity.storage}=512Mi", "--timeout=120s", "persistentvolumeclaim/data")
	if after := size(); after-before < 180<<20 {
		t.Errorf("the filesystem had %d bytes and has %d", before, after)
	}
}

// What a driver refuses stands in the pod's events in the driver's own words. (Not here: what getvolumename refuses. The
// controller manager only logs that, and the kubelet tells of it when it has waited for two minutes.)
func TestBerthDriversRefuseInWords(t *testing.T) {
	s := tell(t)
	s.agent()
	program := s.flexVolumeProgram()
	for _, test := range []struct{ driver, options, reason, words string }{
		{"nfs", `{colour: blue}`, "FailedMount", `nfs mount: option "colour" is not one of`},
		{"cifs", `{colour: blue}`, "FailedMount", `cifs mount: option "colour" is not one of`},
		{"block", `{volumeID: nobodys}`, "FailedAttachVolume", "no pool of this node has it"},
	} {
		t.Run(test.driver, func(t *testing.T) {
			driver := s.installDriver("berth", test.driver, program)
			s.apply(podYAML(test.driver, fmt.Sprintf("flexVolume: {driver: %s, fsType: ext4, options: %s}", driver, test.options)))
			s.event(test.driver, test.reason, test.words)
		})
	}
}

// notMounted fails where the node still has a FlexVolume's device directory or a pod's mount of it.
func (s *story) notMounted(volume string) {
	s.Helper()
	for line := range strings.Lines(s.inside("cat", "/proc/self/mounts")) {
		if strings.Contains(line, volume) {
			s.Errorf("still mounted: %s", line)
		}
	}
}
