//go:build component

package driver_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/boundary"
)

// outside are boundaries that the journey of this test does not cross, and why.
var outside = map[string]string{
	"pool/give-up-mount": "damaged pool",
	"pool/claim-device":  "raw device", "pool/make-device-filesystem": "raw device", "pool/settle-device": "raw device",
	"pool/settle-new-device": "raw device", "pool/grow-device-filesystem": "raw device",
	"pool/give-up-image": "full disk", "pool/give-up-growth": "full disk", "pool/give-up-backing": "full disk",
	"pool/give-up-inflating": "full pool", "pool/give-up-volume": "full pool",
	"pool/fill-hole": "a copied pool file", "pool/punch-held": "after a crash only", "pool/finish-extending-volume": "after a crash only", "pool/detach-deleted": "after a crash only",
	"backend-block/drop-stale-staged": "after a crash only", "backend-block/repair": "a damaged filesystem",
	"backend-block/grow-unmounted": "ext4 without CAP_SYS_RESOURCE",
	"pool/give-up-snapshot":        "full pool", "pool/remove-unfinished-snapshot": "after a crash only",
	"pool/thaw-after-crash": "TestKilledWhileFrozen", "pool/forget-crashed-freeze": "TestKilledWhileFrozen",
	"backend-block/thaw-late": "a freeze that hangs in the kernel", "backend-block/thaw-overdue": "a copy that hangs in the kernel",
	"backend-block/mount-with-new-uuid": "btrfs on a kernel before 6.7",
	"backend-block/modify-queue":        "TestModify; set-queue does the same", "backend-block/reset-queue": "a volume with mutable parameters",
	"pool/teardown-unmount-volume": "teardown", "pool/teardown-detach-volume": "teardown", "pool/teardown-unmount": "teardown",
	"backend-cluster/create-volume": inCluster, "backend-cluster/change-volume": inCluster, "backend-cluster/delete-volume": inCluster,
	"backend-cluster/give-up-volume": inCluster, "backend-cluster/create-snapshot": inCluster, "backend-cluster/delete-snapshot": inCluster,
	"backend-cluster/give-up-snapshot": inCluster, "backend-cluster/mark-volume": inCluster, "backend-cluster/mark-snapshot": inCluster, "block-agent/create-pool": inCluster, "block-agent/report-pool": inCluster,
	"block-agent/report-volume": inCluster, "block-agent/report-snapshot": inCluster, "block-agent/release-volume": inCluster,
	"block-agent/release-snapshot": inCluster,
}

const inCluster = "TestKilledAtEveryBoundary of internal/backend/cluster"

// The process is killed on both sides of every boundary of the storage rooms, one after the other, on a journey that
// makes, uses, grows and deletes volumes and has the pool grow and shrink. After each kill the next process must be able
// to complete the journey, data that was synced must be there, the promise must hold on the disk, and nothing may be left.
func TestKilledAtEveryBoundary(t *testing.T) {
	names := boundaries(t, "../block", "../backend", "../driver")
	if len(names) < 30 {
		t.Fatalf("only %d boundaries found: %v", len(names), names)
	}
	killed := 0
	for _, name := range names {
		if _, ok := outside[name]; ok {
			continue
		}
		for _, side := range []string{":before", ":after"} {
			t.Run(name+side, func(t *testing.T) {
				dir, err := os.MkdirTemp("", "kill") // t.TempDir is too long for a socket's path here
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := pool.Teardown(filepath.Join(dir, "pools")); err != nil {
						t.Error(err)
						return
					}
					os.RemoveAll(dir)
				})
				if killAt(t, dir, name+side) {
					killed++
				} else {
					t.Errorf("the journey does not cross %s%s", name, side)
				}
				complete(t, dir)
			})
		}
	}
	t.Logf("%d boundaries, %d of them outside this journey; killed %d times", len(names), len(outside), killed)
}

const journeyDir = "BERTH_TEST_JOURNEY_DIR"

// killAt runs the journey in a process of its own, and says whether it was killed at the point.
func killAt(t *testing.T, dir, point string) bool {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestJourneyToBeKilled$", "-test.v")
	cmd.Env = append(os.Environ(), journeyDir+"="+dir, boundary.EnvKillAt+"="+point)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the journey failed by itself: %v\n%s", err, out)
	}
	return true
}

