//go:build component

package driver_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.io/berth/internal/driver"
)

// handle is an inline volume's id as a kubelet makes it up: longer than any of the pool's.
func handle(n int) string { return "csi-" + strings.Repeat(fmt.Sprint(n), 64) }

func (s *served) inlineRequest(handle string, attributes map[string]string) *csi.NodePublishVolumeRequest {
	context := map[string]string{"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.name": "p"}
	for k, v := range attributes {
		context[k] = v
	}
	return &csi.NodePublishVolumeRequest{VolumeId: handle, TargetPath: s.target(handle), VolumeCapability: mountCapability("", writer), VolumeContext: context}
}

func (s *served) publishInline(t testing.TB, handle string, attributes map[string]string) {
	t.Helper()
	os.MkdirAll(filepath.Dir(s.target(handle)), 0o750)
	if _, err := s.NodePublishVolume(t.Context(), s.inlineRequest(handle, attributes)); err != nil {
		t.Fatal(err)
	}
}

func (s *served) unpublishInline(t testing.TB, handle string) {
	t.Helper()
	if _, err := s.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: handle, TargetPath: s.target(handle)}); err != nil {
		t.Fatal(err)
	}
}

// nothingInline makes sure that no inline volume, note or mount is left.
func (s *served) nothingInline(t testing.TB) {
	t.Helper()
	if notes, err := os.ReadDir(filepath.Join(filepath.Dir(s.socket), "inline")); err != nil && !os.IsNotExist(err) || len(notes) > 0 {
		t.Errorf("notes left: %v, %v", notes, err)
	}
	for _, v := range s.pool.List() {
		if strings.HasPrefix(v.Name, driver.InlineName("")) {
			t.Errorf("volume left: %+v", v)
		}
	}
}

// An inline volume is made when it is published, is counted, survives a restart with its data, and goes when it is unpublished.
func TestInlineVolume(t *testing.T) {
	s := start(t, 4<<30)
	h := handle(1)
	s.publishInline(t, h, map[string]string{"size": "200Mi"})
	write(t, filepath.Join(s.target(h), "data"), "kept")
	if c := s.pool.Capacity(); c.Reserved < 200*mib {
		t.Errorf("reserved: %d MiB", c.Reserved/mib)
	}
	s.publishInline(t, h, map[string]string{"size": "200Mi"}) // again
	wantFile(t, filepath.Join(s.target(h), "data"), "kept")
	stats, err := s.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: h, VolumePath: s.target(h)})
	if err != nil || stats.Usage[0].Total < 150*mib || stats.Usage[0].Total > 200*mib {
		t.Errorf("stats: %v, %v", stats, err)
	}
	if health, err := s.NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: h, VolumePublishPath: s.target(h)}); err != nil || len(health.VolumeHealth.HealthStatuses) > 0 {
		t.Errorf("health: %v, %v", health, err)
	}
	_, err = s.NodePublishVolume(t.Context(), s.inlineRequest(h, map[string]string{"size": "300Mi"}))
	wantCode(t, err, codes.AlreadyExists)
	s.stop()
	s = startIn(t, s.dir, 4<<30)
	defer s.stop()
	s.publishInline(t, h, map[string]string{"size": "200Mi"})
	wantFile(t, filepath.Join(s.target(h), "data"), "kept")
	for range 2 {
		s.unpublishInline(t, h)
	}
	if _, err := os.Lstat(s.target(h)); !os.IsNotExist(err) {
		t.Errorf("target left: %v", err)
	}
	s.nothingInline(t)
	noLoops(t, s.dir)
}

// A pod's directory that is gone at the start takes its inline volume with it, as does a note that is gone.
func TestInlineVolumeOfAPodThatIsGone(t *testing.T) {
	s := start(t, 4<<30)
	for n := 1; n <= 3; n++ {
		s.publishInline(t, handle(n), map[string]string{"size": "100Mi"})
	}
	// The first one's pod is gone with its mount; the second one's note, too; the third one lives.
	for n := 1; n <= 2; n++ {
		if err := unix.Unmount(s.target(handle(n)), 0); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Dir(s.target(handle(n)))); err != nil {
			t.Fatal(err)
		}
	}
	s.stop()
	notes := filepath.Join(filepath.Dir(s.socket), "inline")
	entries, err := os.ReadDir(notes)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%v, %v", entries, err)
	}
	for _, e := range entries {
		note, err := os.ReadFile(filepath.Join(notes, e.Name(), "note.json"))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(note), handle(2)) {
			staged := filepath.Join(notes, e.Name(), "mount")
			if err := unix.Unmount(staged, 0); err != nil { // as after a power cut
				t.Fatal(err)
			}
			os.RemoveAll(filepath.Join(notes, e.Name()))
		}
	}
	s = startIn(t, s.dir, 4<<30)
	defer s.stop()
	var names []string
	for _, v := range s.pool.List() {
		names = append(names, v.Name)
	}
	if len(names) != 1 || names[0] != driver.InlineName(handle(3)) {
		t.Errorf("volumes after the start: %v", names)
	}
	s.unpublishInline(t, handle(3))
	s.nothingInline(t)
	noLoops(t, s.dir)
}

