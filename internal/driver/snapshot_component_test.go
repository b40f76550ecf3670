//go:build component

package driver_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func (s *served) snapshot(t testing.TB, name, volume string) *csi.Snapshot {
	t.Helper()
	r, err := s.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: volume})
	if err != nil {
		t.Fatal(err)
	}
	return r.Snapshot
}

func (s *served) deleteSnapshot(t testing.TB, id string) {
	t.Helper()
	if _, err := s.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: id}); err != nil {
		t.Fatal(err)
	}
}

func fromSnapshot(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id}}}
}

func fromVolume(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id}}}
}

func (s *served) createFrom(t testing.TB, name string, size int64, c *csi.VolumeCapability, source *csi.VolumeContentSource) string {
	t.Helper()
	r, err := s.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: size}, VolumeCapabilities: []*csi.VolumeCapability{c}, VolumeContentSource: source,
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Volume.ContentSource.String() != source.String() {
		t.Errorf("content source %v, want %v", r.Volume.ContentSource, source)
	}
	return r.Volume.VolumeId
}

func wantFile(t testing.TB, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s: %.40q, %v; want %.40q", path, got, err, want)
	}
}

// What was written before a snapshot is in the volumes made from it, which are mounted beside their source, and in a
// clone; what came later is not. The source may go first, then the snapshot.
func TestSnapshotRestoreClone(t *testing.T) {
	s := start(t, 8<<30)
	for _, fsType := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fsType, func(t *testing.T) {
			c := mountCapability(fsType, writer)
			id := s.create(t, "of-"+fsType, 400*mib, c)
			s.publish(t, id, c)
			file := filepath.Join(s.target(id), "data")
			write(t, file, "before")
			taken := s.snapshot(t, "snap-of-"+fsType, id)
			if taken.SourceVolumeId != id || taken.SizeBytes != 400*mib || !taken.ReadyToUse || taken.CreationTime == nil {
				t.Errorf("snapshot %v", taken)
			}
			write(t, file, "after")
			any := mountCapability("", writer) // its source's filesystem will do
			restored := s.createFrom(t, "restored-"+fsType, 700*mib, any, fromSnapshot(taken.SnapshotId))
			cloned := s.createFrom(t, "cloned-"+fsType, 0, c, fromVolume(id))
			s.publish(t, restored, any)
			s.publish(t, cloned, c)
			wantFile(t, filepath.Join(s.target(restored), "data"), "before")
			wantFile(t, filepath.Join(s.target(cloned), "data"), "after")
			stats, err := s.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: restored, VolumePath: s.target(restored)})
			if err != nil || stats.Usage[0].Total < 550*mib {
				t.Errorf("the restored filesystem has not the size that was asked for: %v, %v", stats, err)
			}
			s.unpublish(t, id)
			s.delete(t, id)
			s.deleteSnapshot(t, taken.SnapshotId)
			s.deleteSnapshot(t, taken.SnapshotId)
			wantFile(t, filepath.Join(s.target(restored), "data"), "before")
			for _, id := range []string{restored, cloned} {
				s.unpublish(t, id)
				s.delete(t, id)
			}
		})
	}
	noLoops(t, s.dir)
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// What is wrong with a source or a snapshot is said with the code that the spec has for it, and nothing is made.
func TestBadSources(t *testing.T) {
	s := start(t, 4<<30)
	c := mountCapability("ext4", writer)
	id := s.create(t, "v", 300*mib, c)
	snap := s.snapshot(t, "s", id).SnapshotId
	for name, tc := range map[string]struct {
		size   int64
		c      *csi.VolumeCapability
		source *csi.VolumeContentSource
		want   codes.Code
	}{
		"smaller than the snapshot": {size: 200 * mib, source: fromSnapshot(snap), want: codes.OutOfRange},
		"smaller than the source":   {size: 200 * mib, source: fromVolume(id), want: codes.OutOfRange},
		"no such snapshot":          {source: fromSnapshot("snap-none"), want: codes.NotFound},
		"no such volume":            {source: fromVolume("vol-none"), want: codes.NotFound},
		"another driver's volume":   {source: fromVolume("0001-0024-rook-ceph"), want: codes.NotFound},
		"an id that is a path":      {source: fromVolume("../../etc"), want: codes.NotFound},
		"a snapshot as a path":      {source: fromSnapshot("../volumes/x"), want: codes.NotFound},
		"an empty source":           {source: &csi.VolumeContentSource{}, want: codes.InvalidArgument},
		"a snapshot without id":     {source: fromSnapshot(""), want: codes.InvalidArgument},
		"a volume without id":       {source: fromVolume(""), want: codes.InvalidArgument},
		"another filesystem":        {source: fromSnapshot(snap), c: mountCapability("xfs", writer), want: codes.InvalidArgument},
		"beyond the pool":           {size: 1 << 40, source: fromSnapshot(snap), want: codes.OutOfRange},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.c == nil {
				tc.c = c
			}
			_, err := s.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
				Name: "bad", CapacityRange: &csi.CapacityRange{RequiredBytes: tc.size}, VolumeCapabilities: []*csi.VolumeCapability{tc.c}, VolumeContentSource: tc.source,
			})
			wantCode(t, err, tc.want)
		})
	}
	for name, tc := range map[string]struct {
		name, volume string
		parameters   map[string]string
		want         codes.Code
	}{
		"of no volume":        {"x", "", nil, codes.InvalidArgument},
		"without a name":      {"", id, nil, codes.InvalidArgument},
		"of an unknown one":   {"x", "vol-none", nil, codes.NotFound},
		"name already taken":  {"s", s.create(t, "w", 100*mib, c), nil, codes.AlreadyExists},
		"unknown parameter":   {"x", id, map[string]string{"tier": "gold"}, codes.InvalidArgument},
		"the sidecar's own":   {"y", id, map[string]string{"csi.storage.k8s.io/volumesnapshot/name": "n"}, codes.OK},
		"control characters":  {"x\x01", id, nil, codes.InvalidArgument},
		"longer than allowed": {string(bytes.Repeat([]byte("n"), 129)), id, nil, codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: tc.name, SourceVolumeId: tc.volume, Parameters: tc.parameters})
			wantCode(t, err, tc.want)
		})
	}
	s.delete(t, id) // its snapshots stay
	list, err := s.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{SourceVolumeId: id})
	if err != nil || len(list.Entries) != 2 {
		t.Errorf("snapshots of a deleted volume: %v, %v", list, err)
	}
	if volumes := s.pool.List(); len(volumes) != 1 { // w
		t.Errorf("made: %v", volumes)
	}
}