const journeyLimit = 6 << 30 // the pool begins with 4 GiB, and has to grow

// TestJourneyToBeKilled is the other process.
func TestJourneyToBeKilled(t *testing.T) {
	dir := os.Getenv(journeyDir)
	if dir == "" {
		t.Skip("run by TestKilledAtEveryBoundary")
	}
	s := startIn(t, dir, journeyLimit)
	c, b := mountCapability("xfs", writer), blockCapability()
	id := s.create(t, "data", 300*mib, c)
	s.publish(t, id, c)
	writeSynced(t, filepath.Join(s.target(id), "data"))
	mark(t, dir, "written")
	grow(t, s, id, 400*mib)
	modify(t, s, id)
	copies(t, s, id)
	raw := s.create(t, "raw", 100*mib, b)
	s.publish(t, raw, b)
	s.unpublish(t, raw)
	s.delete(t, raw)
	for range 2 { // the pool grows, gives back, takes back
		big := s.create(t, "big", 4500*mib, b)
		s.delete(t, big)
		time.Sleep(100 * time.Millisecond) // the background gives back
	}
	s.unpublish(t, id)
	mark(t, dir, "deleting")
	s.delete(t, id)
	s.stop()
}

// complete is the next process: whatever the first one got to, the same journey works, and ends with nothing left.
func complete(t *testing.T, dir string) {
	t.Helper()
	s := startIn(t, dir, journeyLimit)
	defer s.stop()
	c, b := mountCapability("xfs", writer), blockCapability()
	if err := s.pool.Verify(); err != nil {
		t.Error(err)
	}
	id := s.create0(t, "data", 300*mib, c)
	s.publish(t, id, c)
	if marked(dir, "written") && !marked(dir, "deleting") {
		if got, err := os.ReadFile(filepath.Join(s.target(id), "data")); err != nil || string(got) != synced {
			t.Errorf("synced data: %d bytes, %v", len(got), err)
		}
	}
	writeSynced(t, filepath.Join(s.target(id), "data"))
	grow(t, s, id, 400*mib)
	modify(t, s, id)
	copies(t, s, id)
	s.unpublish(t, id)
	s.delete(t, id)
	raw := s.create(t, "raw", 100*mib, b)
	s.publish(t, raw, b)
	s.unpublish(t, raw)
	s.delete(t, raw)
	big := s.create(t, "big", 4500*mib, b)
	if err := s.pool.Verify(); err != nil {
		t.Error(err)
	}
	s.delete(t, big)
	noLoops(t, dir)
	s.nothingInline(t)
	if left, err := s.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{}); err != nil || len(left.Entries) > 0 {
		t.Errorf("snapshots left: %v, %v", left, err)
	}
	if c := s.pool.Capacity(); c.Reserved != 0 {
		t.Errorf("reserved at the end: %d MiB", c.Reserved/mib)
	}
	surveys, err := pool.Look(filepath.Join(dir, "pools"))
	if err != nil || len(surveys) != 1 || len(surveys[0].Volumes)+len(surveys[0].Unfinished)+len(surveys[0].Damaged)+len(surveys[0].Loops) > 0 {
		t.Errorf("left: %+v, %v", surveys, err)
	}
	filepath.WalkDir(filepath.Join(dir, "pods"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "mount" {
			t.Errorf("target left: %s", path)
		}
		return nil
	})
}

