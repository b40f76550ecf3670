//go:build component

package driver_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/host/filesystem"
	"berth.io/berth/internal/host/loop"
)

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("code %v, want %v: %v", status.Code(err), want, err)
	}
	if err != nil {
		t.Log(err)
	}
}

// Each filesystem: created, mounted, written, grown while it is mounted, unmounted, mounted again with its data, deleted.
func TestFilesystems(t *testing.T) {
	s := start(t, 8<<30)
	for _, fsType := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fsType, func(t *testing.T) {
			c := mountCapability(fsType, writer, "noatime")
			id := s.create(t, "of-"+fsType, 400*mib, c)
			s.publish(t, id, c)
			data := bytes.Repeat([]byte("berth"), 1<<20)
			file := filepath.Join(s.target(id), "data")
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := s.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: 600 * mib}}); err != nil {
				t.Fatal(err)
			}
			_, err := s.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{VolumeId: id, VolumePath: s.target(id)})
			if filesystem.MayGrowMounted(fsType) {
				if err != nil {
					t.Fatal(err)
				}
			} else {
				wantCode(t, err, codes.FailedPrecondition)
				s.unpublish(t, id)
				s.publish(t, id, c)
			}
			stats, err := s.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: s.target(id)})
			if err != nil || stats.Usage[0].Total < 500*mib {
				t.Errorf("stats after the expansion: %v, %v", stats, err)
			}
			s.unpublish(t, id)
			s.publish(t, id, c)
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, data) {
				t.Errorf("data after an expansion and a remount: %d bytes, %v", len(got), err)
			}
			s.unpublish(t, id)
			s.delete(t, id)
		})
	}
	noLoops(t, s.dir)
}

// noLoops makes sure that no volume is attached any more.
func noLoops(t *testing.T, dir string) {
	t.Helper()
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	loops, err := loop.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range loops {
		if strings.HasPrefix(l.Backing, dir) && strings.Contains(l.Backing, "/volumes/") {
			t.Errorf("loop device left: %+v", l)
		}
	}
}

// A raw block volume is a device at the target; it grows online; once written to it is never formatted.
func TestRawBlock(t *testing.T) {
	s := start(t, 4<<30)
	c := blockCapability()
	id := s.create(t, "raw", 100*mib, c)
	s.publish(t, id, c)
	dev, err := os.OpenFile(s.target(id), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dev.WriteAt([]byte("precious"), 50*mib); err != nil {
		t.Fatal(err)
	}
	_, err = s.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: s.target(id)})
	wantCode(t, err, codes.FailedPrecondition) // open
	if _, err := s.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: 200 * mib}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{VolumeId: id, VolumePath: s.target(id)}); err != nil {
		t.Fatal(err)
	}
	if size, err := dev.Seek(0, 2); err != nil || size != 200*mib {
		t.Errorf("size %d, %v", size, err)
	}
	_, err = s.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: id})
	wantCode(t, err, codes.FailedPrecondition)
	dev.Close()
	s.unpublish(t, id)
	os.MkdirAll(s.staging(id), 0o750)
	_, err = s.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: s.staging(id), VolumeCapability: mountCapability("ext4", writer)})
	wantCode(t, err, codes.InvalidArgument)
	s.delete(t, id)
	noLoops(t, s.dir)
}

// A volume is never formatted twice, whatever is asked.
func TestDataIsNeverFormatted(t *testing.T) {
	s := start(t, 4<<30)
	c := mountCapability("ext4", writer)
	id := s.create(t, "data", 400*mib, c)
	s.publish(t, id, c)
	os.WriteFile(filepath.Join(s.target(id), "data"), []byte("precious"), 0o600)
	s.unpublish(t, id)
	_, err := s.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: s.staging(id), VolumeCapability: mountCapability("xfs", writer)})
	wantCode(t, err, codes.InvalidArgument)
	// Even a superblock that is gone is no reason to.
	disk, err := os.OpenFile(s.pool.Disk(id), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	saved := make([]byte, 4096)
	disk.ReadAt(saved, 0)
	disk.WriteAt(make([]byte, 4096), 0)
	disk.Sync()
	_, err = s.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: s.staging(id), VolumeCapability: c})
	wantCode(t, err, codes.InvalidArgument)
	disk.WriteAt(saved, 0)
	disk.Sync()
	s.publish(t, id, c)
	if got, err := os.ReadFile(filepath.Join(s.target(id), "data")); err != nil || string(got) != "precious" {
		t.Errorf("%q, %v", got, err)
	}
	s.unpublish(t, id)
}

