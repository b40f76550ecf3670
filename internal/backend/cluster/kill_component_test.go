//go:build component

package cluster_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	api "berth.io/berth/api/v1alpha1"
	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/backend/cluster"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/boundary"
	"berth.io/berth/test/boundaries"
)

const (
	journeyDir        = "BERTH_TEST_JOURNEY_DIR"
	journeyKubeconfig = "BERTH_TEST_JOURNEY_KUBECONFIG"
)

// Controller and agent, in one process, are killed on both sides of each of their writes, one after the other, on a journey through
// everything that they do. After each kill a new process must be able to complete the journey, and nothing may be left: no object, no
// data.
func TestKilledAtEveryBoundary(t *testing.T) {
	w := startWorld(t)
	found, _, err := boundaries.Scan("../../..")
	if err != nil {
		t.Fatal(err)
	}
	killed := 0
	for _, b := range found {
		if room := filepath.Dir(b.Name); room != "backend-cluster" && room != "block-agent" {
			continue
		}
		for _, side := range []string{":before", ":after"} {
			t.Run(b.Name+side, func(t *testing.T) {
				dir := newDir(t)
				w.killAt(t, dir, b.Name+side)
				w.complete(t, dir)
				killed++
			})
		}
	}
	if killed < 20 {
		t.Errorf("killed %d times only", killed)
	}
}

// killAt runs the journey in a process of its own, which must die at the point.
func (w *world) killAt(t *testing.T, dir, point string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestJourneyToBeKilled$", "-test.v")
	cmd.Env = append(os.Environ(), journeyDir+"="+dir, journeyKubeconfig+"="+w.kubeconfig, boundary.EnvKillAt+"="+point)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("the journey does not cross %s", point)
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the journey failed by itself: %v\n%s", err, out)
	}
}

// TestJourneyToBeKilled is the other process.
func TestJourneyToBeKilled(t *testing.T) {
	dir := os.Getenv(journeyDir)
	if dir == "" {
		t.Skip("run by TestKilledAtEveryBoundary")
	}
	w := worldAt(t, os.Getenv(journeyKubeconfig))
	s := w.serve(t, nodeA, dir, 3<<30)
	b := w.control(t)
	offers(t, b, nodeA)
	journey(t, b)
	lost, snap := kept(t, b)
	s.stop()
	w.sayLost(t, nodeA)
	eventually(t, 10*time.Second, func() error { // the controller must have heard of it
		return b.DeleteSnapshot(within(t, 2*time.Second), snap)
	})
	if err := b.Delete(within(t, 10*time.Second), lost); err != nil {
		t.Fatal(err)
	}
}

// journey does everything, each step of which may have been done before, and leaves nothing.
func journey(t *testing.T, b *cluster.Backend) {
	t.Helper()
	ctx := within(t, 90*time.Second)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	r := request("data", 100*mib)
	r.RequiredBytes, r.LimitBytes = 0, 0 // so that a second journey takes what a first one has grown
	v, err := b.Create(ctx, r)
	must(err)
	must(b.Attach(ctx, v.ID, nodeA, false))
	v, err = b.Resize(ctx, v.ID, 1200*mib)
	must(err)
	must(b.Modify(ctx, v.ID, map[string]string{"readAheadKiB": "256"}))
	s, err := b.CreateSnapshot(ctx, backend.SnapshotRequest{Name: "snap", VolumeID: v.ID})
	must(err)
	r = request("copy", v.SizeBytes)
	r.Source.SnapshotID = s.ID
	c, err := b.Create(ctx, r)
	must(err)
	g, err := b.CreateGroupSnapshot(ctx, backend.GroupSnapshotRequest{Name: "group", VolumeIDs: []string{v.ID, c.ID}})
	must(err)
	must(b.DeleteGroupSnapshot(ctx, g.ID))
	must(b.DeleteSnapshot(ctx, s.ID))
	must(b.Detach(ctx, v.ID, nodeA))
	must(b.Delete(ctx, c.ID))
	must(b.Delete(ctx, v.ID))
}

// kept makes a volume and a snapshot of it, or finds them.
func kept(t *testing.T, b *cluster.Backend) (volume, snapshot string) {
	t.Helper()
	ctx := within(t, 30*time.Second)
	v, err := b.Create(ctx, request("lost", 50*mib))
	if err != nil {
		t.Fatal(err)
	}
	s, err := b.CreateSnapshot(ctx, backend.SnapshotRequest{Name: "lost", VolumeID: v.ID})
	if err != nil {
		t.Fatal(err)
	}
	return v.ID, s.ID
}

func (w *world) sayLost(t *testing.T, node string) {
	t.Helper()
	w.annotatePool(t, node, `"`+node+`"`)
}

func (w *world) annotatePool(t *testing.T, node, value string) {
	t.Helper()
	patch := []byte(`{"metadata":{"annotations":{"` + api.AnnotationNodeLost + `":` + value + `}}}`)
	if _, err := w.objects.Pools.Patch(t.Context(), node, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
}

// complete is the next process: whatever the first one got to, the journey works, and nothing is left.
func (w *world) complete(t *testing.T, dir string) {
	t.Helper()
	w.annotatePool(t, nodeA, "null")
	s := w.serve(t, nodeA, dir, 3<<30)
	b := w.control(t)
	offers(t, b, nodeA)
	journey(t, b)
	// What was given up is found in the pool by the same request.
	volume, snapshot := kept(t, b)
	ctx := within(t, 20*time.Second)
	if err := errors.Join(b.DeleteSnapshot(ctx, snapshot), b.Delete(ctx, volume)); err != nil {
		t.Error(err)
	}
	if err := s.pool.Verify(); err != nil {
		t.Error(err)
	}
	s.stop()
	surveys, err := pool.Look(filepath.Join(dir, "pools"))
	if err != nil || len(surveys) != 1 || len(surveys[0].Volumes)+len(surveys[0].Unfinished)+len(surveys[0].Damaged)+len(surveys[0].Loops) > 0 {
		t.Errorf("left: %+v, %v", surveys, err)
	}
	if left := s.pool.Snapshots(); len(left) > 0 {
		t.Errorf("snapshots left: %v", left)
	}
	volumes, err := w.objects.Volumes.List(ctx, metav1.ListOptions{})
	if err != nil || len(volumes.Items) > 0 {
		t.Errorf("objects of volumes left: %v, %v", volumes.Items, err)
	}
	snapshots, err := w.objects.Snapshots.List(ctx, metav1.ListOptions{})
	if err != nil || len(snapshots.Items) > 0 {
		t.Errorf("objects of snapshots left: %v, %v", snapshots.Items, err)
	}
	if err := w.objects.Pools.Delete(ctx, nodeA, metav1.DeleteOptions{}); err != nil { // the next one has a pool of its own
		t.Error(err)
	}
}
