package main

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// record is what stands beside the data of a volume or a snapshot; it is written last and removed last.
type record struct {
	ID, Name  string
	Size      int64
	Block     bool
	Source    string `json:",omitempty"` // "snapshot/ID" or "volume/ID"; of a snapshot: the volume's id
	Group     string `json:",omitempty"`
	Params    map[string]string
	Published bool
	Targets   map[string]bool `json:",omitempty"` // where it is published; true: for that one writer alone
	Made      time.Time
}

var idShape = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9_.]{0,120}$`)

// dir of an object; an id from outside cannot leave it.
func (d *driver) dir(kind, id string) (string, bool) {
	return filepath.Join(d.state, kind, id), idShape.MatchString(id)
}

func (d *driver) load(kind, id string) (*record, error) {
	dir, ok := d.dir(kind, id)
	if !ok {
		return nil, status.Errorf(codes.NotFound, "there is no %q", id)
	}
	info, err := os.Stat(filepath.Join(dir, "record"))
	if errors.Is(err, fs.ErrNotExist) || err == nil && d.bug == bugAmnesia && info.ModTime().Before(d.began) {
		return nil, status.Errorf(codes.NotFound, "there is no %q", id)
	}
	b, err := os.ReadFile(filepath.Join(dir, "record"))
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	r := &record{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return r, nil
}

// save writes the record whole or not at all.
func (d *driver) save(kind string, r *record) error {
	dir, _ := d.dir(kind, r.ID)
	b, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "record.new"), b, 0o600)
	}
	if err == nil {
		err = os.Rename(filepath.Join(dir, "record.new"), filepath.Join(dir, "record"))
	}
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return nil
}

func (d *driver) list(kind string) []*record {
	var all []*record
	entries, _ := os.ReadDir(filepath.Join(d.state, kind))
	for _, e := range entries {
		if r, err := d.load(kind, e.Name()); err == nil {
			all = append(all, r)
		}
	}
	sort.Slice(all, func(i, k int) bool { return all[i].ID < all[k].ID })
	return all
}

func (d *driver) named(kind, name string) *record {
	for _, r := range d.list(kind) {
		if r.Name == name {
			return r
		}
	}
	return nil
}

// data is where the content is: a directory, or the file of a raw device.
func (d *driver) data(kind string, r *record) string {
	dir, _ := d.dir(kind, r.ID)
	if r.Block {
		return filepath.Join(dir, "device")
	}
	return filepath.Join(dir, "data")
}

// fill makes the content of an object: empty, or a copy. What an earlier death left half-made is made again.
func (d *driver) fill(kind string, r *record, from string) error {
	dir, _ := d.dir(kind, r.ID)
	if err := os.RemoveAll(dir); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	err := os.MkdirAll(dir, 0o755)
	if err == nil && r.Block {
		err = copyFile(from, d.data(kind, r), r.Size)
	} else if err == nil {
		if err = os.Mkdir(d.data(kind, r), 0o777); err == nil && from != "" && d.bug != bugSnapshot {
			err = os.CopyFS(d.data(kind, r), os.DirFS(from))
		}
	}
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return nil
}

func copyFile(from, to string, size int64) error {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	if from != "" {
		in, err := os.Open(from)
		if err != nil {
			return err
		}
		defer in.Close()
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
	return out.Truncate(size)
}

func (d *driver) drop(kind, id string) error {
	dir, ok := d.dir(kind, id)
	if !ok {
		return nil
	}
	// The record goes last: a death in between leaves something that can be deleted again.
	for _, f := range []string{"data", "device", ""} {
		if err := os.RemoveAll(filepath.Join(dir, f)); err != nil {
			return status.Error(codes.Internal, err.Error())
		}
	}
	return nil
}

func (d *driver) volume(r *record) *csi.Volume {
	v := &csi.Volume{VolumeId: r.ID, CapacityBytes: r.Size, AccessibleTopology: []*csi.Topology{d.topology()}}
	if id, ok := cut(r.Source, "snapshot/"); ok {
		v.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id}}}
	} else if id, ok := cut(r.Source, "volume/"); ok {
		v.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id}}}
	}
	return v
}

func cut(s, prefix string) (string, bool) {
	if len(s) > len(prefix) && s[:len(prefix)] == prefix {
		return s[len(prefix):], true
	}
	return "", false
}

func snapshotOf(r *record) *csi.Snapshot {
	return &csi.Snapshot{SnapshotId: r.ID, SourceVolumeId: r.Source, SizeBytes: r.Size, CreationTime: timestamppb.New(r.Made), ReadyToUse: true, GroupSnapshotId: r.Group}
}
