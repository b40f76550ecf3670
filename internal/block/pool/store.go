package pool

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/durable"
	"berth.io/berth/internal/host/xfs"
)

// In a volume's directory.
const (
	diskName     = "disk"
	describeName = "volume.json"
)

// Prefixes of directories that are no volumes (a volume id has no dot): being made, being removed.
const (
	makingPrefix   = ".making-"
	removingPrefix = ".removing-"
)

// extentBytes is the unit in which XFS allocates a volume's file: docs/driver.md has the measurement.
const extentBytes = 1 << 20

// Spec asks for a volume.
type Spec struct {
	ID, Name   string
	SizeBytes  int64
	FSType     string
	Parameters map[string]string
	Mutable    map[string]string
	// Source of its content, and whose bytes that are; nil for an empty volume.
	Source  *Source
	Content Content
	// Quiesced runs the copying of the source while nothing changes it; nil when nobody writes to it.
	Quiesced func(Copying) error
}

// Create makes a volume, durably. ErrExists returns the volume that is there. ErrNoSpace and ErrTooLarge leave nothing
// behind.
func (p *Pool) Create(s Spec) (Volume, error) {
	if err := ValidID(s.ID); err != nil {
		return Volume{}, err
	}
	if v, err := p.Get(s.ID); err == nil {
		return v, fmt.Errorf("%w: %s", ErrExists, s.ID)
	}
	v := Volume{
		Version: volumeVersion, ID: s.ID, Name: s.Name, SizeBytes: RoundSize(s.SizeBytes), SectorBytes: p.sector,
		FSType: s.FSType, Content: Fresh, Parameters: s.Parameters, Created: time.Now().UTC(),
		Mutable: s.Mutable, Source: s.Source,
	}
	if v.FSType == "" {
		v.Content = Raw
	}
	from, err := p.sourceDisk(s)
	if err != nil {
		return Volume{}, err
	}
	if from != "" {
		v.Content = s.Content
	}
	if err := p.reserve(v.SizeBytes); err != nil {
		return Volume{}, err
	}
	if err := p.make(v, from, s.Quiesced); err != nil {
		p.release(v.SizeBytes)
		return Volume{}, fmt.Errorf("make volume %s: %w", v.ID, err)
	}
	p.remember(v)
	return v, nil
}

func (p *Pool) make(v Volume, from string, quiesced func(Copying) error) error {
	making := p.path(volumesName, makingPrefix+v.ID)
	err := boundary.Do("pool/make-volume", func() error { return p.makeFiles(making, from, v, quiesced) })
	if err == nil {
		// The name makes it a volume. The sync makes all of it durable (replaceFile says why).
		err = boundary.Do("pool/name-volume", func() error {
			if err := unix.Renameat2(unix.AT_FDCWD, making, unix.AT_FDCWD, p.Directory(v.ID), unix.RENAME_NOREPLACE); err != nil {
				return err
			}
			return durable.SyncDirectory(p.path(volumesName))
		})
	}
	if err != nil {
		return errors.Join(err, boundary.Do("pool/give-up-volume", func() error { return os.RemoveAll(making) }))
	}
	return nil
}

// sourceDisk is the file that the new volume's content comes from; empty when it has no source.
func (p *Pool) sourceDisk(s Spec) (string, error) {
	switch {
	case s.Source == nil:
		return "", nil
	case s.Source.SnapshotID != "":
		from, err := p.Snapshot(s.Source.SnapshotID)
		if err == nil && RoundSize(s.SizeBytes) < from.SizeBytes {
			err = fmt.Errorf("%w: %d bytes for what is in a snapshot of %d bytes", ErrTooSmall, s.SizeBytes, from.SizeBytes)
		}
		return p.SnapshotDisk(from), err
	default:
		from, err := p.Get(s.Source.VolumeID)
		if err == nil && RoundSize(s.SizeBytes) < from.SizeBytes {
			err = fmt.Errorf("%w: %d bytes for what is in a volume of %d bytes", ErrTooSmall, s.SizeBytes, from.SizeBytes)
		}
		return p.Disk(s.Source.VolumeID), err
	}
}

func (p *Pool) makeFiles(dir, from string, v Volume, quiesced func(Copying) error) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(dir, diskName)
	if from == "" {
		disk, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		defer disk.Close()
		if err := errors.Join(xfs.SetExtentSize(disk, extentBytes), disk.Truncate(v.SizeBytes)); err != nil {
			return err
		}
	} else {
		c, err := p.newCopying(from, path)
		if err != nil {
			return err
		}
		defer c.close()
		if quiesced == nil {
			err = c.all(false)
		} else if err = c.share(); err == nil {
			err = quiesced(clone{c})
		}
		if err := errors.Join(err, c.to.Truncate(v.SizeBytes)); err != nil {
			return err
		}
	}
	return describe(dir, describeName, v)
}

// clone is a volume that is made from another one, as Copying.
//
// boundary: held by the caller.
type clone struct{ c *copying }

func (c clone) Approach() error       { return c.c.approach() }
func (c clone) Copy(still bool) error { return c.c.all(still) }

