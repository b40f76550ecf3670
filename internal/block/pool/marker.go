package pool

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"berth.io/berth/internal/boundary"
)

// marker is the file berth-pool.json in the pool's root: it tells a pool from any other XFS.
type marker struct {
	Version int       `json:"version"`
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
}

const (
	markerName    = "berth-pool.json"
	volumesName   = "volumes"
	ballastName   = "ballast"
	markerVersion = 1
)

// readOrWriteMarker completes a pool that was made and never marked, and recognises one of another version.
func (p *Pool) readOrWriteMarker() (marker, error) {
	data, err := os.ReadFile(p.path(markerName))
	if errors.Is(err, fs.ErrNotExist) {
		return p.writeMarker()
	}
	if err != nil {
		return marker{}, err
	}
	m, err := parseMarker(data)
	if err != nil {
		return marker{}, fmt.Errorf("%s: %w", p.path(markerName), err)
	}
	return m, nil
}

func parseMarker(data []byte) (marker, error) {
	var m marker
	if err := json.Unmarshal(data, &m); err != nil {
		return marker{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if m.Version != markerVersion {
		return marker{}, fmt.Errorf("pool of version %d; this program knows version %d", m.Version, markerVersion)
	}
	if ValidID(m.ID) != nil {
		return marker{}, fmt.Errorf("%w: pool id %q", ErrDamaged, clip(m.ID))
	}
	return m, nil
}

func (p *Pool) writeMarker() (marker, error) {
	entries, err := os.ReadDir(p.path())
	if err != nil {
		return marker{}, err
	}
	for _, e := range entries {
		if e.Name() != volumesName && e.Name() != markerName+".tmp" {
			return marker{}, fmt.Errorf("%w: an XFS filesystem labelled %s without %s, and with %q in it", ErrForeign, label, markerName, e.Name())
		}
	}
	id := make([]byte, 8)
	rand.Read(id)
	m := marker{Version: markerVersion, ID: hex.EncodeToString(id), Created: time.Now().UTC()}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return marker{}, err
	}
	err = boundary.Do("pool/mark", func() error {
		if err := os.MkdirAll(p.path(volumesName), 0o700); err != nil {
			return err
		}
		return replaceFile(p.path(), markerName, append(data, '\n'))
	})
	return m, err
}