// The driver ends and starts again with a volume in use: it knows where the volume is, and everything goes on.
func TestRestartWithVolumesInUse(t *testing.T) {
	s := start(t, 4<<30)
	c := mountCapability("ext4", single)
	b := blockCapability()
	b.AccessMode.Mode = single
	id, raw := s.create(t, "fs", 300*mib, c), s.create(t, "raw", 300*mib, b)
	s.publish(t, id, c)
	s.publish(t, raw, b)
	// As a kubelet does; it is not a second place at which the volume is published.
	mapped := filepath.Join(s.dir, "mapped")
	if err := errors.Join(os.WriteFile(mapped, nil, 0o600), unix.Mount(s.target(raw), mapped, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mapped, 0) })
	open, err := os.Create(filepath.Join(s.target(id), "open"))
	if err != nil {
		t.Fatal(err)
	}
	s.stop()
	s = startIn(t, s.dir, 4<<30)
	defer s.stop()
	if _, err := open.WriteString("goes on"); err != nil {
		t.Error(err)
	}
	open.Close()
	list, err := s.ListVolumes(t.Context(), &csi.ListVolumesRequest{})
	if err != nil || len(list.Entries) != 2 || len(list.Entries[0].Status.PublishedNodeIds) != 1 {
		t.Errorf("list after the restart: %v, %v", list, err)
	}
	for id, c := range map[string]*csi.VolumeCapability{id: c, raw: b} {
		s.publish(t, id, c) // again: success, nothing changes
		_, err = s.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: id})
		wantCode(t, err, codes.FailedPrecondition)
	}
	_, err = s.NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: s.staging(id), TargetPath: s.target("other"), VolumeCapability: c})
	wantCode(t, err, codes.FailedPrecondition) // ReadWriteOncePod
	if err := unix.Unmount(mapped, 0); err != nil {
		t.Error(err)
	}
	for _, id := range []string{id, raw} {
		s.unpublish(t, id)
		s.unpublish(t, id)
		s.delete(t, id)
	}
	noLoops(t, s.dir)
}

