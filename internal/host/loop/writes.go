package loop

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Writes tells which places of a device were written since it was opened. Two BPF programs at the kernel's tracepoints note it, in maps
// that need no reader: a bit for each writtenUnit of the device, or for 64 MiB of it when a request has more than 4, and the requests
// that have not come to their end. It costs nothing when it is closed, some 0.4 µs for each request of the machine while it is open, and
// ends with the process. It is used by one goroutine.
//
// A request is noted when it is issued, and struck out when it is completed. The kernel does not run programs for a few of a million
// completions (6.18, in softirqs, without counting them): such a request is told again and again, which costs time and
// loses nothing. One that is completed without having been noted, as those that were on their way before, has its bits then. Of one that was
// unseen both times the device's own statistics are the witness: the bytes that were noted must be those that it accounts in the end.
type Writes struct {
	name     string // the device's
	seen     *watching
	words    []uint64 // a bit for each unit, from the program
	counters *counters
	// What was told of last time because its request had not ended: it may have changed since.
	again []request
	// What the device would have accounted when the first byte was counted. It wraps.
	base uint64
}

// Written is a range of a device, in bytes.
type Written struct{ Offset, Length int64 }

// ErrWritesMissed: the kernel did not tell all. Any place may have been written, and this Writes is of no more use.
var ErrWritesMissed = errors.New("not all writes to the device were seen")

// writtenUnit is how exactly places are told.
const writtenUnit = 1 << unitShift

const (
	sectorShift = 9 // of 512 bytes, whatever the device has
	unitShift   = 16
	largeShift  = 26 // units for large requests
	wordShift   = 6
	wordUnits   = 1 << wordShift
)

// WatchWrites begins to watch dev. An error says that this kernel, or what this process may do, has no way to: it needs Linux 5.12,
// CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN, and tracepoints of block devices.
func WatchWrites(dev *os.File) (_ *Writes, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("watch the writes to %s: %w", dev.Name(), err)
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(int(dev.Fd()), &st); err != nil {
		return nil, err
	}
	size, err := unix.IoctlGetInt(int(dev.Fd()), unix.BLKGETSIZE64)
	if err != nil {
		return nil, fmt.Errorf("its size: %w", err)
	}
	w := &Writes{name: dev.Name()}
	if err := w.accounts(); err != nil {
		return nil, err
	}
	// The kernel's own number of the device: 12 bits major, 20 bits minor (MKDEV, include/linux/kdev_t.h).
	number := unix.Major(st.Rdev)<<20 | unix.Minor(st.Rdev)
	words := func(shift int) int { return (size-1)>>(shift+wordShift) + 1 }
	if w.seen, err = watch(number, words(unitShift), words(largeShift)); err != nil {
		return nil, err
	}
	w.words = unsafe.Slice((*uint64)(unsafe.Pointer(&w.seen.bits[0])), len(w.seen.bits)/8)
	w.counters = (*counters)(unsafe.Pointer(&w.seen.counts[0]))
	if err = w.begin(); err == nil {
		err = w.seen.beginnings()
	}
	if err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// beginTries at a moment without a completed write; with 10 000 of them a second, each second try finds one.
const beginTries = 64

// begin compares from a moment on at which nothing ends, so that what is accounted is what was counted. No beginning is noted before: what is
// on its way then ends without one, and is counted when it does.
func (w *Writes) begin() error {
	for range beginTries {
		before := w.counters.strange.Load()
		at, err := w.accounted()
		if err != nil {
			return err
		}
		later, err := w.accounted()
		if err != nil {
			return err
		}
		if at == later && before == w.counters.strange.Load() {
			w.base = at - before
			return nil
		}
	}
	return errors.New("it never stands still")
}

// accounted is how many bytes the device has written and discarded.
func (w *Writes) accounted() (uint64, error) {
	stat, err := statistics(w.name)
	if err != nil {
		return 0, err
	}
	return bytesAccounted(stat)
}

func bytesAccounted(stat string) (uint64, error) {
	written, err1 := bytesIn(stat, sectorsWritten)
	discarded, err2 := bytesIn(stat, sectorsDiscarded)
	return uint64(written) + uint64(discarded), errors.Join(err1, err2)
}

// accounts makes sure that the device keeps statistics: its user may switch them off.
func (w *Writes) accounts() error {
	text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(w.name), "queue", "iostats"))
	if err == nil && strings.TrimSpace(string(text)) != "1" {
		err = errors.New("it keeps no statistics (queue/iostats)")
	}
	return err
}

// Close ends it. The kernel takes its time to let go of a tracepoint, some 100 ms: nobody waits for that.
func (w *Writes) Close() {
	if w.seen == nil {
		return
	}
	go w.seen.close()
	w.seen, w.words, w.counters = nil, nil, nil
}

// Since calls f for what was written (or discarded) since the last call, and for what is being written, in no order. Whoever reads a place
// after that, and does not find it told by the next call, has read what is there. ErrWritesMissed.
func (w *Writes) Since(f func(Written)) error {
	at, err := w.accounted()
	if err != nil {
		return err
	}
	if err := w.tell(f); err != nil {
		return err
	}
	// A write is counted when it begins, and accounted when it ends.
	if c := w.counters.load(); c.unsure > 0 || int64(c.issued+c.strange-(at-w.base)) < 0 {
		return ErrWritesMissed
	}
	return nil
}

// Complete is Since when nobody writes any more: then all is told, and what the device accounts for agrees to the byte. ErrWritesMissed.
func (w *Writes) Complete(f func(Written)) error {
	at, err := w.accounted()
	if err := errors.Join(err, w.accounts()); err != nil {
		return err
	}
	if err := w.tell(f); err != nil {
		return err
	}
	c := w.counters.load()
	later, err := w.accounted()
	if err != nil {
		return err
	}
	if c.unsure > 0 || at != later || c.issued+c.strange != at-w.base {
		return ErrWritesMissed
	}
	// Every byte that was issued has been accounted: what has not ended by its event has ended all the same.
	ended := w.again
	w.again = nil
	return w.seen.forget(ended)
}

// tell calls f for what the programs noted. The order matters: a request that begins after the bits were taken has its bit in the next
// call, and one that began before is either among those that have not ended, or has.
func (w *Writes) tell(f func(Written)) error {
	for i := range w.words {
		word := atomic.SwapUint64(&w.words[i], 0)
		at, shift := i, unitShift
		if i >= w.seen.fine {
			at, shift = i-w.seen.fine, largeShift
		}
		for word != 0 {
			first := bits.TrailingZeros64(word)
			n := bits.TrailingZeros64(^(word >> first))
			f(Written{int64(at*wordUnits+first) << shift, int64(n) << shift})
			if first+n == wordUnits {
				break
			}
			word &^= (1<<n - 1) << first
		}
	}
	for _, r := range w.again {
		f(Written{int64(r.Sector) << sectorShift, int64(r.Sectors) << sectorShift})
	}
	var err error
	w.again, err = w.seen.unended(w.again[:0])
	return err
}