// Many at once, and each of them more than once: every call ends with a success or says that another is under way.
func TestInlineVolumesAtOnce(t *testing.T) {
	s := start(t, 6<<30)
	var all sync.WaitGroup
	both := func(n int, call func() error) {
		for range 2 {
			all.Go(func() {
				if err := call(); err != nil && status.Code(err) != codes.Aborted {
					t.Errorf("volume %d: %v", n, err)
				}
			})
		}
	}
	for n := range 10 {
		h := handle(n)
		os.MkdirAll(filepath.Dir(s.target(h)), 0o750)
		both(n, func() error {
			_, err := s.NodePublishVolume(t.Context(), s.inlineRequest(h, map[string]string{"size": "100Mi"}))
			return err
		})
	}
	all.Wait()
	for n := range 10 {
		h := handle(n)
		s.publishInline(t, h, map[string]string{"size": "100Mi"})
		both(n, func() error {
			_, err := s.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: h, TargetPath: s.target(h)})
			return err
		})
	}
	all.Wait()
	for n := range 10 {
		s.unpublishInline(t, handle(n))
	}
	s.nothingInline(t)
	noLoops(t, s.dir)
}

// What cannot be made leaves nothing, and says which attribute is wrong.
func TestBadInlineVolumes(t *testing.T) {
	s := start(t, 2<<30)
	persistent := s.create(t, "v", 100*mib, mountCapability("", writer))
	for name, tc := range map[string]struct {
		change func(*csi.NodePublishVolumeRequest)
		want   codes.Code
	}{
		"no size":                  {size("banana"), codes.InvalidArgument},
		"a negative size":          {size("-1Gi"), codes.InvalidArgument},
		"a size of nothing":        {size("0"), codes.InvalidArgument},
		"a part of a byte":         {size("0.5"), codes.InvalidArgument},
		"beyond the pool":          {size("1Pi"), codes.OutOfRange},
		"beyond any number":        {size("1e40"), codes.InvalidArgument},
		"another attribute":        {func(r *csi.NodePublishVolumeRequest) { r.VolumeContext["replicas"] = "3" }, codes.InvalidArgument},
		"a block device":           {func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability = blockCapability() }, codes.InvalidArgument},
		"an unknown filesystem":    {func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability = mountCapability("zfs", writer) }, codes.InvalidArgument},
		"an unknown mount option":  {func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability = mountCapability("", writer, "banana") }, codes.InvalidArgument},
		"a persistent volume's id": {func(r *csi.NodePublishVolumeRequest) { r.VolumeId = persistent }, codes.InvalidArgument},
		"no target":                {func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "" }, codes.InvalidArgument},
		"a relative target":        {func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "pods/x" }, codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			r := s.inlineRequest(handle(1), nil)
			tc.change(r)
			_, err := s.NodePublishVolume(t.Context(), r)
			wantCode(t, err, tc.want)
			s.nothingInline(t)
		})
	}
	_, err := s.CreateVolume(t.Context(), &csi.CreateVolumeRequest{Name: driver.InlineName("x"), VolumeCapabilities: []*csi.VolumeCapability{mountCapability("", writer)}})
	wantCode(t, err, codes.InvalidArgument)
	noLoops(t, s.dir)
}

func size(s string) func(*csi.NodePublishVolumeRequest) {
	return func(r *csi.NodePublishVolumeRequest) { r.VolumeContext["size"] = s }
}