// Get returns a volume, ErrNotFound, or ErrDamaged when there is one whose description cannot be read: it is not to be taken
// for deleted.
func (p *Pool) Get(id string) (Volume, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, ok := p.volumes[id]
	if !ok && p.isDamaged(id) {
		return Volume{}, fmt.Errorf("%w: the description of volume %s in %s cannot be read; its data was left alone", ErrDamaged, id, p.Directory(id))
	}
	if !ok {
		return Volume{}, fmt.Errorf("%w: %s", ErrNotFound, clip(id))
	}
	v.Parameters, v.Mutable = maps.Clone(v.Parameters), maps.Clone(v.Mutable)
	return v, nil
}

// List returns all volumes, ordered by id.
func (p *Pool) List() []Volume {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.SortedFunc(maps.Values(p.volumes), func(a, b Volume) int { return strings.Compare(a.ID, b.ID) })
}

// Directory of the volume id, which the caller has from Get.
func (p *Pool) Directory(id string) string { return p.path(volumesName, id) }

// Disk is the file with the volume's data.
func (p *Pool) Disk(id string) string { return filepath.Join(p.Directory(id), diskName) }

// SetContent notes, durably, whose bytes are in the volume, and which filesystem.
func (p *Pool) SetContent(id string, c Content, fsType string) error {
	v, err := p.Get(id)
	if err != nil {
		return err
	}
	if v.Content == c && v.FSType == fsType {
		return nil
	}
	v.Content, v.FSType = c, fsType
	return p.describe(v)
}

// SetMutable notes, durably, the parameters that can change.
func (p *Pool) SetMutable(id string, parameters map[string]string) error {
	v, err := p.Get(id)
	if err != nil {
		return err
	}
	if maps.Equal(v.Mutable, parameters) {
		return nil
	}
	v.Mutable = maps.Clone(parameters)
	return p.describe(v)
}

// Resize grows the volume to at least bytes: the promise first, then the description, then the file. A volume that is
// that large already stays.
func (p *Pool) Resize(id string, bytes int64) (Volume, error) {
	v, err := p.Get(id)
	if err != nil {
		return Volume{}, err
	}
	more := RoundSize(bytes) - v.SizeBytes
	if more <= 0 {
		return v, nil
	}
	if err := p.reserve(more); err != nil {
		return Volume{}, err
	}
	v.SizeBytes += more
	if err := p.describe(v); err != nil {
		p.release(more)
		return Volume{}, err
	}
	err = boundary.Do("pool/extend-volume", func() error { return os.Truncate(p.Disk(id), v.SizeBytes) })
	if err != nil {
		return Volume{}, fmt.Errorf("extend volume %s: %w", id, err)
	}
	return v, nil
}

func (p *Pool) describe(v Volume) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	err = boundary.Do("pool/describe-volume", func() error {
		return replaceFile(p.Directory(v.ID), describeName, append(data, '\n'))
	})
	if err != nil {
		return fmt.Errorf("write the description of volume %s: %w", v.ID, err)
	}
	p.remember(v)
	return nil
}

func (p *Pool) remember(v Volume) {
	p.mu.Lock()
	p.volumes[v.ID] = v
	p.mu.Unlock()
}

// Delete removes a volume; one that is not there is success. Nothing may have its disk attached.
func (p *Pool) Delete(id string) error {
	if ValidID(id) == nil {
		if err := p.finishRemoving(id); err != nil { // an earlier volume of this id is in the way of this one
			return fmt.Errorf("delete volume %s: %w", id, err)
		}
	}
	v, err := p.Get(id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	// Once it has this name the volume is gone, also after a power cut; what follows may be done at the next start.
	err = boundary.Do("pool/unname-volume", func() error {
		if err := os.Rename(p.Directory(id), p.path(volumesName, removingPrefix+id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return durable.SyncDirectory(p.path(volumesName))
	})
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", id, err)
	}
	p.mu.Lock()
	delete(p.volumes, id)
	p.removing[id] = v.SizeBytes
	p.mu.Unlock()
	if err := p.finishRemoving(id); err != nil {
		return fmt.Errorf("delete volume %s: %w", id, err)
	}
	return nil
}

// finishRemoving frees what a volume without a name holds. Until then its promise stays: the next delete of that id tries again,
// and so does the next start.
func (p *Pool) finishRemoving(id string) error {
	p.mu.Lock()
	bytes, unfinished := p.removing[id]
	p.mu.Unlock()
	if !unfinished {
		return nil
	}
	if err := removeFiles(p.path(volumesName, removingPrefix+id)); err != nil {
		return err
	}
	p.mu.Lock()
	delete(p.removing, id)
	p.mu.Unlock()
	p.release(bytes)
	return nil
}

// removeFiles frees a volume's blocks, then its directory. Truncating frees them at once; unlinking alone leaves it to XFS's
// background work, or to a loop device that is still going.
func removeFiles(dir string) error {
	return boundary.Do("pool/remove-volume", func() error {
		if err := os.Truncate(filepath.Join(dir, diskName), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return os.RemoveAll(dir)
	})
}
