//go:build kubernetes

package kubernetes

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/onsi/ginkgo/v2/types"
	"golang.org/x/sys/unix"
)

// skips are the reasons for which the suite may skip a spec here. Any other is a failure: the cluster could have run it.
var skips = []struct{ message, why string }{
	{`doesn't support ntfs|doesn't support .*ntfs`, "ntfs is Windows"},
	{`[Nn]umber of available nodes is less than|No topology with at least|Not enough topologies in cluster`, "wants two nodes"},
	{`doesn't support SELinuxMount|does not support SELinuxMount`, "wants a kernel with SELinux"},
	{`doesn't support ext3`, "a filesystem that the driver does not make"},
	{`[Ii]mmediate( binding)? (is not compatible with a multi-topology environment|may cause pod startup failures)`, "the suite wants drivers without topology for it"},
	{`(doesn't|does not) support (volume type )?"?(InlineVolume|PreprovisionedPV)|skipping PreprovisionedPV pattern|doesn't work with pre-provisioned volume`, "for drivers that are part of Kubernetes"},
	{`does not define volumeSource|does not define PersistentVolumeSource`, "for drivers that are part of Kubernetes"},
	{`supports VolumeMountGroup, which is incompatible with this test`, "the driver itself sets the group, when the root's is another; docs/driver.md"},
	{`does not support ROX access mode|doesn't support RWX|does not support RWX|multiple.* RWX`, "a mode of many nodes"},
	{`does not support snapshot metadata`, "the suite installs a server of its own for it, from the Internet; changed blocks are tested in test/e2e"},
	{`Block volumes do not support mount options|Test for Block volumes is not implemented|[Ss]uite .* does not support|Test is not valid for Block volume mode`, "no such case"},
	{`raw block volumes cannot be read-only|skipping multiple PV mount test for block mode|does not support non-filesystem volume mode`, "no such case"},
	{`Filesystem volume case should be covered by block volume case`, "no such case"},
	{`volume type .* is (not )?ephemeral|Skipping .* test for expansion`, "no such case"},
	{`does not support read only raw block volumes`, "no such case"},
	{`multiVolume .*does not support snapshots - skipping`, "the suite's pattern has no kind of snapshot; the same spec runs in XFS"},
	{`Multiple generic ephemeral volumes with immediate binding may cause`, "the suite never runs it"},
	{`WaitForFirstConsumer binding mode currently not supported`, "the suite itself lacks it"},
}

