package loop

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Queue is how the kernel queues the I/O of a device (/sys/block/loopN/queue). The zero value is the kernel's default.
type Queue struct {
	// ReadAheadKiB is how much is read ahead of a reader that reads in order; 0: the kernel's choice.
	ReadAheadKiB int
	// Scheduler is one of Schedulers; empty: none.
	Scheduler string
}

const noScheduler = "none"

// Schedulers that this kernel offers for loop devices. One that is a module shows only when it is loaded.
func Schedulers() ([]string, error) {
	files, err := filepath.Glob("/sys/block/loop*/queue/scheduler")
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("list I/O schedulers: %w", ErrNoDevices)
	}
	line, err := os.ReadFile(files[0])
	if err != nil {
		return nil, fmt.Errorf("list I/O schedulers: %w", err)
	}
	all, _ := parseSchedulers(string(line))
	return all, nil
}

// parseSchedulers reads "none [mq-deadline] kyber": the one in brackets is in force.
func parseSchedulers(line string) (all []string, now string) {
	for _, word := range strings.Fields(line) {
		name := strings.Trim(word, "[]")
		if name != word {
			now = name
		}
		all = append(all, name)
	}
	return all, now
}

// SetQueue makes the device's queue so, whatever another user of its number has left: the kernel keeps the scheduler from one
// file to the next.
//
// boundary: held by the caller.
func SetQueue(dev *os.File, q Queue) error {
	dir := filepath.Join("/sys/block", filepath.Base(dev.Name()), "queue")
	if q.Scheduler == "" {
		q.Scheduler = noScheduler
	}
	line, err := os.ReadFile(filepath.Join(dir, "scheduler"))
	if err != nil {
		return fmt.Errorf("read the scheduler of %s: %w", dev.Name(), err)
	}
	switch all, now := parseSchedulers(string(line)); {
	case now == q.Scheduler:
	case !slices.Contains(all, q.Scheduler):
		return fmt.Errorf("scheduler %q: this kernel offers %s", q.Scheduler, strings.Join(all, ", "))
	default:
		if err := set(dir, "scheduler", q.Scheduler); err != nil {
			return err
		}
	}
	if q.ReadAheadKiB > 0 {
		return set(dir, "read_ahead_kb", strconv.Itoa(q.ReadAheadKiB))
	}
	return nil
}

// ResetReadAhead gives the choice back to the kernel, which makes it whenever a limit of the queue is set, to what it is too
// (blk_apply_bdi_limits). Linux 6.17 and newer only raise it then: hence the 0 before.
//
// boundary: held by the caller.
func ResetReadAhead(dev *os.File) error {
	dir := filepath.Join("/sys/block", filepath.Base(dev.Name()), "queue")
	most, err := os.ReadFile(filepath.Join(dir, "max_sectors_kb"))
	if err != nil {
		return fmt.Errorf("read the queue of %s: %w", dev.Name(), err)
	}
	if err := set(dir, "read_ahead_kb", "0"); err != nil {
		return err
	}
	return set(dir, "max_sectors_kb", strings.TrimSpace(string(most)))
}

func set(dir, name, value string) error {
	if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0); err != nil {
		return fmt.Errorf("set %s to %s: %w (is /sys writable here?)", filepath.Join(dir, name), value, err)
	}
	return nil
}

// WrittenBytes is how much was written to the device called name (/dev/loopN) since it has its number: the difference of two of
// them tells how busy it is.
func WrittenBytes(name string) (int64, error) {
	stat, err := statistics(name)
	if err != nil {
		return 0, err
	}
	return bytesIn(stat, sectorsWritten)
}

// Fields of a device's statistics, from 0 (Documentation/block/stat.rst). Discards are told since Linux 4.18.
const (
	sectorsWritten   = 6
	sectorsDiscarded = 13
)

// statistics are the kernel's, of the device called name.
func statistics(name string) (string, error) {
	line, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(name), "stat"))
	if err != nil {
		return "", fmt.Errorf("read how much was written to %s: %w", name, err)
	}
	return string(line), nil
}

// bytesIn reads a field that counts sectors of 512 bytes.
func bytesIn(stat string, field int) (int64, error) {
	const sectorBytes = 512
	words := strings.Fields(stat)
	if len(words) <= field {
		return 0, fmt.Errorf("the statistics of a device: %q", stat)
	}
	n, err := strconv.ParseInt(words[field], 10, 64)
	if err != nil || n < 0 || n > 1<<62/sectorBytes {
		return 0, fmt.Errorf("the statistics of a device: %q", stat)
	}
	return n * sectorBytes, nil
}
