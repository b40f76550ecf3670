package trace

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"berth.io/berth/internal/boundary"
)

// The journal on disk: segments of at most segmentSize bytes; when there are more than segmentCount the oldest goes.
// 32 MiB hold some 100 000 entries, the journeys of about 8 000 volumes.
const (
	segmentSize  = 4 << 20
	segmentCount = 8

	segmentPrefix = "journey-"
	segmentSuffix = ".jsonl"
)

// segments are the files of one journal. Their numbers grow, so names sort by age.
type segments struct {
	dir   string
	size  int64
	count int

	file    *os.File
	number  int
	written int64
	torn    bool // a write ended within a line (the disk is full)
}

// openSegments goes on with the youngest segment. A line that a kill tore apart is ended, so that the next one stands
// by itself.
func openSegments(dir string, size int64, count int) (*segments, error) {
	s := &segments{dir: dir, size: size, count: count}
	err := boundary.Do("trace/make-directory", func() error { return os.MkdirAll(s.dir, 0o700) })
	if err != nil {
		return nil, fmt.Errorf("make the journal's directory: %w", err)
	}
	there, err := listSegments(s.dir)
	if err != nil {
		return nil, err
	}
	s.number = 1
	if len(there) > 0 {
		s.number = there[len(there)-1]
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	if s.written > 0 {
		last := make([]byte, 1)
		if _, err := s.file.ReadAt(last, s.written-1); err == nil && last[0] != '\n' {
			if err := s.append([]byte{'\n'}); err != nil {
				return nil, fmt.Errorf("end the torn line of %s: %w", s.file.Name(), err)
			}
		}
	}
	return s, nil
}

func (s *segments) path(number int) string {
	return filepath.Join(s.dir, fmt.Sprintf("%s%08d%s", segmentPrefix, number, segmentSuffix))
}

func (s *segments) open() error {
	return boundary.Do("trace/open-segment", func() error {
		f, err := os.OpenFile(s.path(s.number), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
		if err != nil {
			return fmt.Errorf("open the journal: %w", err)
		}
		info, err := f.Stat()
		if err != nil {
			f.Close()
			return fmt.Errorf("open the journal: %w", err)
		}
		s.file, s.written = f, info.Size()
		return nil
	})
}

// append writes whole lines with one call, so that readers and a kill see few torn ones.
func (s *segments) append(lines []byte) error {
	if s.written >= s.size {
		if err := s.rotate(); err != nil {
			return err
		}
	}
	if s.torn {
		lines = append([]byte{'\n'}, lines...)
	}
	return boundary.Do("trace/append", func() error {
		n, err := s.file.Write(lines)
		s.written += int64(n)
		s.torn = err != nil && (s.torn || n > 0)
		return err
	})
}

// rotate begins the next segment and drops the oldest ones. A segment that cannot be dropped is tried again next time.
func (s *segments) rotate() error {
	old := s.file
	s.number++
	if err := s.open(); err != nil {
		s.number--
		return err
	}
	old.Close()
	there, err := listSegments(s.dir)
	if err != nil {
		return err
	}
	for len(there) > s.count {
		oldest := there[0]
		if err := boundary.Do("trace/remove-segment", func() error { return os.Remove(s.path(oldest)) }); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("drop the journal's oldest segment: %w", err)
		}
		there = there[1:]
	}
	return nil
}

func (s *segments) close() error {
	if s.file == nil {
		return nil
	}
	err := s.file.Close()
	s.file = nil
	return err
}

// listSegments returns the numbers of the segments in dir, oldest first.
func listSegments(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list the journal: %w", err)
	}
	var numbers []int
	for _, e := range entries {
		name, ok := strings.CutPrefix(e.Name(), segmentPrefix)
		if !ok {
			continue
		}
		if name, ok = strings.CutSuffix(name, segmentSuffix); !ok {
			continue
		}
		if n, err := strconv.Atoi(name); err == nil && n > 0 {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}
