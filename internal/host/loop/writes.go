package loop

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Writes tells which places of a device were written since it was opened, as the kernel's tracepoint block_rq_complete reports them:
// an event for each request that was completed, before whoever waits for it is told. It costs nothing when it is closed, some 0.2 µs
// for each request while it is open, and ends with the process. It is used by one goroutine.
//
// Events alone are no proof: a ring may be full, a CPU may have come to life since, and a BPF program of somebody else on the same
// tracepoint keeps them from us, so that the kernel does not even count them. The device's own statistics are the witness: the bytes of
// the events must be those that it accounts.
type Writes struct {
	fields fields
	rings  []*ring // of each CPU
	name   string  // the device's
	// From one moment on: bytes that the device had accounted then, and that were told since.
	base, told uint64
}

// Written is a range of a device, in bytes.
type Written struct{ Offset, Length int64 }

// ErrWritesMissed: the kernel did not tell all. Any place may have been written.
var ErrWritesMissed = errors.New("not all writes to the device were seen")

// ringBytes of events are kept for each CPU: some 3 500, until the next Since. A power of two of pages, and less than what
// a process without CAP_IPC_LOCK may have (perf_event_mlock_kb).
const ringBytes = 256 << 10

// WatchWrites begins to watch dev. An error says that this kernel, or what this process may do, has no way to:
// it needs CAP_PERFMON or CAP_SYS_ADMIN, and tracepoints of block devices.
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
	fields, err := requestFields()
	if err != nil {
		return nil, err
	}
	w := &Writes{fields: fields, name: dev.Name()}
	if err := w.accounts(); err != nil {
		return nil, err
	}
	online, err := onlineCPUs()
	if err != nil {
		return nil, err
	}
	cpus, err := parseCPUs(online)
	if err != nil {
		return nil, err
	}
	// The kernel's own number of the device: 12 bits major, 20 bits minor (MKDEV, include/linux/kdev_t.h).
	filter := fmt.Sprintf("dev == %d", uint64(unix.Major(st.Rdev))<<20|uint64(unix.Minor(st.Rdev)))
	for _, cpu := range cpus {
		r, err := openRing(fields.id, cpu, filter)
		if err != nil {
			w.Close()
			return nil, err
		}
		w.rings = append(w.rings, r)
	}
	if err := w.rebase(func(Written) {}); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// rebaseTries at a moment without a completed write; with 10 000 of them a second, each second try finds one.
const rebaseTries = 64

// rebase begins to compare anew, at a moment at which all that was accounted is told.
func (w *Writes) rebase(f func(Written)) error {
	for range rebaseTries {
		at, quiet, err := w.drain(f)
		if err != nil {
			return err
		}
		if quiet {
			w.base, w.told = at, 0
			return nil
		}
	}
	return ErrWritesMissed // what is compared at the end will not agree
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

// Close ends it.
func (w *Writes) Close() {
	for _, r := range w.rings {
		r.close()
	}
	w.rings = nil
}

// Since calls f for what was written (or discarded) since the last call, in no order. To be called often enough: see ringBytes.
// ErrWritesMissed: some of what was written before is missing. What comes after is told again.
func (w *Writes) Since(f func(Written)) error {
	at, quiet, err := w.drain(f)
	if err != nil || !quiet || w.told >= at-w.base { // an event comes a moment before it is accounted
		return err
	}
	return cmp.Or(w.rebase(f), ErrWritesMissed)
}

// Complete is Since when nobody writes any more: then all is told, and what the device accounts for agrees to the byte. ErrWritesMissed.
func (w *Writes) Complete(f func(Written)) error {
	at, quiet, err := w.drain(f)
	if err := errors.Join(err, w.accounts()); err != nil {
		return err
	}
	if quiet && w.told == at-w.base {
		return nil
	}
	return cmp.Or(w.rebase(f), ErrWritesMissed)
}

// drain tells what the rings have, and what the device had accounted by then; quiet: nothing more was accounted meanwhile.
func (w *Writes) drain(f func(Written)) (accounted uint64, quiet bool, err error) {
	before, err := w.accounted()
	if err != nil {
		return 0, false, err
	}
	for _, r := range w.rings {
		r.drain(func(sample []byte) {
			if at, ok := w.fields.written(sample); ok {
				w.told += uint64(at.Length)
				f(at)
			}
		})
	}
	after, err := w.accounted()
	return after, before == after, err
}

// ring is what the kernel writes the events of one CPU to (perf_event_open(2)).
type ring struct {
	event  *os.File
	mapped []byte
}

func openRing(id uint64, cpu int, filter string) (*ring, error) {
	attr := unix.PerfEventAttr{
		Type: unix.PERF_TYPE_TRACEPOINT, Config: id, Sample: 1, Sample_type: unix.PERF_SAMPLE_RAW, Bits: unix.PerfBitDisabled,
	}
	attr.Size = uint32(unsafe.Sizeof(attr))
	fd, err := unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("perf_event_open on CPU %d: %w", cpu, err)
	}
	r := &ring{event: os.NewFile(uintptr(fd), "perf event")}
	text, err := unix.BytePtrFromString(filter)
	if err == nil {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.PERF_EVENT_IOC_SET_FILTER, uintptr(unsafe.Pointer(text))); errno != 0 {
			err = fmt.Errorf("set the filter %q of an event: %w", filter, errno)
		}
	}
	if err == nil {
		r.mapped, err = unix.Mmap(fd, 0, os.Getpagesize()+ringBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_ENABLE, 0)
	}
	if err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *ring) close() {
	if r.mapped != nil {
		_ = unix.Munmap(r.mapped)
	}
	r.event.Close()
}

