package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// A snapshot is a copy of a volume's directory, <state>/snapshots/<id>, with a note beside it. With --slow it becomes
// ready that much later.
type snapshot struct {
	ID, Source, Group string
	Size              int64
	Taken             time.Time
}

func (d *driver) snapshots() string { return filepath.Join(d.state, "snapshots") }

// note reads what is written beside a directory; a missing one is nothing.
func note[T any](path string) (T, bool) {
	var v T
	b, err := os.ReadFile(path + ".json")
	return v, err == nil && json.Unmarshal(b, &v) == nil
}

func writeNote(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path+".json", b, 0o644)
}

func (d *driver) ready(s snapshot) bool { return time.Since(s.Taken) >= d.slow }

func (d *driver) proto(s snapshot) *csi.Snapshot {
	return &csi.Snapshot{SnapshotId: s.ID, SourceVolumeId: s.Source, SizeBytes: s.Size, CreationTime: timestamppb.New(s.Taken), ReadyToUse: d.ready(s), GroupSnapshotId: s.Group}
}

func (d *driver) all() (found []snapshot) {
	files, _ := filepath.Glob(filepath.Join(d.snapshots(), "*.json"))
	slices.Sort(files)
	for _, f := range files {
		if s, ok := note[snapshot](strings.TrimSuffix(f, ".json")); ok {
			found = append(found, s)
		}
	}
	return found
}

// take copies a volume; the note is written last, so that half a copy is made again.
func (d *driver) take(id, source, group string) (snapshot, error) {
	volume, err := d.path(source)
	if err != nil {
		return snapshot{}, err
	}
	if !volumeID.MatchString(id) {
		return snapshot{}, status.Errorf(codes.InvalidArgument, "snapshot name %q", id)
	}
	path := filepath.Join(d.snapshots(), id)
	if s, ok := note[snapshot](path); ok {
		if s.Source != source {
			return snapshot{}, status.Errorf(codes.AlreadyExists, "snapshot %s is of volume %s", id, s.Source)
		}
		return s, nil
	}
	if _, err := os.Stat(volume); err != nil {
		return snapshot{}, status.Errorf(codes.NotFound, "volume %s does not exist", source)
	}
	if err := errors.Join(os.MkdirAll(d.snapshots(), 0o755), os.RemoveAll(path), copyTree(volume, path)); err != nil {
		return snapshot{}, status.Error(codes.Internal, err.Error())
	}
	size, _ := note[int64](volume)
	s := snapshot{ID: id, Source: source, Group: group, Size: size, Taken: time.Now()}
	if err := writeNote(path, s); err != nil {
		return snapshot{}, status.Error(codes.Internal, err.Error())
	}
	return s, nil
}

func copyTree(from, to string) error {
	out, err := exec.Command("cp", "-a", from, to).CombinedOutput()
	if err != nil {
		return errors.New(string(out))
	}
	return nil
}

func (d *driver) drop(id string) error {
	path := filepath.Join(d.snapshots(), filepath.Base(id))
	err := os.Remove(path + ".json")
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	err = errors.Join(err, os.RemoveAll(path))
	_ = os.Remove(d.snapshots()) // when it was the last
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return nil
}

func (d *driver) CreateSnapshot(_ context.Context, r *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if want := d.secret; want != "" && r.GetSecrets()["key"] != want {
		return nil, status.Error(codes.Unauthenticated, "the secret's key is wrong, or there is none")
	}
	s, err := d.take(r.GetName(), r.GetSourceVolumeId(), "")
	if err != nil {
		return nil, err
	}
	return &csi.CreateSnapshotResponse{Snapshot: d.proto(s)}, nil
}

func (d *driver) DeleteSnapshot(_ context.Context, r *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	return &csi.DeleteSnapshotResponse{}, d.drop(r.GetSnapshotId())
}

func (d *driver) ListSnapshots(_ context.Context, r *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	found := slices.DeleteFunc(d.all(), func(s snapshot) bool {
		return r.GetSnapshotId() != "" && s.ID != r.GetSnapshotId() || r.GetSourceVolumeId() != "" && s.Source != r.GetSourceVolumeId()
	})
	from, _ := strconv.Atoi(r.GetStartingToken())
	out := &csi.ListSnapshotsResponse{}
	for i := from; i < len(found); i++ {
		if r.GetMaxEntries() > 0 && int32(i-from) == r.GetMaxEntries() {
			out.NextToken = strconv.Itoa(i)
			break
		}
		out.Entries = append(out.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: d.proto(found[i])})
	}
	return out, nil
}

