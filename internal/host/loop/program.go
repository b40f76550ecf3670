package loop

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

const (
	// mostPending requests are on their way at once, or lost their end: some 10 a second do. To read the map keeps the CPU from
	// running programs meanwhile, and so takes more ends away, the more it can hold.
	mostPending = 2048
	// A request of more sectors than this is told in large units. So none needs more than two words of bits: the largest one that
	// a loop device takes, a discard, has 4 GiB less a sector.
	mostInUnits = wordUnits << (unitShift - sectorShift)
	mostWords   = 2
)

// counters are the program's, in bytes but for the last.
type counters struct {
	issued, strange, unsure atomic.Uint64
}

// counted is what counters were.
type counted struct{ issued, strange, unsure uint64 }

func (c *counters) load() counted {
	return counted{c.issued.Load(), c.strange.Load(), c.unsure.Load()}
}

// watching are the two programs, and their maps.
type watching struct {
	programs        []*ebpf.Program
	events          []*os.File
	units, state    *ebpf.Map
	pending, second *ebpf.Map
	bits, counts    []byte // mapped
	fine            int    // words for units, before those for large ones
	device          uint32 // its number, as the kernel has it
}

// watch makes the maps, with so many words of bits for the units of the device of this number, and for large ones after them, and
// notes which requests end: without a beginning until beginnings is called.
func watch(device uint32, fine, coarse int) (_ *watching, err error) {
	w := &watching{device: device, fine: fine}
	words := fine + coarse
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if words > math.MaxInt32 {
		return nil, errors.New("too large")
	}
	for _, m := range []struct {
		to *(*ebpf.Map)
		is ebpf.MapSpec
	}{
		{&w.units, ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: uint32(words), Flags: unix.BPF_F_MMAPABLE}},
		{&w.state, ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(unsafe.Sizeof(counters{})), MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE}},
		{&w.pending, ebpf.MapSpec{Type: ebpf.Hash, KeySize: uint32(unsafe.Sizeof(request{})), ValueSize: 8, MaxEntries: mostPending}},
		{&w.second, ebpf.MapSpec{Type: ebpf.Hash, KeySize: uint32(unsafe.Sizeof(request{})), ValueSize: 8, MaxEntries: mostPending}},
	} {
		if *m.to, err = ebpf.NewMap(&m.is); err != nil {
			return nil, fmt.Errorf("make a map: %w", err)
		}
	}
	if w.bits, err = mapped(w.units, words*8); err != nil {
		return nil, err
	}
	if w.counts, err = mapped(w.state, int(unsafe.Sizeof(counters{}))); err != nil {
		return nil, err
	}
	if err := w.attach(completed, w.ended()); err != nil {
		return nil, err
	}
	return w, nil
}

// beginnings are noted, too, from now on.
func (w *watching) beginnings() error { return w.attach(issued, w.begun()) }

// request is a key of a map. Two that are on their way at once may have the same sector.
type request struct{ Sector, Sectors uint64 }

func mapped(m *ebpf.Map, size int) ([]byte, error) {
	b, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map a BPF map: %w", err)
	}
	return b, nil
}

// attach loads a program and has it run for each such event of any CPU.
func (w *watching) attach(event string, body asm.Instructions) error {
	f, err := readFormat(event)
	if err != nil {
		return err
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: event, Type: ebpf.TracePoint, License: "Apache-2.0", Instructions: slices.Concat(f.writes(w.device), body, goOn),
	})
	if err != nil {
		return fmt.Errorf("load a program for %s: %w", event, err)
	}
	w.programs = append(w.programs, program)
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: f.id, Sample: 1, Wakeup: 1}
	attr.Size = uint32(unsafe.Sizeof(attr))
	fd, err := unix.PerfEventOpen(&attr, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("perf_event_open of %s: %w", event, err)
	}
	w.events = append(w.events, os.NewFile(uintptr(fd), event))
	if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_SET_BPF, program.FD()); err != nil {
		return fmt.Errorf("attach a program to %s: %w", event, err)
	}
	if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_ENABLE, 0); err != nil {
		return fmt.Errorf("enable %s: %w", event, err)
	}
	return nil
}

func (w *watching) close() {
	for _, e := range w.events {
		e.Close()
	}
	for _, p := range w.programs {
		p.Close()
	}
	for _, b := range [][]byte{w.bits, w.counts} {
		if b != nil {
			_ = unix.Munmap(b)
		}
	}
	for _, m := range []*ebpf.Map{w.units, w.state, w.pending, w.second} {
		if m != nil {
			m.Close()
		}
	}
	*w = watching{}
}