// The storage suite of Kubernetes itself with everything that the driver can declared: what it skips has a reason that this cluster cannot
// change, and everything else passes. BERTH_EXTERNAL_STORAGE is a regular expression that chooses among the specs.
func TestInstalledExternalStorage(t *testing.T) {
	s := tell(t)
	in := s.installed()
	build := shared.script(context.Background(), "build.sh", "e2e")
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		t.Fatal(err)
	}
	s.apply(`
apiVersion: storage.k8s.io/v1
kind: VolumeAttributesClass
metadata: {name: berth-external-storage}
driverName: ` + driverName + `
parameters: {readAheadKiB: "256"}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: berth-external-storage-xfs}
provisioner: ` + driverName + `
parameters: {csi.storage.k8s.io/fstype: xfs}
`)
	s.last = append(s.last, func() error {
		_, err := output(shared.inside(context.Background(), "kubectl", "delete", "volumeattributesclass/berth-external-storage", "storageclass/berth-external-storage-xfs"))
		return err
	})
	focus := os.Getenv("BERTH_EXTERNAL_STORAGE")
	if focus == "" {
		focus = "External.Storage"
	}
	definition, err := os.ReadFile("external-storage.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// The last of them installs a populator and a validator whose images are on the Internet alone.
	const others = `\[Feature:Windows\]|\(ntfs\)|with any volume data source`
	const limits = `volumeLimits should support volume limits`
	const immediate = `\(immediate-binding\)\] ephemeral`
	together, growing := others+`|\[Disruptive\]|`+limits+"|"+immediate, map[string]string{}
	if !growsMountedExt4(t) {
		together += "|" + whileMounted
		growing["StorageClass: {FromName: true}"] = "StorageClass: {FromExistingClassName: berth-external-storage-xfs}"
	}
	withoutTopology := map[string]string{"\n  TopologyKeys: [topology.block.csi.berth.io/node]": "", "topology: true": "topology: false"}
	maps.Copy(withoutTopology, growing)
	counts := &tally{reasons: map[string]int{}}
	for _, part := range []struct {
		name, focus, skip, procs string
		changes                  map[string]string // of the definition
	}{
		{"together", focus, together, "6", nil},
		{"growing", and(focus, whileMounted), others + "|" + immediate, "6", growing},
		{"immediate", and(focus, immediate), others, "6", withoutTopology}, // the suite wants a driver without topology for it; one node has none
		{"limits", and(focus, limits), others, "1", nil},
		{"disruptive", and(focus, `\[Disruptive\]`), others, "1", nil}, // they stop the kubelet
	} {
		if part.name == "growing" && len(growing) == 0 {
			continue // with the others
		}
		if part.name == "limits" { // it attaches as many volumes as the node takes, and one more
			_, err := output(shared.inside(t.Context(), "kubectl", "-n", system, "patch", agents, "--type=json", "-p",
				`[{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"--max-volumes=12"}]`))
			if err == nil {
				err = in.ready(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		text := string(definition)
		for from, to := range part.changes {
			if !strings.Contains(text, from) {
				t.Fatalf("external-storage.yaml has no %q", from)
			}
			text = strings.Replace(text, from, to, 1)
		}
		changed := filepath.Join(s.TempDir(), part.name+".yaml")
		if err := os.WriteFile(changed, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Hour)
		defer cancel()
		run := shared.script(ctx, "e2e.sh", part.focus, "-storage.testdriver="+changed)
		run.Env = append(run.Env, "SKIP="+part.skip, "PROCS="+part.procs, "REPORT="+part.name+".json")
		run.Stdout, run.Stderr = os.Stdout, os.Stderr
		if err := run.Run(); err != nil {
			t.Errorf("%s: %v", part.name, err)
		}
		counts.add(t, filepath.Join(shared.state, "log", "e2e", part.name+".json"))
		if part.name == "limits" {
			if err := in.apply(); err != nil {
				t.Error(err)
			}
		}
	}
	t.Logf("External.Storage: %d run, %d passed", counts.ran, counts.passed)
	for _, why := range slices.Sorted(maps.Keys(counts.reasons)) {
		t.Logf("  %d skipped: %s", counts.reasons[why], why)
	}
	if counts.ran == 0 {
		t.Error("nothing was run")
	}
}

// whileMounted are the specs that grow a filesystem of the default type while it is mounted. Where the machine does not let anybody grow a
// mounted ext4, they are given a class of XFS.
const whileMounted = `\(default fs\).*(volume-expand should resize volume when PVC is edited while pod is using it|ephemeral should support expansion of pvcs)`

// growsMountedExt4 says whether this machine can: the kernel asks for CAP_SYS_RESOURCE, which containers seldom have.
func growsMountedExt4(t *testing.T) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "CapEff:"); ok {
			have, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return have&(1<<unix.CAP_SYS_RESOURCE) != 0
		}
	}
	t.Fatal("/proc/self/status does not tell this process's capabilities")
	return false
}

// and is a regular expression for what both match, one after the other.
func and(a, b string) string { return "(" + a + ").*(" + b + ")|(" + b + ").*(" + a + ")" }

// tally counts what was run, and judges what was skipped.
type tally struct {
	ran, passed int
	reasons     map[string]int
}

func (c *tally) add(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return
	}
	var reports []types.Report
	if err := json.Unmarshal(text, &reports); err != nil {
		t.Error(err)
	}
	for _, r := range reports {
		for _, spec := range r.SpecReports {
			if spec.LeafNodeType != types.NodeTypeIt || spec.State == types.SpecStateSkipped && spec.Failure.Message == "" {
				continue // not asked for
			}
			switch spec.State {
			case types.SpecStateSkipped:
				why := excuse(spec.FullText() + ": " + spec.Failure.Message)
				if why == "" {
					t.Errorf("skipped, though the cluster could have run it: %s: %s", spec.FullText(), spec.Failure.Message)
				}
				c.reasons[why]++
			case types.SpecStatePassed:
				c.ran, c.passed = c.ran+1, c.passed+1
			default:
				c.ran++
				t.Errorf("%s: %s: %s", spec.State, spec.FullText(), firstLines(spec.Failure.Message, 12))
			}
		}
	}
}

// excuse is why a spec that was skipped, by its name and the suite's message, could not be run here, "" where it could.
func excuse(skipped string) string {
	for _, skip := range skips {
		if regexp.MustCompile(skip.message).MatchString(skipped) {
			return skip.why
		}
	}
	return ""
}

func firstLines(text string, n int) string {
	lines := strings.SplitN(text, "\n", n+1)
	return strings.Join(lines[:min(n, len(lines))], "\n")
}