// drain calls f for each event.
func (r *ring) drain(f func(sample []byte)) {
	page := (*unix.PerfEventMmapPage)(unsafe.Pointer(&r.mapped[0]))
	data := r.mapped[page.Data_offset:][:page.Data_size]
	head, tail := atomic.LoadUint64(&page.Data_head), page.Data_tail
	var joined []byte
	for tail < head {
		at := int(tail % uint64(len(data)))
		// A header is 8 bytes, as everything here is aligned to, and so never cut by the end of the ring.
		kind, size := binary.NativeEndian.Uint32(data[at:]), int(binary.NativeEndian.Uint16(data[at+6:]))
		if size < 8 {
			break // not a record: what is accounted will not be told
		}
		record := data[at:min(at+size, len(data))]
		if len(record) < size {
			joined = append(append(joined[:0], record...), data[:size-len(record)]...)
			record = joined
		}
		if kind == unix.PERF_RECORD_SAMPLE && size >= 12 {
			f(record[12:])
		}
		tail += uint64(size)
	}
	atomic.StoreUint64(&page.Data_tail, tail)
}

// fields of the event block_rq_complete: where in a sample they are, which a kernel may decide as it likes.
type fields struct {
	id                     uint64
	sector, sectors, flags int
}

// Sizes of the fields, the same in every kernel: sector_t, unsigned int, and a text.
const (
	sectorField  = 8
	sectorsField = 4
)

// written is what a request changed; false for one that changed nothing.
func (f fields) written(sample []byte) (Written, bool) {
	if len(sample) < max(f.sector+sectorField, f.sectors+sectorsField, f.flags+1) {
		return Written{0, 1<<63 - 1}, true // not what was said: anything
	}
	const sectorBytes = 512 // whatever the device has
	sector := binary.NativeEndian.Uint64(sample[f.sector:])
	sectors := binary.NativeEndian.Uint32(sample[f.sectors:])
	// The text begins with what a request does (blk_fill_rwbs): R for one that reads, with nothing before it.
	if sample[f.flags] == 'R' || sectors == 0 {
		return Written{}, false
	}
	return Written{int64(sector) * sectorBytes, int64(sectors) * sectorBytes}, true
}

const requestEvent = "events/block/block_rq_complete/format"

func requestFields() (fields, error) {
	const usual = "/sys/kernel/tracing"
	format, err := os.ReadFile(filepath.Join(usual, requestEvent))
	if err != nil {
		// Not mounted there, or not at all: the kernel has it all the same.
		if format, err = readTracing(requestEvent); err != nil {
			return fields{}, err
		}
	}
	return parseFormat(format)
}

// readTracing reads a file of the kernel's tracefs without mounting it anywhere.
func readTracing(name string) ([]byte, error) {
	fs, err := unix.Fsopen("tracefs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open tracefs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("open tracefs: %w", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("open tracefs: %w", err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat(root, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s of tracefs: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return io.ReadAll(f)
}

// parseFormat reads an event's format file: "ID: 2107", and lines such as
// "field:sector_t sector;	offset:16;	size:8;	signed:0;".
func parseFormat(format []byte) (fields, error) {
	f := fields{sector: -1, sectors: -1, flags: -1}
	for line := range bytes.Lines(format) {
		text := strings.TrimSpace(string(line))
		if id, ok := strings.CutPrefix(text, "ID: "); ok {
			n, err := strconv.ParseUint(id, 10, 32)
			if err != nil {
				return fields{}, fmt.Errorf("the format of %s: %q", requestEvent, text)
			}
			f.id = n
			continue
		}
		what, rest, _ := strings.Cut(text, ";")
		words := strings.Fields(what)
		var offset, size int
		if len(words) == 0 {
			continue
		}
		if _, err := fmt.Sscanf(strings.TrimSpace(rest), "offset:%d; size:%d;", &offset, &size); err != nil || offset < 0 || offset > 1<<12 {
			continue
		}
		switch name, _, _ := strings.Cut(words[len(words)-1], "["); {
		case name == "sector" && size == sectorField:
			f.sector = offset
		case name == "nr_sector" && size == sectorsField:
			f.sectors = offset
		case name == "rwbs" && size > 0:
			f.flags = offset
		}
	}
	if f.id == 0 || f.sector < 0 || f.sectors < 0 || f.flags < 0 {
		return fields{}, fmt.Errorf("the format of %s is not one that this program knows", requestEvent)
	}
	return f, nil
}

func onlineCPUs() (string, error) {
	line, err := os.ReadFile("/sys/devices/system/cpu/online")
	return strings.TrimSpace(string(line)), err
}

// mostCPUs that a list may name.
const mostCPUs = 1 << 14

// parseCPUs reads "0-3,5".
func parseCPUs(list string) ([]int, error) {
	var out []int
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil || first < 0 || last < first || last >= mostCPUs {
			return nil, fmt.Errorf("a list of CPUs: %q", list)
		}
		for cpu := first; cpu <= last; cpu++ {
			out = append(out, cpu)
		}
	}
	return out, nil
}