// unended appends the requests whose end was not seen. Those that are there all the time are not left out, whatever the programs do
// meanwhile: the kernel reads bucket by bucket.
func (w *watching) unended(to []request) ([]request, error) {
	keys, values := make([]request, mostPending), make([]uint64, mostPending)
	for _, m := range []*ebpf.Map{w.pending, w.second} {
		n, err := m.BatchLookup(new(ebpf.MapBatchCursor), keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // which says that these are all
			return to, fmt.Errorf("read which requests have not ended: %w", err)
		}
		if err == nil {
			return to, errors.New("more requests have not ended than there can be")
		}
		to = append(to, keys[:n]...)
	}
	return to, nil
}

// forget those.
func (w *watching) forget(all []request) error {
	for _, r := range all {
		for _, m := range []*ebpf.Map{w.pending, w.second} {
			if err := m.Delete(r); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("forget a request: %w", err)
			}
		}
	}
	return nil
}

// The programs. R6 is the event, then a counter; R7 a request's sectors, R8 its first one, also on the stack as a map's key; the value says nothing.
const (
	keyAt, valueAt  = -16, -8
	firstAt, wordAt = -24, -32
	visible         = 1 // a program's answer: others that use the tracepoint see the event too (0 would hide it)
)

// writes goes on for a request of this device that changes something.
func (f format) writes(device uint32) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, int16(f.device), asm.Word),
		asm.JNE.Imm(asm.R2, int32(device), "out"),
		asm.LoadMem(asm.R7, asm.R6, int16(f.sectors), asm.Word),
		asm.JEq.Imm(asm.R7, 0, "out"), // a flush
		// The text begins with what a request does (blk_fill_rwbs): R for one that reads, with nothing before it.
		asm.LoadMem(asm.R2, asm.R6, int16(f.flags), asm.Byte),
		asm.JEq.Imm(asm.R2, 'R', "out"),
		asm.LoadMem(asm.R8, asm.R6, int16(f.sector), asm.DWord),
		asm.StoreMem(asm.RFP, keyAt, asm.R8, asm.DWord),
		asm.StoreMem(asm.RFP, valueAt, asm.R7, asm.DWord),
	}
}

var goOn = asm.Instructions{
	asm.Mov.Imm(asm.R0, visible).WithSymbol("out"),
	asm.Return(),
}

// begun notes a request, sets the bits of its units, and counts its bytes, in this order.
func (w *watching) begun() asm.Instructions {
	return slices.Concat(
		update(w.pending, ebpf.UpdateNoExist),
		asm.Instructions{asm.JEq.Imm(asm.R0, 0, "bits")},
		// The same request is on its way, or its end was not seen: the end of one must not be taken for that of the other.
		update(w.second, ebpf.UpdateAny),
		asm.Instructions{asm.JEq.Imm(asm.R0, 0, "bits")},
		w.unsure(),
		label("bits", w.mark(unsafe.Offsetof(counters{}.issued))),
	)
}

// ended strikes a request out. One that nobody saw begin has its bits from here, and is counted apart.
func (w *watching) ended() asm.Instructions {
	return slices.Concat(
		call(asm.FnMapLookupElem, w.pending, keyAt),
		asm.Instructions{asm.JEq.Imm(asm.R0, 0, "unknown")},
		call(asm.FnMapDeleteElem, w.pending, keyAt),
		asm.Instructions{asm.Ja.Label("out")},
		label("unknown", call(asm.FnMapLookupElem, w.second, keyAt)),
		asm.Instructions{asm.JNE.Imm(asm.R0, 0, "out")},
		// It was on its way before anybody watched.
		w.mark(unsafe.Offsetof(counters{}.strange)),
	)
}

