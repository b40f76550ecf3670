package flexsocket

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/flexvolume/block/wire"
	"berth.io/berth/internal/host/durable"
	"berth.io/berth/internal/host/mountpoint"
)

// note is what was done to one volume through the socket.
type note struct {
	Volume string `json:"volume"`
	// Name under which a kubelet knows the volume: it detaches by this name.
	Name string `json:"name,omitempty"`
	// Node that the volume is attached to; empty: it is not.
	Node string `json:"node,omitempty"`
	// Staged is where mountdevice put it, Published are the places where mount did.
	Staged    string   `json:"staged,omitempty"`
	Published []string `json:"published,omitempty"`
}

func (n note) empty() bool { return n.Node == "" && n.Staged == "" && len(n.Published) == 0 }

// notes of one driver's volumes: a file each in dir, and the same in memory.
type notes struct {
	dir string

	mu    sync.Mutex
	known map[string]note // by volume
}

const noteSuffix = ".json"

// openNotes reads what an earlier process noted. Mounts that are not there any more are forgotten: somebody took them away, or they
// were never made.
func openNotes(dir string, log *slog.Logger) (*notes, error) {
	n := &notes{dir: dir, known: map[string]note{}}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		id, is := strings.CutSuffix(e.Name(), noteSuffix)
		if !is {
			continue // a draft
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		one, err := parseNote(id, b)
		if err != nil { // one damaged file must not keep the others' volumes from being unmounted
			log.Error("a note of a FlexVolume volume cannot be read and is left out: unmount its directories by hand", "file", filepath.Join(dir, e.Name()), "error", err)
			continue
		}
		if !mounted(one.Staged) {
			one.Staged = ""
		}
		one.Published = slices.DeleteFunc(one.Published, func(path string) bool { return !mounted(path) })
		n.known[id] = one
	}
	return n, nil
}

// parseNote reads and checks the content of the file of volume id.
func parseNote(id string, b []byte) (note, error) {
	var n note
	if err := json.Unmarshal(b, &n); err != nil {
		return note{}, err
	}
	if n.Volume != id {
		return note{}, fmt.Errorf("it is about volume %q", n.Volume)
	}
	if err := wire.ValidID(n.Volume); err != nil {
		return note{}, err
	}
	for _, name := range []string{n.Name, n.Node} {
		if name == "" {
			continue
		}
		if err := wire.ValidName(name); err != nil {
			return note{}, err
		}
	}
	paths := n.Published
	if n.Staged != "" {
		paths = slices.Concat([]string{n.Staged}, paths)
	}
	for _, path := range paths {
		if err := wire.ValidPath(path); err != nil {
			return note{}, err
		}
	}
	return n, nil
}

// mounted says whether something is mounted at path; what cannot be looked at is taken for a mount.
func mounted(path string) bool {
	if path == "" {
		return false
	}
	is, err := mountpoint.Is(path)
	return is || err != nil
}

func (n *notes) get(id string) note {
	n.mu.Lock()
	defer n.mu.Unlock()
	one := n.known[id]
	one.Volume, one.Published = id, slices.Clone(one.Published)
	return one
}

// at finds the volume that was put at path; empty: none was.
func (n *notes) at(path string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, one := range n.known {
		if one.Staged == path || slices.Contains(one.Published, path) {
			return id
		}
	}
	return ""
}

// attachedAs finds the volumes that were attached under a name.
func (n *notes) attachedAs(name string) (ids []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, one := range n.known {
		if one.Node != "" && one.Name == name {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// put writes a note, or removes one that says nothing any more, and returns when that is on the disk.
func (n *notes) put(one note) error {
	if have := n.get(one.Volume); have.Name == one.Name && have.Node == one.Node && have.Staged == one.Staged && slices.Equal(have.Published, one.Published) {
		return nil
	}
	file := filepath.Join(n.dir, one.Volume+noteSuffix)
	var err error
	if one.empty() {
		err = boundary.Do("flexsocket/forget", func() error {
			if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return durable.SyncDirectory(n.dir)
		})
	} else {
		err = boundary.Do("flexsocket/note", func() error { return replace(file, one) })
	}
	if err != nil {
		return fmt.Errorf("note what becomes of volume %s: %w", one.Volume, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if one.empty() {
		delete(n.known, one.Volume)
	} else {
		n.known[one.Volume] = one
	}
	return nil
}

// replace writes a note's file; a crash leaves the old one or the new.
//
// boundary: held by the caller.
func replace(file string, one note) error {
	b, err := json.Marshal(one)
	if err != nil {
		return err
	}
	err = durable.Replace(file, file+".new", b)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return err
		}
		err = durable.Replace(file, file+".new", b)
	}
	return err
}
