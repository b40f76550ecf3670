package driver

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/durable"
)

// inlineNote is what is known of an inline volume besides the volume: on the disk before the volume is made, and until it
// is gone, so that none is ever left without.
type inlineNote struct {
	// Handle is the volume id by which the caller knows it; Target is where it is published.
	Handle, Target string
	SizeBytes      int64
	FSType         string
}

// inlineNotes are the notes of this driver's inline volumes: dir/<hash of the handle>/note.json. Beside each, "mount" is where
// the volume is staged.
type inlineNotes struct {
	dir string

	mu    sync.Mutex
	notes map[string]inlineNote // by handle
}

const (
	noteFile = "note.json"
	// maxNote bounds what is read of one.
	maxNote = 16 << 10
)

// openInlineNotes reads what is there. A note that cannot be read is as good as none: if its volume is wanted, it is
// published again.
func openInlineNotes(dir string, log *slog.Logger) (*inlineNotes, error) {
	n := &inlineNotes{dir: dir, notes: map[string]inlineNote{}}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the notes of inline volumes: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name(), noteFile)
		note, err := readNote(path)
		switch {
		case errors.Is(err, fs.ErrNotExist): // a death before the note was written, or after it was removed
		case err != nil:
			log.Warn("the note of an inline volume cannot be read", slog.String("note", path), slog.Any("error", err))
		case n.directory(note.Handle) != filepath.Join(dir, e.Name()):
			log.Warn("the note of an inline volume is in another's place", slog.String("note", path), slog.String("volume", note.Handle))
		default:
			n.notes[note.Handle] = note
		}
	}
	return n, nil
}

func readNote(path string) (inlineNote, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return inlineNote{}, err
	}
	return parseNote(b)
}

func parseNote(b []byte) (inlineNote, error) {
	var n inlineNote
	if len(b) > maxNote {
		return n, fmt.Errorf("%d bytes are too many", len(b))
	}
	if err := json.Unmarshal(b, &n); err != nil {
		return n, err
	}
	if n.Handle == "" || !filepath.IsAbs(n.Target) || n.SizeBytes <= 0 {
		return n, errors.New("it names no volume, or no place for it")
	}
	return n, nil
}

// directory of a handle, which is another's word: its hash cannot lead out of n.dir.
func (n *inlineNotes) directory(handle string) string {
	sum := sha256.Sum256([]byte(handle))
	return filepath.Join(n.dir, hex.EncodeToString(sum[:16]))
}

// staging is where the volume is staged.
func (n *inlineNotes) staging(handle string) string {
	return filepath.Join(n.directory(handle), "mount")
}

func (n *inlineNotes) has(handle string) bool {
	_, ok := n.get(handle)
	return ok
}

func (n *inlineNotes) get(handle string) (inlineNote, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	note, ok := n.notes[handle]
	return note, ok
}

func (n *inlineNotes) all() []inlineNote {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []inlineNote
	for _, note := range n.notes {
		all = append(all, note)
	}
	return all
}

// put writes a note, durably: after a power cut the volume is kept for its pod.
func (n *inlineNotes) put(note inlineNote) error {
	b, err := json.Marshal(note)
	if err != nil {
		return err
	}
	dir := n.directory(note.Handle)
	err = boundary.Do("driver/note-inline", func() error {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := durable.Replace(filepath.Join(dir, noteFile), filepath.Join(dir, "."+noteFile), b); err != nil {
			return err
		}
		return durable.SyncDirectory(n.dir)
	})
	if err != nil {
		return fmt.Errorf("note the inline volume %s: %w", note.Handle, err)
	}
	n.mu.Lock()
	n.notes[note.Handle] = note
	n.mu.Unlock()
	return nil
}

// remove forgets a note; the volume is gone.
func (n *inlineNotes) remove(handle string) error {
	dir := n.directory(handle)
	err := boundary.Do("driver/forget-inline", func() error {
		// Remove, not RemoveAll: what else is in there is not ours.
		for _, path := range []string{n.staging(handle), filepath.Join(dir, "."+noteFile), filepath.Join(dir, noteFile), dir} {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("forget the inline volume %s: %w", handle, err)
	}
	n.mu.Lock()
	delete(n.notes, handle)
	n.mu.Unlock()
	return nil
}