// mark sets the bits of a request's units, and adds its bytes to a counter.
func (w *watching) mark(counter uintptr) asm.Instructions {
	return slices.Concat(
		asm.Instructions{
			asm.Mov.Reg(asm.R9, asm.R8), // R9 is the last unit, R8 the next one
			asm.Add.Reg(asm.R9, asm.R7),
			asm.Sub.Imm(asm.R9, 1),
			asm.Mov.Reg(asm.R3, asm.R9),
			asm.RSh.Imm(asm.R3, unitShift-sectorShift+wordShift),
			asm.JGE.Imm(asm.R3, int32(w.fine), "beyond"), // the device has grown
			asm.Mov.Imm(asm.R1, unitShift-sectorShift),
			asm.Mov.Imm(asm.R2, 0), // the first word of such units
			asm.JLE.Imm(asm.R7, mostInUnits, "units"),
			asm.Mov.Imm(asm.R1, largeShift-sectorShift),
			asm.Mov.Imm(asm.R2, int32(w.fine)),
			asm.StoreMem(asm.RFP, firstAt, asm.R2, asm.DWord).WithSymbol("units"),
			asm.RSh.Reg(asm.R9, asm.R1),
			asm.RSh.Reg(asm.R8, asm.R1),
			asm.Mov.Imm(asm.R6, 0), // words so far

			asm.Mov.Reg(asm.R1, asm.R8).WithSymbol("word"),
			asm.RSh.Imm(asm.R1, wordShift),
			asm.LoadMem(asm.R2, asm.RFP, firstAt, asm.DWord),
			asm.Add.Reg(asm.R1, asm.R2),
			asm.StoreMem(asm.RFP, wordAt, asm.R1, asm.Word),
		},
		call(asm.FnMapLookupElem, w.units, wordAt),
		asm.Instructions{
			asm.JEq.Imm(asm.R0, 0, "beyond"),
			// From this unit to the end of its word, or to the last unit.
			asm.Mov.Reg(asm.R1, asm.R8),
			asm.And.Imm(asm.R1, wordUnits-1),
			asm.Mov.Imm(asm.R2, -1),
			asm.LSh.Reg(asm.R2, asm.R1),
			asm.Or.Imm(asm.R8, wordUnits-1),
			asm.Add.Imm(asm.R8, 1),
			asm.JLE.Reg(asm.R8, asm.R9, "set"),
			asm.Mov.Reg(asm.R3, asm.R9),
			asm.And.Imm(asm.R3, wordUnits-1),
			asm.Mov.Imm(asm.R4, wordUnits-1),
			asm.Sub.Reg(asm.R4, asm.R3),
			asm.Mov.Imm(asm.R3, -1),
			asm.RSh.Reg(asm.R3, asm.R4),
			asm.And.Reg(asm.R2, asm.R3),
			atomically(asm.FetchOr, asm.R0, asm.R2).WithSymbol("set"),
			asm.JGT.Reg(asm.R8, asm.R9, "marked"),
			asm.Add.Imm(asm.R6, 1),
			asm.JLT.Imm(asm.R6, mostWords, "word"),
		},
		label("beyond", w.unsure()),
		label("marked", w.add(counter, asm.Mov.Reg(asm.R2, asm.R7), asm.LSh.Imm(asm.R2, sectorShift))),
	)
}

// update puts the request into a map.
func update(m *ebpf.Map, how ebpf.MapUpdateFlags) asm.Instructions {
	return slices.Concat(
		asm.Instructions{
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, valueAt),
			asm.Mov.Imm(asm.R4, int32(how)),
		},
		call(asm.FnMapUpdateElem, m, keyAt),
	)
}

// call does something with a map, and a key that is on the stack.
func call(f asm.BuiltinFunc, m *ebpf.Map, key int32) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, key),
		f.Call(),
	}
}

// unsure counts what cannot be told.
func (w *watching) unsure() asm.Instructions {
	return w.add(unsafe.Offsetof(counters{}.unsure), asm.Mov.Imm(asm.R2, 1))
}

// add adds what is put into R2 to a counter.
func (w *watching) add(counter uintptr, put ...asm.Instruction) asm.Instructions {
	return slices.Concat(
		asm.Instructions{asm.LoadMapValue(asm.R1, w.state.FD(), uint32(counter))},
		put,
		asm.Instructions{atomically(asm.FetchAdd, asm.R1, asm.R2)},
	)
}

// atomically does what is done to memory, in order with all that comes before and after. The operation is said twice: cilium/ebpf
// v0.22.0 encodes the one of its own as an addition.
func atomically(op asm.AtomicOp, to, with asm.Register) asm.Instruction {
	i := op.Mem(to, with, asm.DWord, 0)
	i.Constant = int64(op) >> 8
	return i
}

func label(name string, to asm.Instructions) asm.Instructions {
	to[0] = to[0].WithSymbol(name)
	return to
}
