package trace

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// Filter chooses entries. The zero Filter chooses all.
type Filter struct {
	// Since leaves out older entries.
	Since time.Time
	// Naming chooses entries that name one of these (claim, pod, volume or node names, UIDs, or a word of the detail).
	Naming []string
}

// Read returns the entries of the journal in dir, in the order in which they were recorded. It may run in any
// process, also while the journal is written. Lines that make no sense (torn by a kill) are left out. Entries that
// tell of lost ones (Step Lost) are always chosen. A directory without a journal has no entries.
func Read(dir string, filter Filter) ([]Entry, error) {
	numbers, err := listSegments(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := segments{dir: dir}
	var entries []Entry
	for _, n := range numbers {
		data, err := os.ReadFile(s.path(n))
		if errors.Is(err, fs.ErrNotExist) {
			continue // rotated away meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("read the journal: %w", err)
		}
		for line := range bytes.Lines(data) {
			if !filter.mayChoose(line) {
				continue
			}
			if e, ok := parseLine(line); ok && (filter.Since.IsZero() || !e.Time.Before(filter.Since)) {
				entries = append(entries, e)
			}
		}
	}
	return entries, nil
}

// mayChoose looks at the bytes of a line: parsing all lines for the few of one volume would take most of the time.
func (f *Filter) mayChoose(line []byte) bool {
	if len(f.Naming) == 0 || bytes.Contains(line, []byte(`"step":"`+string(Lost)+`"`)) {
		return true
	}
	for _, name := range f.Naming {
		if name != "" && bytes.Contains(line, []byte(name)) {
			return true
		}
	}
	return false
}

// parseLine reads one line of a segment; false when it is none.
func parseLine(line []byte) (Entry, bool) {
	var e Entry
	if err := json.Unmarshal(line, &e); err != nil || e.Step == "" || e.State == "" || e.Time.IsZero() {
		return Entry{}, false
	}
	return e, true
}

func lostEntry(n uint64) Entry {
	return Entry{Time: time.Now(), Step: Lost, State: Failed, Detail: fmt.Sprintf("%d entries did not reach the journal", n)}
}
