package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/mountpoint"
)

// record is a volume that is wanted at a path of this host. It outlives restarts of the instance and of the machine.
type record struct {
	Path      string    `json:"path"`
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	ReadOnly  bool      `json:"readOnly,omitempty"`
	Since     time.Time `json:"since"`
	// Mounted is what the kernel shows of the filesystem that is bound there, so that it is known without the API.
	Mounted *mounted `json:"mounted,omitempty"`
	// Boot of the machine in which Mounted was written: another one gives the devices' numbers anew.
	Boot string `json:"boot,omitempty"`
	// Leaving: its unmount has begun; a start finishes that instead of mounting again.
	Leaving bool `json:"leaving,omitempty"`
}

// mounted identifies a mounted filesystem, or a part of one, while it is mounted.
type mounted struct {
	Major int    `json:"major"`
	Minor int    `json:"minor"`
	Root  string `json:"root"`
}

// records is the directory of the records, one file for each path.
type records string

func (r records) file(path string) string {
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(string(r), hex.EncodeToString(sum[:16])+".json")
}

// get returns the record of a path, nil when there is none.
func (r records) get(path string) (*record, error) { return readRecord(r.file(path)) }

func readRecord(file string) (*record, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseRecord(file, b)
}

// parseRecord refuses what would make root mount at a place that nobody asked for.
func parseRecord(file string, b []byte) (*record, error) {
	m := &record{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if !filepath.IsAbs(m.Path) || filepath.Clean(m.Path) != m.Path || m.Path == "/" || m.Namespace == "" || ValidateName(m.Name) != nil {
		return nil, fmt.Errorf("%s names no mount of a volume", file)
	}
	return m, nil
}

// all reads every record; one that cannot be read is an error beside the others.
func (r records) all() ([]*record, error) {
	entries, err := os.ReadDir(string(r))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var found []*record
	var errs []error
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		m, err := readRecord(filepath.Join(string(r), e.Name()))
		switch {
		case err != nil:
			errs = append(errs, err)
		case m != nil:
			found = append(found, m)
		}
	}
	return found, errors.Join(errs...)
}

func (r records) write(m *record) error {
	if err := os.MkdirAll(string(r), 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	file := r.file(m.Path)
	f, err := os.OpenFile(file+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("note the mount at %s: %w", m.Path, err)
	}
	return boundary.Do("volume/write-record", func() error { return os.Rename(file+".new", file) })
}

func (r records) remove(path string) error {
	err := boundary.Do("volume/remove-record", func() error { return os.Remove(r.file(path)) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// shownAt is the topmost mount at a path; nil when nothing is mounted there.
func shownAt(path string) (*mounted, error) {
	entries, err := mountpoint.List()
	if err != nil {
		return nil, err
	}
	var top *mounted
	for _, e := range entries {
		if e.Path == path {
			top = &mounted{e.Major, e.Minor, e.Root}
		}
	}
	return top, nil
}

// unbind takes away what a record has mounted; what somebody else mounted there stays. Nothing there is success. A record without
// a boot is of a version that did not write one.
func (m *record) unbind() error {
	if m.Mounted == nil || m.Boot != "" && m.Boot != thisBoot() {
		return nil
	}
	at, err := shownAt(m.Path)
	if err != nil || at == nil || *at != *m.Mounted {
		return err
	}
	return boundary.Do("volume/unbind", func() error { return mountpoint.Unmount(m.Path) })
}

// TakeDown unmounts what is mounted on the host from the instance at dataDir, which does not run. The records stay, so the next
// start mounts again.
func TakeDown(dataDir string) error {
	found, err := recordsIn(dataDir).all()
	errs := []error{err}
	for _, m := range found {
		errs = append(errs, recordsIn(dataDir).takeDown(m))
	}
	return errors.Join(errs...)
}

// takeDown unmounts what a record has mounted, and notes that it did: the device's number, and the path, may be another's from
// now on.
func (r records) takeDown(m *record) error {
	if m.Mounted == nil {
		return nil
	}
	if err := m.unbind(); err != nil {
		return err
	}
	m.Mounted, m.Boot = nil, ""
	return r.write(m)
}
