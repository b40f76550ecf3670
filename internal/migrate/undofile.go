package migrate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/durable"
)

// state is how far a record came, as far as the API cannot tell.
type state string

const (
	migrating state = "migrating" // the CSI form is wanted
	migrated  state = "migrated"
	undoing   state = "undoing" // the FlexVolume form is wanted
	undone    state = "undone"
)

// record is the content of an undo file: both forms of one volume.
type record struct {
	Version int       `json:"version"`
	State   state     `json:"state"`
	Created time.Time `json:"created"`
	// Cluster is the UID of the namespace kube-system: a file of another cluster is refused.
	Cluster types.UID `json:"cluster"`
	// UID of the object that was there before.
	UID types.UID `json:"uid"`
	// Policy is the reclaim policy that the volume had, and has in the end.
	Policy v1.PersistentVolumeReclaimPolicy `json:"reclaimPolicy"`
	// Retained from before the object is removed until before the new one gets its policy back: meanwhile it is Retain, and the data is
	// there when the object is not.
	Retained bool                 `json:"retained,omitempty"`
	Flex     *v1.PersistentVolume `json:"flexVolume"`
	CSI      *v1.PersistentVolume `json:"csi"`

	path string
}

const (
	recordVersion = 1
	recordSuffix  = ".json"
	// recordLimit in bytes: an object in the API has 1.5 MiB at most.
	recordLimit = 8 << 20
)

// wants is the form that is to be, and the one that is to go.
func (r *record) wants() (to, from *v1.PersistentVolume) {
	if r.State == undoing || r.State == undone {
		return r.Flex, r.CSI
	}
	return r.CSI, r.Flex
}

func (r *record) unfinished() bool { return r.State == migrating || r.State == undoing }

// deletedByOthers refuses a volume whose object is gone, and not by a run: with what policy, and so whether its data is there, nobody knows.
func (r *record) deletedByOthers(pv *v1.PersistentVolume) error {
	if pv != nil || r.Retained {
		return nil
	}
	return refuse(r.Flex.Name, "its PersistentVolume was deleted by somebody else since, and perhaps its data with it; what it was is in %s: "+
		"create it by hand if the data is there", r.path)
}

// folder is the directory of the undo files, held against a second run.
type folder struct {
	dir  string
	lock *os.File
}

// openFolder makes the directory, and holds it until close.
func openFolder(dir string) (*folder, error) {
	if err := makeDir(dir, durable.SyncDirectory); err != nil {
		return nil, fmt.Errorf("directory of the undo files: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("directory of the undo files: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("another `berth migrate` is at work with the undo files in %s: wait for its end", dir)
	}
	return &folder{dir: dir, lock: lock}, nil
}

// makeDir makes a directory and its parents. sync is called with each that has got a new entry, the deepest first.
func makeDir(dir string, sync func(dir string) error) error {
	var grown []string
	for d := filepath.Clean(dir); ; d = filepath.Dir(d) {
		if _, err := os.Lstat(d); !errors.Is(err, fs.ErrNotExist) || d == filepath.Dir(d) {
			break // also on another error, which MkdirAll tells
		}
		grown = append(grown, filepath.Dir(d))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, d := range grown {
		if err := sync(d); err != nil {
			return err
		}
	}
	return nil
}

func (f *folder) close() error { return f.lock.Close() }

// records of a cluster, the oldest first. What is no undo file of ours is left out.
func (f *folder) records(cluster types.UID) (found []*record, err error) {
	entries, err := os.ReadDir(f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), recordSuffix) {
			continue
		}
		r, err := readRecord(filepath.Join(f.dir, e.Name()))
		if err != nil {
			return nil, err // it may be the one that has the only copy
		}
		if r.Cluster == cluster {
			found = append(found, r)
		}
	}
	slices.SortStableFunc(found, func(a, b *record) int { return a.Created.Compare(b.Created) })
	return found, nil
}

// newRecord names the file of a volume that is about to be migrated. The UID tells two lives of a name apart.
func (f *folder) newRecord(pv *v1.PersistentVolume) string {
	name := pv.Name
	if len(name) > 150 { // a file's name has 255 bytes
		name = name[:150]
	}
	return filepath.Join(f.dir, name+"."+string(pv.UID)+recordSuffix)
}

// readRecord reads an undo file.
func readRecord(path string) (*record, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("undo file: %w", err)
	}
	if !fi.Mode().IsRegular() || fi.Size() > recordLimit {
		return nil, fmt.Errorf("%s is no undo file", path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("undo file: %w", err)
	}
	r, err := parseRecord(b)
	if err != nil {
		return nil, fmt.Errorf("%s is no undo file of this version of berth: %w", path, err)
	}
	r.path = path
	return r, nil
}

// parseRecord checks what is relied upon later: that both forms are there, and mean one volume.
func parseRecord(b []byte) (*record, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var r record
	if err := d.Decode(&r); err != nil {
		return nil, err
	}
	switch {
	case r.Version != recordVersion:
		return nil, fmt.Errorf("version %d, where this one reads %d", r.Version, recordVersion)
	case !slices.Contains([]state{migrating, migrated, undoing, undone}, r.State):
		return nil, fmt.Errorf("unknown state %q", r.State)
	case r.Cluster == "" || r.UID == "" || r.Policy == "":
		return nil, errors.New("cluster, uid or reclaimPolicy is missing")
	case r.Flex == nil || r.CSI == nil || r.Flex.Spec.FlexVolume == nil || r.CSI.Spec.CSI == nil:
		return nil, errors.New("one of the two forms of the volume is missing")
	case r.Flex.Name == "" || r.Flex.Name != r.CSI.Name:
		return nil, fmt.Errorf("it is about two volumes, %q and %q", r.Flex.Name, r.CSI.Name)
	}
	return &r, nil
}

// save writes the file, and returns when it is on the disk.
func (r *record) save() error {
	r.Version = recordVersion
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	err = boundary.Do("migrate/write-undo-file", func() error { return durable.Replace(r.path, r.path+".new", append(b, '\n')) })
	if err != nil {
		return fmt.Errorf("write undo file %s: %w", r.path, err)
	}
	return nil
}
