//go:build kubernetes

package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	api "berth.io/berth/api/v1alpha1"
)

// The definitions of volumes and snapshots are deleted while a pod writes: no data go, the pod writes on, a new agent deletes nothing either, and
// docs/kubernetes.md, "Deleted by hand", leads back to where all can be used and deleted.
func TestInstalledDeletedByHand(t *testing.T) {
	s := tell(t)
	in := s.installed()
	w := s.writes("ext4")
	s.apply(`
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: kept}
spec: {source: {persistentVolumeClaimName: written}}
`)
	s.kubectl("wait", "--for=jsonpath={.status.readyToUse}=true", "--timeout=120s", "volumesnapshot/kept")
	data := func() []string {
		t.Helper()
		return append(s.onDisk(), strings.Fields(s.inside("ls", "/var/lib/berth/pools/default/snapshots"))...)
	}
	before := data()
	definitions := []string{"crd/blockvolumes.storage.berth.io", "crd/blocksnapshots.storage.berth.io"}
	back := false
	s.last = append(s.last, func() error {
		if back {
			return nil
		}
		return in.apply()
	})

	s.inside(append([]string{"kubectl", "delete", "--wait=false"}, definitions...)...)
	told := func() {
		t.Helper()
		for _, kind := range []string{"blockvolumes", "blocksnapshots"} {
			s.until("the "+kind+" to say that they were deleted by hand", func() error {
				problems, err := output(shared.inside(s.ctx, "kubectl", "get", kind, "-o", `jsonpath={range .items[*]}{.metadata.name}: {.status.problem}{"\n"}{end}`))
				if err == nil && problems == "" {
					err = fmt.Errorf("there are none")
				}
				for line := range strings.Lines(problems) {
					if err == nil && !strings.Contains(line, api.AnnotationDeleteData) {
						err = fmt.Errorf("one says %q", line)
					}
				}
				return err
			})
		}
	}
	told()
	s.says(s.plugin(), []string{"why", "pvc/written"}, "deleted by hand")
	s.inside("kubectl", "-n", system, "rollout", "restart", agents)
	s.rolledOut(agents)
	told()
	w.unharmed()
	if after := data(); !slices.Equal(before, after) {
		t.Fatalf("the pool had %q and has %q", before, after)
	}

	// The way back.
	var saved map[string]any
	s.get(&saved, "blockvolumes,blocksnapshots")
	items, _ := saved["items"].([]any)
	for _, item := range items {
		o := item.(map[string]any)
		delete(o, "status")
		for _, field := range []string{"uid", "resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds"} {
			delete(o["metadata"].(map[string]any), field)
		}
	}
	text, err := json.Marshal(saved)
	if err != nil {
		t.Fatal(err)
	}
	s.inside("kubectl", "-n", system, "scale", "deployment", "berth-controller", "--replicas=0")
	s.inside("sh", "-c", `kubectl get blockvolumes,blocksnapshots -o name | xargs kubectl patch --type=merge -p '{"metadata":{"finalizers":null}}'`)
	s.inside(append([]string{"kubectl", "wait", "--for=delete", "--timeout=60s"}, definitions...)...)
	for _, kind := range []string{"blockvolumes", "blocksnapshots"} {
		definition, err := os.ReadFile("../../deploy/kubernetes/crds/storage.berth.io_" + kind + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		s.apply(string(definition))
	}
	s.inside(append([]string{"kubectl", "wait", "--for=condition=Established", "--timeout=60s"}, definitions...)...)
	create := shared.inside(s.ctx, "kubectl", "create", "-f", "-")
	create.Stdin = strings.NewReader(string(text))
	if _, err := output(create); err != nil {
		t.Fatal(err)
	}
	if err := in.apply(); err != nil { // the controller, too
		t.Fatal(err)
	}
	back = true
	s.inside("kubectl", "wait", "--for=jsonpath={.status.phase}=Ready", "--timeout=120s", "blockvolumes", "--all")
	s.inside("kubectl", "wait", "--for=jsonpath={.status.readyToUse}=true", "--timeout=60s", "blocksnapshots", "--all")
	if after := data(); !slices.Equal(before, after) {
		t.Errorf("the pool had %q and has %q", before, after)
	}
	w.unharmed()
	s.journey("after")
	s.deletePod("writer")
	// With the word the data go at once; the claim and the snapshot that are left can be deleted all the same.
	snapshot := strings.TrimSpace(s.inside("kubectl", "get", "blocksnapshots", "-o", "name"))
	for _, object := range []string{"blockvolume.storage.berth.io/" + w.handle, snapshot} {
		_, name, _ := strings.Cut(object, "/")
		s.inside("kubectl", "annotate", object, api.AnnotationDeleteData+"="+name)
		s.inside("kubectl", "delete", object, "--timeout=60s")
	}
	s.kubectl("delete", "volumesnapshot", "kept", "--timeout=60s")
	s.kubectl("delete", "persistentvolumeclaim", "written", "--timeout=60s")
	s.until("the pool to be empty", func() error {
		left, err := output(shared.inside(context.Background(), "ls", "/var/lib/berth/pools/default/volumes", "/var/lib/berth/pools/default/snapshots"))
		if err == nil && strings.Contains(left, w.handle) {
			err = fmt.Errorf("it has %s", left)
		}
		return err
	})
}
