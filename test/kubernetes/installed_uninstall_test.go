//go:build kubernetes

package kubernetes

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
)

// The Job of kubectl's installation makes the classes of snapshots, which are the default: a snapshot that names no class is taken. Who applies
// again has them again.
func TestInstalledSnapshotClasses(t *testing.T) {
	s := tell(t)
	in := s.installed()
	classes := "volumesnapshotclass,volumegroupsnapshotclass"
	s.inside("kubectl", "delete", "--ignore-not-found", classes, "berth-block")
	s.until("the Job of the last installation to be gone", func() error {
		out, err := output(shared.inside(s.ctx, "kubectl", "-n", system, "get", "job", "-o", "name"))
		if err == nil && out != "" {
			err = fmt.Errorf("there is %s", out)
		}
		return err
	})
	if err := in.apply(); err != nil {
		t.Fatal(err)
	}
	for _, class := range strings.Split(classes, ",") {
		s.until("the "+class, func() error {
			got, err := output(shared.inside(s.ctx, "kubectl", "get", class, "berth-block", "-o", "jsonpath={.driver} {.deletionPolicy} {.metadata.annotations}"))
			if err == nil && (!strings.HasPrefix(got, driverName+" Delete ") || !strings.Contains(got, `is-default-class":"true"`)) {
				err = fmt.Errorf("it is %q", got)
			}
			return err
		})
	}
	s.apply(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, labels: {of: group}}
spec: {accessModes: [ReadWriteOnce], storageClassName: berth-block-immediate, resources: {requests: {storage: 64Mi}}}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: data}
spec: {source: {persistentVolumeClaimName: data}}
---
apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshot
metadata: {name: data}
spec: {source: {selector: {matchLabels: {of: group}}}}
`)
	for _, snapshot := range []string{"volumesnapshot/data", "volumegroupsnapshot/data"} {
		s.kubectl("wait", "--for=jsonpath={.status.readyToUse}=true", "--timeout=120s", snapshot)
	}
	s.kubectl("delete", "volumegroupsnapshot,volumesnapshot", "--all", "--timeout=60s")
	s.kubectl("delete", "persistentvolumeclaim", "data", "--timeout=60s")
}

// Berth is taken away as docs/kubernetes.md says, definitions kept, while a pod has a volume: that goes on, snapshots and volumes stay, the FlexVolume
// drivers go. What is installed afterwards finds all of it, and ends what had to wait.
func TestInstalledUninstall(t *testing.T) {
	s := tell(t)
	in := s.installed()
	w := s.writes("xfs")
	s.apply(`
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: kept}
spec: {source: {persistentVolumeClaimName: written}}
`)
	s.kubectl("wait", "--for=jsonpath={.status.readyToUse}=true", "--timeout=120s", "volumesnapshot/kept")
	before := s.onDisk()
	drivers := func() string {
		t.Helper()
		entries, err := os.ReadDir(shared.plugins())
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return strings.Join(names, " ")
	}
	if got := drivers(); !strings.Contains(got, "berth~block") {
		t.Errorf("FlexVolume drivers before: %q", got)
	}
	back := false
	s.last = append(s.last, func() error {
		if back {
			return nil
		}
		return in.apply()
	})
	s.inside("kubectl", "delete", "-f", in.manifests, "-l", "app.kubernetes.io/part-of=berth", "--timeout=120s")
	w.unharmed()
	s.until("the FlexVolume drivers to go", func() error {
		if got := drivers(); strings.Contains(got, "berth~") {
			return fmt.Errorf("there are %q", got)
		}
		return nil
	})
	if after := s.onDisk(); len(after) != len(before) {
		t.Errorf("the pool had %q and has %q", before, after)
	}
	for _, object := range []string{"blockvolume/" + w.handle, "persistentvolume/" + w.handle} {
		s.inside("kubectl", "get", object)
	}
	s.kubectl("get", "volumesnapshot/kept")
	// Nobody takes it away now; the pod's program has ended.
	s.kubectl("delete", "pod", "writer", "--wait=false")
	s.until("the writer's program to end", func() error {
		out, err := output(shared.inside(context.Background(), "sh", "-c", "pgrep -f '^/program/writer' || true"))
		if err == nil && out != "" {
			err = fmt.Errorf("it runs as %s", out)
		}
		return err
	})
	if len(w.mounted()) == 0 {
		t.Error("the volume is not mounted any more, without anybody to unmount it")
	}
	if err := in.apply(); err != nil {
		t.Fatal(err)
	}
	back = true
	s.kubectl("wait", "--for=delete", "--timeout=120s", "pod/writer")
	if left := w.mounted(); len(left) > 0 {
		t.Errorf("the node has %s", left)
	}
	if got := drivers(); !strings.Contains(got, "berth~block") {
		t.Errorf("FlexVolume drivers after: %q", got)
	}
	s.journey("after")
	s.kubectl("delete", "volumesnapshot", "kept", "--timeout=60s")
	s.kubectl("delete", "persistentvolumeclaim", "written", "--timeout=60s")
}
