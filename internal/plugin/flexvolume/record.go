package flexvolume

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/boundary"
)

const (
	recordSuffix = ".json"
	newSuffix    = ".new" // while it is written
)

// volumeRecord is what is needed to take a volume away with neither the API nor memory: written before the call-out that it is
// about, and removed after the one that undoes it. Upstream keeps none, and guesses from the directory's name.
//
// It is as durable as what it tells of: a killed process loses neither, and what takes the kernel down takes the mount along.
type volumeRecord struct {
	Name     v1.UniqueVolumeName `json:"name"`
	SpecName string              `json:"specName"`
	// Persistent: through a PersistentVolume.
	Persistent bool   `json:"persistent,omitempty"`
	Attachable bool   `json:"attachable,omitempty"`
	Device     string `json:"device,omitempty"`
	// Done: the call-out has succeeded.
	Done bool `json:"done,omitempty"`
}

// save writes the record, whole or not at all. boundary: held by the caller.
func (r volumeRecord) save(path string) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	next := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+newSuffix)
	if err := os.WriteFile(next, text, 0o600); err != nil {
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("save %s: %w", path, err)
	}
	return nil
}

// loadRecord reads a record; fs.ErrNotExist when there is none.
func loadRecord(path string) (volumeRecord, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return volumeRecord{}, err
	}
	r, err := parseRecord(text)
	if err != nil {
		return volumeRecord{}, fmt.Errorf("read %s: %w", path, err)
	}
	return r, nil
}

func parseRecord(text []byte) (volumeRecord, error) {
	var r volumeRecord
	if err := json.Unmarshal(text, &r); err != nil {
		return volumeRecord{}, err
	}
	if _, _, ok := splitUniqueName(r.Name); !ok || checkElement(r.SpecName) != nil {
		return volumeRecord{}, errors.New("it names no volume")
	}
	return r, nil
}

// removeRecord removes a record, and what a crash left of writing it. boundary: held by the caller.
func removeRecord(path string) error {
	for _, f := range []string{filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+newSuffix), path} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (p *Plugin) noteAttached(path string, r volumeRecord) error {
	if have, err := loadRecord(path); err == nil && have == r {
		return nil
	}
	return boundary.Do("flexvolume/note-attached", func() error { return r.save(path) })
}

func (p *Plugin) noteStaged(path string, r volumeRecord) error {
	if have, err := loadRecord(path); err == nil && have == r {
		return nil
	}
	return boundary.Do("flexvolume/note-staged", func() error { return r.save(path) })
}

func (p *Plugin) notePublished(path string, r volumeRecord) error {
	if have, err := loadRecord(path); err == nil && have == r {
		return nil
	}
	return boundary.Do("flexvolume/note-published", func() error { return r.save(path) })
}