// fill makes a new volume's directory from its source.
func (d *driver) fill(path string, from *csi.VolumeContentSource) error {
	var source string
	switch {
	case from == nil:
		return os.MkdirAll(path, 0o777)
	case from.GetSnapshot() != nil:
		source = filepath.Join(d.snapshots(), filepath.Base(from.GetSnapshot().GetSnapshotId()))
	default:
		source = filepath.Join(d.state, filepath.Base(from.GetVolume().GetVolumeId()))
	}
	if _, err := os.Stat(source); err != nil {
		return status.Errorf(codes.NotFound, "there is no %s", filepath.Base(source))
	}
	return copyTree(source, path)
}

func (d *driver) GroupControllerGetCapabilities(context.Context, *csi.GroupControllerGetCapabilitiesRequest) (*csi.GroupControllerGetCapabilitiesResponse, error) {
	return &csi.GroupControllerGetCapabilitiesResponse{Capabilities: []*csi.GroupControllerServiceCapability{{Type: &csi.GroupControllerServiceCapability_Rpc{
		Rpc: &csi.GroupControllerServiceCapability_RPC{Type: csi.GroupControllerServiceCapability_RPC_CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT}}}}}, nil
}

func (d *driver) CreateVolumeGroupSnapshot(_ context.Context, r *csi.CreateVolumeGroupSnapshotRequest) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	for i, v := range r.GetSourceVolumeIds() {
		if _, err := d.take(r.GetName()+"-"+strconv.Itoa(i), v, r.GetName()); err != nil {
			return nil, err
		}
	}
	g, err := d.group(r.GetName())
	return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: g}, err
}

func (d *driver) group(id string) (*csi.VolumeGroupSnapshot, error) {
	g := &csi.VolumeGroupSnapshot{GroupSnapshotId: id, ReadyToUse: true}
	for _, s := range d.all() {
		if s.Group == id {
			g.Snapshots, g.ReadyToUse, g.CreationTime = append(g.Snapshots, d.proto(s)), g.ReadyToUse && d.ready(s), timestamppb.New(s.Taken)
		}
	}
	if len(g.Snapshots) == 0 {
		return nil, status.Errorf(codes.NotFound, "no group snapshot %s", id)
	}
	return g, nil
}

func (d *driver) GetVolumeGroupSnapshot(_ context.Context, r *csi.GetVolumeGroupSnapshotRequest) (*csi.GetVolumeGroupSnapshotResponse, error) {
	g, err := d.group(r.GetGroupSnapshotId())
	return &csi.GetVolumeGroupSnapshotResponse{GroupSnapshot: g}, err
}

func (d *driver) DeleteVolumeGroupSnapshot(_ context.Context, r *csi.DeleteVolumeGroupSnapshotRequest) (*csi.DeleteVolumeGroupSnapshotResponse, error) {
	for _, s := range d.all() {
		if s.Group == r.GetGroupSnapshotId() {
			if err := d.drop(s.ID); err != nil {
				return nil, err
			}
		}
	}
	return &csi.DeleteVolumeGroupSnapshotResponse{}, nil
}

// ControllerModifyVolume knows one parameter, tier, and writes it beside the volume.
func (d *driver) ControllerModifyVolume(_ context.Context, r *csi.ControllerModifyVolumeRequest) (*csi.ControllerModifyVolumeResponse, error) {
	p, err := d.path(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &csi.ControllerModifyVolumeResponse{}, d.modify(p, r.GetMutableParameters())
}

func (d *driver) modify(path string, parameters map[string]string) error {
	for k, v := range parameters {
		if k != "tier" || v != "gold" && v != "silver" {
			return status.Errorf(codes.InvalidArgument, "parameter %s=%s: only tier, gold or silver", k, v)
		}
	}
	if len(parameters) == 0 {
		return nil
	}
	return os.WriteFile(path+".tier", []byte(parameters["tier"]), 0o644)
}