// A group is taken of all its volumes or of none, is read back, and its snapshots go with it alone.
func TestGroupSnapshot(t *testing.T) {
	s := start(t, 4<<30)
	c := mountCapability("ext4", writer)
	var ids []string
	for i := range 3 {
		id := s.create(t, fmt.Sprint("v", i), 100*mib, c)
		s.publish(t, id, c)
		write(t, filepath.Join(s.target(id), "data"), "before")
		ids = append(ids, id)
	}
	request := &csi.CreateVolumeGroupSnapshotRequest{Name: "g", SourceVolumeIds: ids}
	r, err := s.CreateVolumeGroupSnapshot(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	g := r.GroupSnapshot
	var members []string
	for _, m := range g.Snapshots {
		if m.GroupSnapshotId != g.GroupSnapshotId || !m.ReadyToUse {
			t.Errorf("member %v", m)
		}
		members = append(members, m.SnapshotId)
	}
	if len(members) != 3 || !g.ReadyToUse || g.CreationTime == nil {
		t.Fatalf("group %v", g)
	}
	if again, err := s.CreateVolumeGroupSnapshot(t.Context(), request); err != nil || again.GroupSnapshot.String() != g.String() {
		t.Errorf("the same again: %v, %v", again, err)
	}
	_, err = s.CreateVolumeGroupSnapshot(t.Context(), &csi.CreateVolumeGroupSnapshotRequest{Name: "g", SourceVolumeIds: ids[:2]})
	wantCode(t, err, codes.AlreadyExists)
	for name, ids := range map[string][]string{"none": nil, "one twice": {ids[0], ids[0]}, "an empty id": {ids[0], ""}} {
		_, err := s.CreateVolumeGroupSnapshot(t.Context(), &csi.CreateVolumeGroupSnapshotRequest{Name: name, SourceVolumeIds: ids})
		wantCode(t, err, codes.InvalidArgument)
	}
	_, err = s.CreateVolumeGroupSnapshot(t.Context(), &csi.CreateVolumeGroupSnapshotRequest{Name: "h", SourceVolumeIds: []string{ids[0], "vol-none"}})
	wantCode(t, err, codes.NotFound)

	raw := s.create(t, "raw", 64*mib, blockCapability())
	s.publish(t, raw, blockCapability())
	_, err = s.CreateVolumeGroupSnapshot(t.Context(), &csi.CreateVolumeGroupSnapshotRequest{Name: "h", SourceVolumeIds: []string{ids[0], raw}})
	wantCode(t, err, codes.FailedPrecondition) // nobody can hold back what is written to a device
	s.unpublish(t, raw)
	s.delete(t, raw)

	_, err = s.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: members[0]})
	wantCode(t, err, codes.InvalidArgument)
	_, err = s.DeleteVolumeGroupSnapshot(t.Context(), &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: g.GroupSnapshotId, SnapshotIds: members[:2]})
	wantCode(t, err, codes.InvalidArgument)
	alone := s.snapshot(t, "alone", ids[0])
	_, err = s.GetVolumeGroupSnapshot(t.Context(), &csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: g.GroupSnapshotId, SnapshotIds: append(members[:3:3], alone.SnapshotId)})
	wantCode(t, err, codes.InvalidArgument)
	got, err := s.GetVolumeGroupSnapshot(t.Context(), &csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: g.GroupSnapshotId, SnapshotIds: members})
	if err != nil || got.GroupSnapshot.String() != g.String() {
		t.Errorf("read back: %v, %v", got, err)
	}

	write(t, filepath.Join(s.target(ids[1]), "data"), "after") // thawed
	restored := s.createFrom(t, "restored", 0, c, fromSnapshot(g.Snapshots[0].SnapshotId))
	s.publish(t, restored, c)
	wantFile(t, filepath.Join(s.target(restored), "data"), "before")
	for range 2 {
		if _, err := s.DeleteVolumeGroupSnapshot(t.Context(), &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: g.GroupSnapshotId, SnapshotIds: members}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = s.GetVolumeGroupSnapshot(t.Context(), &csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: g.GroupSnapshotId, SnapshotIds: members})
	wantCode(t, err, codes.NotFound)
	list, err := s.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{})
	if err != nil || len(list.Entries) != 1 || list.Entries[0].Snapshot.SnapshotId != alone.SnapshotId {
		t.Errorf("left: %v, %v", list, err)
	}
	s.deleteSnapshot(t, alone.SnapshotId)
	for _, id := range append(ids, restored) {
		s.unpublish(t, id)
		s.delete(t, id)
	}
	noLoops(t, s.dir)
}