// A volume's files become the group's at its place, and new ones, too; a link in it leads nowhere.
func TestMountGroup(t *testing.T) {
	s := start(t, 2<<30)
	c := mountCapability("xfs", writer)
	id := s.create(t, "v", 300*mib, c)
	s.publish(t, id, c)
	at := s.target(id)
	outside := filepath.Join(t.TempDir(), "outside")
	write(t, outside, "not the volume's")
	if err := os.MkdirAll(filepath.Join(at, "a/b"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(at, "a/b/file"), "x")
	if err := os.Symlink(outside, filepath.Join(at, "link")); err != nil {
		t.Fatal(err)
	}
	s.unpublish(t, id)
	c.GetMount().VolumeMountGroup = "4242"
	s.publish(t, id, c)
	write(t, filepath.Join(at, "a/new"), "x")
	for path, want := range map[string]uint32{".": 0o2770, "a": 0o2770, "a/b": 0o2770, "a/b/file": 0o660, "a/new": 0o600} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(at, path), &st); err != nil || st.Gid != 4242 || st.Mode&0o7770 != want {
			t.Errorf("%s: group %d, mode %o, want %o (%v)", path, st.Gid, st.Mode&0o7777, want, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(outside, &st); err != nil || st.Gid == 4242 {
		t.Errorf("what a link names outside: %+v, %v", st, err)
	}
	c.GetMount().VolumeMountGroup = "wheel"
	_, err := s.NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: s.staging(id), TargetPath: s.target("other"), VolumeCapability: c})
	wantCode(t, err, codes.InvalidArgument)
	s.unpublish(t, id)
}

// What is attached for reading is mounted so, and attaching it otherwise is refused until it is detached.
func TestReadOnlyAttachment(t *testing.T) {
	s := start(t, 2<<30)
	c := mountCapability("ext4", writer)
	id := s.create(t, "v", 100*mib, c)
	attach := func(readOnly bool) (*csi.ControllerPublishVolumeResponse, error) {
		return s.ControllerPublishVolume(t.Context(), &csi.ControllerPublishVolumeRequest{VolumeId: id, NodeId: node, VolumeCapability: c, Readonly: readOnly})
	}
	for range 2 {
		if _, err := attach(true); err != nil {
			t.Fatal(err)
		}
	}
	attached, err := attach(true)
	if err != nil {
		t.Fatal(err)
	}
	_, err = attach(false)
	wantCode(t, err, codes.AlreadyExists)
	os.MkdirAll(s.staging(id), 0o750)
	for range 2 {
		if _, err := s.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: s.staging(id), VolumeCapability: c, PublishContext: attached.PublishContext}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: s.staging(id), TargetPath: s.target(id), VolumeCapability: c, PublishContext: attached.PublishContext}); err != nil {
			t.Fatal(err)
		}
	}
	for _, at := range []string{s.staging(id), s.target(id)} {
		if err := os.WriteFile(filepath.Join(at, "x"), nil, 0o600); err == nil {
			t.Errorf("written at %s", at)
		}
	}
	snap := s.snapshot(t, "larger", id) // grows when it is mounted for writing
	restored := s.createFrom(t, "restored", 200*mib, c, fromSnapshot(snap.SnapshotId))
	os.MkdirAll(s.staging(restored), 0o750)
	for range 2 {
		if _, err := s.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: restored, StagingTargetPath: s.staging(restored), VolumeCapability: c, PublishContext: attached.PublishContext}); err != nil {
			t.Error(err)
		}
	}
	s.unpublish(t, restored)
	s.delete(t, restored)
	s.deleteSnapshot(t, snap.SnapshotId)
	health, err := s.NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: id, StagingTargetPath: s.staging(id)})
	if err != nil || len(health.VolumeHealth.HealthStatuses) != 0 {
		t.Errorf("health of a volume that is read only by wish: %v, %v", health, err)
	}
	s.unpublish(t, id)
	if _, err := attach(false); err != nil {
		t.Error(err)
	}
	s.publish(t, id, c)
	write(t, filepath.Join(s.target(id), "x"), "")
	_, err = s.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: s.staging(id), VolumeCapability: c, PublishContext: attached.PublishContext})
	wantCode(t, err, codes.AlreadyExists)
	second := &csi.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: s.staging(id), TargetPath: s.target("second"), VolumeCapability: c, Readonly: true}
	for range 2 {
		if _, err := s.NodePublishVolume(t.Context(), second); err != nil {
			t.Fatal(err)
		}
	}
	second.Readonly = false
	_, err = s.NodePublishVolume(t.Context(), second)
	wantCode(t, err, codes.AlreadyExists)
	if _, err := s.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: s.target("second")}); err != nil {
		t.Fatal(err)
	}
	if storage, err := s.NodeGetStorageHealth(t.Context(), &csi.NodeGetStorageHealthRequest{}); err != nil || len(storage.BackendHealth) > 0 {
		t.Errorf("storage: %v, %v", storage, err)
	}
	s.unpublish(t, id)
	s.delete(t, id)
}