// What is wrong is said, and nothing is made.
func TestBadRequests(t *testing.T) {
	s := start(t, 2<<30)
	for name, tc := range map[string]struct {
		size, limit int64
		c           *csi.VolumeCapability
		parameters  map[string]string
		topology    string
		want        codes.Code
	}{
		"negative size":       {size: -1, want: codes.InvalidArgument},
		"limit below size":    {size: 2 * mib, limit: mib, want: codes.InvalidArgument},
		"beyond the pool":     {size: 1 << 50, want: codes.OutOfRange},
		"beyond any pool":     {size: 1<<63 - 1, want: codes.OutOfRange},
		"xfs too small":       {size: 100 * mib, limit: 200 * mib, c: mountCapability("xfs", writer), want: codes.OutOfRange},
		"btrfs too small":     {size: 100 * mib, limit: 100 * mib, c: mountCapability("btrfs", writer), want: codes.OutOfRange},
		"unknown filesystem":  {size: mib, c: mountCapability("zfs", writer), want: codes.InvalidArgument},
		"many nodes":          {size: mib, c: mountCapability("", csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER), want: codes.InvalidArgument},
		"unknown parameter":   {size: mib, parameters: map[string]string{"replicas": "3"}, want: codes.InvalidArgument},
		"unserved parameter":  {size: mib, parameters: map[string]string{"access": "network"}, want: codes.InvalidArgument},
		"another node's pool": {size: mib, topology: "node-2", want: codes.ResourceExhausted},
		"not in whole units":  {size: mib + 1, limit: mib + 2, c: blockCapability(), want: codes.OutOfRange},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.c == nil {
				tc.c = mountCapability("", writer)
			}
			r := &csi.CreateVolumeRequest{Name: "bad", CapacityRange: &csi.CapacityRange{RequiredBytes: tc.size, LimitBytes: tc.limit}, VolumeCapabilities: []*csi.VolumeCapability{tc.c}, Parameters: tc.parameters}
			if tc.topology != "" {
				r.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: []*csi.Topology{{Segments: map[string]string{"topology.block.csi.berth.io/node": tc.topology}}}}
			}
			_, err := s.CreateVolume(t.Context(), r)
			wantCode(t, err, tc.want)
		})
	}
	if v := s.pool.List(); len(v) != 0 {
		t.Errorf("made: %v", v)
	}
	for _, id := range []string{"../../etc", "a/b", "", "volume.json", ".making-x", strings.Repeat("a", 64)} {
		_, err := s.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: s.staging("x"), VolumeCapability: mountCapability("", writer)})
		if c := status.Code(err); c != codes.NotFound && !(id == "" && c == codes.InvalidArgument) {
			t.Errorf("id %q: %v", id, err)
		}
	}
}

// Fifty volumes at once, from claim to mount and back.
func TestFiftyVolumesAtOnce(t *testing.T) {
	s := start(t, 10<<30)
	c := mountCapability("ext4", writer)
	began := time.Now()
	var all sync.WaitGroup
	ids := make([]string, 50)
	for i := range ids {
		all.Go(func() {
			ids[i] = s.create(t, fmt.Sprintf("pvc-00000000-0000-0000-0000-%012d", i), 100*mib, c)
			s.publish(t, ids[i], c)
		})
	}
	all.Wait()
	t.Logf("50 volumes created, formatted, attached and mounted in %v", time.Since(began))
	began = time.Now()
	for _, id := range ids {
		all.Go(func() { s.unpublish(t, id); s.delete(t, id) })
	}
	all.Wait()
	t.Logf("and taken away in %v", time.Since(began))
	noLoops(t, s.dir)
}

// Read-only volumes, and two places for one volume.
func TestPublishModes(t *testing.T) {
	s := start(t, 2<<30)
	c := mountCapability("ext4", writer)
	id := s.create(t, "v", 100*mib, c)
	s.publish(t, id, c)
	second := s.target("second")
	if _, err := s.NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: s.staging(id), TargetPath: second, VolumeCapability: c, Readonly: true}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(second, "x"), nil, 0o600); err == nil {
		t.Error("written to a read-only target")
	}
	if err := os.WriteFile(filepath.Join(s.target(id), "x"), nil, 0o600); err != nil {
		t.Error(err)
	}
	_, err := s.NodeUnstageVolume(t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: s.staging(id)})
	wantCode(t, err, codes.FailedPrecondition)
	if _, err := s.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: second}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(second); !os.IsNotExist(err) {
		t.Errorf("the target is left: %v", err)
	}
	h, err := s.NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: id})
	if err != nil || len(h.VolumeHealth.HealthStatuses) != 0 {
		t.Errorf("health: %v, %v", h, err)
	}
	// What remains is taken down without a driver.
	s.stop()
	if err := pool.Teardown(filepath.Join(s.dir, "pools")); err != nil {
		t.Fatal(err)
	}
	noLoops(t, s.dir)
	var st unix.Statfs_t
	if unix.Statfs(s.target(id), &st); st.Type == unix.EXT4_SUPER_MAGIC && st.Blocks*uint64(st.Bsize) < uint64(110*mib) {
		t.Error("still mounted")
	}
}