// modify changes what can be changed of a volume in use.
func modify(t testing.TB, s *served, id string) {
	t.Helper()
	for _, kib := range []string{"256", "512"} {
		_, err := s.ControllerModifyVolume(t.Context(), &csi.ControllerModifyVolumeRequest{VolumeId: id, MutableParameters: map[string]string{"readAheadKiB": kib}})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// copies makes and takes away whatever can be made of a mounted volume, and an inline one. Each step may have been done before.
func copies(t testing.TB, s *served, id string) {
	t.Helper()
	c := mountCapability("xfs", writer)
	c.GetMount().VolumeMountGroup = "4242"
	taken := s.snapshot(t, "snap", id)
	restored := s.createFrom(t, "restored", 500*mib, c, fromSnapshot(taken.SnapshotId))
	s.publish(t, restored, c)
	wantFile(t, filepath.Join(s.target(restored), "data"), synced)
	s.unpublish(t, restored)
	s.delete(t, restored)
	s.delete(t, s.createFrom(t, "cloned", 0, c, fromVolume(id)))
	s.deleteSnapshot(t, taken.SnapshotId)
	r, err := s.CreateVolumeGroupSnapshot(t.Context(), &csi.CreateVolumeGroupSnapshotRequest{Name: "group", SourceVolumeIds: []string{id}})
	if err != nil {
		t.Fatal(err)
	}
	var members []string
	for _, m := range r.GroupSnapshot.Snapshots {
		members = append(members, m.SnapshotId)
	}
	if _, err := s.DeleteVolumeGroupSnapshot(t.Context(), &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: r.GroupSnapshot.GroupSnapshotId, SnapshotIds: members}); err != nil {
		t.Fatal(err)
	}
	s.publishInline(t, handle(1), map[string]string{"size": "100Mi"})
	writeSynced(t, filepath.Join(s.target(handle(1)), "data"))
	s.unpublishInline(t, handle(1))
}

// A process dies while it has a filesystem frozen, and the next one while it thaws: whoever writes waits, and goes on with the one
// that gets further.
func TestKilledWhileFrozen(t *testing.T) {
	for _, again := range []string{"", "pool/thaw-after-crash:before", "pool/thaw-after-crash:after", "pool/forget-crashed-freeze:before", "pool/forget-crashed-freeze:after"} {
		t.Run(again, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "kill")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := pool.Teardown(filepath.Join(dir, "pools")); err != nil {
					t.Error(err)
					return
				}
				os.RemoveAll(dir)
			})
			if !killAt(t, dir, "backend-block/freeze:after") {
				t.Fatal("not killed while it was frozen")
			}
			targets, err := filepath.Glob(filepath.Join(dir, "pods", "*", "mount"))
			if err != nil || len(targets) != 1 {
				t.Fatal(targets, err)
			}
			written := make(chan error, 1)
			go func() { written <- os.WriteFile(filepath.Join(targets[0], "waits"), nil, 0o600) }()
			if again != "" && !killAt(t, dir, again) {
				t.Fatal("not killed at " + again)
			}
			if again == "" || strings.HasPrefix(again, "pool/thaw-after-crash:before") {
				select {
				case err := <-written:
					t.Errorf("written to a frozen filesystem: %v", err)
				default:
				}
			}
			complete(t, dir)
			if err := <-written; err != nil {
				t.Error(err)
			}
		})
	}
}

// create0 accepts that an expansion had begun.
func (s *served) create0(t testing.TB, name string, size int64, c *csi.VolumeCapability) string {
	t.Helper()
	for _, v := range s.pool.List() {
		if v.Name == name {
			size = v.SizeBytes
		}
	}
	return s.create(t, name, size, c)
}

func grow(t testing.TB, s *served, id string, size int64) {
	t.Helper()
	if _, err := s.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: size}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{VolumeId: id, VolumePath: s.target(id)}); err != nil {
		t.Fatal(err)
	}
}

var synced = strings.Repeat("written and synced\n", 1000)

func writeSynced(t testing.TB, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(synced); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func mark(t testing.TB, dir, what string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, what), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func marked(dir, what string) bool {
	_, err := os.Stat(filepath.Join(dir, what))
	return err == nil
}

// boundaries reads the names of boundary.Do's calls from the source.
func boundaries(t *testing.T, roots ...string) []string {
	t.Helper()
	var names []string
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok || len(call.Args) == 0 {
					return true
				}
				sel, ok := call.Fun.(*ast.SelectorExpr)
				if !ok || sel.Sel.Name != "Do" {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); !ok || x.Name != "boundary" {
					return true
				}
				name, err := strconv.Unquote(call.Args[0].(*ast.BasicLit).Value)
				if err != nil || slices.Contains(names, name) {
					t.Errorf("boundary %q at %s: %v, or not the only one", name, path, err)
				}
				names = append(names, name)
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return names
}
