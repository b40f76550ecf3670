package pool

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"
)

// Errors that callers tell apart with errors.Is. The text around them is for a user.
var (
	// ErrNotFound: no such volume.
	ErrNotFound = errors.New("volume not found")
	// ErrExists: a volume of that id is there already.
	ErrExists = errors.New("volume exists")
	// ErrNoSpace: neither the pool nor the host's disk has the room now.
	ErrNoSpace = errors.New("no space in the pool")
	// ErrTooLarge: more than the pool could ever hold.
	ErrTooLarge = errors.New("larger than the pool")
	// ErrTooSmall: less than its source has.
	ErrTooSmall = errors.New("smaller than its source")
	// ErrInvalidID: not a volume id.
	ErrInvalidID = errors.New("invalid volume id")
	// ErrDamaged: the pool or a description is not what was written; nothing was changed.
	ErrDamaged = errors.New("damaged")
	// ErrForeign: a device or file that holds something else; nothing was changed.
	ErrForeign = errors.New("holds something else")
	// ErrInUse: another process has the pool open.
	ErrInUse = errors.New("in use")
)

// Content says whose bytes are in a volume.
type Content string

const (
	// Fresh: the volume was never handed out, so whatever is in it is an unfinished format of ours.
	Fresh Content = "fresh"
	// Formatted: a filesystem of FSType was made, and may hold data.
	Formatted Content = "formatted"
	// Raw: the volume was handed out as a block device; only its user knows what is in it.
	Raw Content = "raw"
)

// Volume is one volume's description, as volume.json holds it.
type Volume struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	// Name is the name under which the volume was asked for.
	Name string `json:"name"`
	// SizeBytes is what the user sees and what is reserved.
	SizeBytes int64 `json:"sizeBytes"`
	// SectorBytes is the logical block size of its device; it never changes, since filesystems remember it.
	SectorBytes uint32 `json:"sectorBytes"`
	// FSType: ext4, xfs or btrfs; empty for a raw block volume.
	FSType     string            `json:"fsType,omitempty"`
	Content    Content           `json:"content"`
	Parameters map[string]string `json:"parameters,omitempty"`
	// Mutable parameters are those of the user that can change.
	Mutable map[string]string `json:"mutable,omitempty"`
	// Source of its content. It may be gone since.
	Source  *Source   `json:"source,omitempty"`
	Created time.Time `json:"created"`
}

// Source is what a volume was made from: one of the two.
type Source struct {
	SnapshotID string `json:"snapshotID,omitempty"`
	VolumeID   string `json:"volumeID,omitempty"`
}

const volumeVersion = 1

var idPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// ValidID refuses an id that is not one element of a path of plain characters.
func ValidID(id string) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("%w %q: want 1 to 63 of a-z, 0-9 and '-'", ErrInvalidID, clip(id))
	}
	return nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// parseVolume reads a description and checks that it is one of the volume id.
func parseVolume(id string, data []byte) (Volume, error) {
	var v Volume
	if err := json.Unmarshal(data, &v); err != nil {
		return Volume{}, fmt.Errorf("description of volume %s: %w: %w", id, ErrDamaged, err)
	}
	switch {
	case v.Version != volumeVersion:
		return Volume{}, fmt.Errorf("description of volume %s: version %d is not one that this program knows (%d)", id, v.Version, volumeVersion)
	case v.ID != id || ValidID(v.ID) != nil:
		return Volume{}, fmt.Errorf("description of volume %s: %w: names %q", id, ErrDamaged, clip(v.ID))
	case v.SizeBytes <= 0:
		return Volume{}, fmt.Errorf("description of volume %s: %w: size %d", id, ErrDamaged, v.SizeBytes)
	case v.SectorBytes != 512 && v.SectorBytes != 4096:
		return Volume{}, fmt.Errorf("description of volume %s: %w: sector of %d bytes", id, ErrDamaged, v.SectorBytes)
	case v.Content != Fresh && v.Content != Formatted && v.Content != Raw:
		return Volume{}, fmt.Errorf("description of volume %s: %w: content %q", id, ErrDamaged, clip(string(v.Content)))
	}
	return v, nil
}

// RoundSize is a requested size as the pool would make it.
func RoundSize(bytes int64) int64 { return (bytes + VolumeQuantum - 1) / VolumeQuantum * VolumeQuantum }