// A snapshot of a volume that is being deleted is of the whole volume or of none, and says why.
func TestSnapshotWhileDeleted(t *testing.T) {
	s := start(t, 4<<30)
	for round := range 10 {
		id := s.create(t, fmt.Sprint("v", round), 100*mib, mountCapability("ext4", writer))
		var both sync.WaitGroup
		both.Go(func() {
			if _, err := s.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: id}); err != nil && status.Code(err) != codes.Aborted {
				t.Error(err)
			}
		})
		name := fmt.Sprint("s", round)
		r, err := s.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: id})
		both.Wait()
		switch status.Code(err) {
		case codes.OK:
			restored := s.createFrom(t, fmt.Sprint("r", round), 0, mountCapability("ext4", writer), fromSnapshot(r.Snapshot.SnapshotId))
			s.delete(t, restored)
			s.deleteSnapshot(t, r.Snapshot.SnapshotId)
		case codes.NotFound, codes.Aborted:
			if list, err := s.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{}); err != nil || len(list.Entries) > 0 {
				t.Errorf("refused, and there: %v, %v", list, err)
			}
		default:
			t.Error(err)
		}
		s.delete(t, id)
	}
	if c := s.pool.Capacity(); c.Reserved != 0 {
		t.Errorf("reserved at the end: %d MiB", c.Reserved/mib)
	}
}

// The ranges of a delta, applied to the base, make the target; those of the allocated blocks hold every byte that is not
// zero. Any message may be the last that arrives: the stream goes on from there.
func TestSnapshotMetadata(t *testing.T) {
	s := start(t, 4<<30)
	c := blockCapability()
	id := s.create(t, "raw", 64*mib, c)
	s.publish(t, id, c)
	places := []int64{0, 5 * mib, 17 * mib, 40*mib + 4096, 63 * mib}
	device(t, s.target(id), func(dev *os.File) {
		for _, at := range places {
			writeAt(t, dev, at, 'a')
		}
	})
	base := s.snapshot(t, "base", id)
	device(t, s.target(id), func(dev *os.File) {
		for _, at := range places[1:3] {
			writeAt(t, dev, at, 'b')
		}
		writeAt(t, dev, 30*mib, 'c')
	})
	target := s.snapshot(t, "target", id)

	allocated := s.allocated(t, &csi.GetMetadataAllocatedRequest{SnapshotId: base.SnapshotId, MaxResults: 1})
	covers(t, "allocated", allocated, places...)
	delta := s.delta(t, &csi.GetMetadataDeltaRequest{BaseSnapshotId: base.SnapshotId, TargetSnapshotId: target.SnapshotId, MaxResults: 1})
	covers(t, "delta", delta, places[1], places[2], 30*mib)
	if len(delta) > 1 {
		rest := s.delta(t, &csi.GetMetadataDeltaRequest{
			BaseSnapshotId: base.SnapshotId, TargetSnapshotId: target.SnapshotId, StartingOffset: delta[0].ByteOffset + delta[0].SizeBytes,
		})
		if len(rest) == 0 || rest[0].ByteOffset < delta[0].ByteOffset+delta[0].SizeBytes {
			t.Errorf("goes on at %v after %v", rest, delta[0])
		}
	}
	if same := s.delta(t, &csi.GetMetadataDeltaRequest{BaseSnapshotId: base.SnapshotId, TargetSnapshotId: base.SnapshotId}); len(same) != 0 {
		t.Errorf("a snapshot differs from itself at %v", same)
	}
	other := s.create(t, "other", 64*mib, c)
	foreign := s.snapshot(t, "foreign", other)
	for name, tc := range map[string]struct {
		r    *csi.GetMetadataDeltaRequest
		want codes.Code
	}{
		"no base":            {&csi.GetMetadataDeltaRequest{TargetSnapshotId: target.SnapshotId}, codes.InvalidArgument},
		"no target":          {&csi.GetMetadataDeltaRequest{BaseSnapshotId: base.SnapshotId}, codes.InvalidArgument},
		"unknown base":       {&csi.GetMetadataDeltaRequest{BaseSnapshotId: "snap-none", TargetSnapshotId: target.SnapshotId}, codes.NotFound},
		"unknown target":     {&csi.GetMetadataDeltaRequest{BaseSnapshotId: base.SnapshotId, TargetSnapshotId: "snap-none"}, codes.NotFound},
		"of another volume":  {&csi.GetMetadataDeltaRequest{BaseSnapshotId: base.SnapshotId, TargetSnapshotId: foreign.SnapshotId}, codes.InvalidArgument},
		"the wrong way":      {&csi.GetMetadataDeltaRequest{BaseSnapshotId: target.SnapshotId, TargetSnapshotId: base.SnapshotId}, codes.InvalidArgument},
		"before the start":   {&csi.GetMetadataDeltaRequest{BaseSnapshotId: base.SnapshotId, TargetSnapshotId: target.SnapshotId, StartingOffset: -1}, codes.OutOfRange},
		"beyond the end":     {&csi.GetMetadataDeltaRequest{BaseSnapshotId: base.SnapshotId, TargetSnapshotId: target.SnapshotId, StartingOffset: 65 * mib}, codes.OutOfRange},
		"a negative maximum": {&csi.GetMetadataDeltaRequest{BaseSnapshotId: base.SnapshotId, TargetSnapshotId: target.SnapshotId, MaxResults: -1}, codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			stream, err := s.GetMetadataDelta(t.Context(), tc.r)
			if err == nil {
				_, err = stream.Recv()
			}
			wantCode(t, err, tc.want)
		})
	}
	stream, err := s.GetMetadataAllocated(t.Context(), &csi.GetMetadataAllocatedRequest{SnapshotId: "../../etc"})
	if err == nil {
		_, err = stream.Recv()
	}
	wantCode(t, err, codes.NotFound)
	s.unpublish(t, id)
}

func device(t *testing.T, path string, f func(*os.File)) {
	t.Helper()
	dev, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	f(dev)
	if err := errors.Join(dev.Sync(), unix.Fsync(int(dev.Fd()))); err != nil {
		t.Fatal(err)
	}
}

func writeAt(t *testing.T, dev *os.File, at int64, c byte) {
	t.Helper()
	if _, err := dev.WriteAt(bytes.Repeat([]byte{c}, 4096), at); err != nil {
		t.Fatal(err)
	}
}

type metadataMessage interface {
	GetBlockMetadata() []*csi.BlockMetadata
	GetBlockMetadataType() csi.BlockMetadataType
	GetVolumeCapacityBytes() int64
}

// gather reads a stream to its end and checks what the spec asks of every message.
func gather[M metadataMessage](t *testing.T, most int32, receive func() (M, error)) (all []*csi.BlockMetadata) {
	t.Helper()
	for {
		m, err := receive()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if m.GetBlockMetadataType() != csi.BlockMetadataType_VARIABLE_LENGTH || m.GetVolumeCapacityBytes() != 64*mib {
			t.Errorf("message %v", m)
		}
		if n := int32(len(m.GetBlockMetadata())); most > 0 && n > most {
			t.Errorf("%d ranges in a message, and %d are allowed", n, most)
		}
		for _, r := range m.GetBlockMetadata() {
			if n := len(all); r.SizeBytes <= 0 || n > 0 && r.ByteOffset < all[n-1].ByteOffset+all[n-1].SizeBytes {
				t.Errorf("range %v after %v", r, all)
			}
			all = append(all, r)
		}
	}
}

func (s *served) allocated(t *testing.T, r *csi.GetMetadataAllocatedRequest) []*csi.BlockMetadata {
	t.Helper()
	stream, err := s.GetMetadataAllocated(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return gather(t, r.MaxResults, stream.Recv)
}

func (s *served) delta(t *testing.T, r *csi.GetMetadataDeltaRequest) []*csi.BlockMetadata {
	t.Helper()
	stream, err := s.GetMetadataDelta(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return gather(t, r.MaxResults, stream.Recv)
}

func covers(t *testing.T, what string, ranges []*csi.BlockMetadata, places ...int64) {
	t.Helper()
	for _, at := range places {
		covered := false
		for _, r := range ranges {
			covered = covered || r.ByteOffset <= at && at+4096 <= r.ByteOffset+r.SizeBytes
		}
		if !covered {
			t.Errorf("%s: %d is not in %v", what, at, ranges)
		}
	}
}
