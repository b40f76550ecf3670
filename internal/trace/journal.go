package trace

import (
	"encoding/json"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// queueLength is how many entries may wait for the writer: a burst of some 400 volumes with all their steps.
const queueLength = 8192

// Journal takes entries off the hot path: Record puts them on a queue, one goroutine writes them to the disk, as many
// as there are with one write. Nothing is synced: the record survives kill -9, and after a power cut the API objects
// still tell the truth.
type Journal struct {
	entries chan Entry
	flush   chan chan struct{}
	stop    chan struct{}
	stopped chan struct{}
	closing sync.Once

	lost     atomic.Uint64 // entries that found the queue full, or could not be written
	segments *segments
	log      *slog.Logger

	mu        sync.Mutex
	followers map[int]func(Entry)
	nextID    int
}

// Open starts a journal in the directory dir, where it keeps to files named journey-*.jsonl.
func Open(dir string, log *slog.Logger) (*Journal, error) {
	return open(dir, log, segmentSize, segmentCount)
}

func open(dir string, log *slog.Logger, size int64, count int) (*Journal, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s, err := openSegments(dir, size, count)
	if err != nil {
		return nil, err
	}
	j := &Journal{
		entries:   make(chan Entry, queueLength),
		flush:     make(chan chan struct{}),
		stop:      make(chan struct{}),
		stopped:   make(chan struct{}),
		segments:  s,
		log:       log,
		followers: map[int]func(Entry){},
	}
	go j.run()
	return j, nil
}

// Record notes e, stamped with the time now unless it has one. It never blocks: when the writer is behind, the oldest
// entries win and the loss is counted.
func (j *Journal) Record(e Entry) {
	if j == nil {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	select {
	case j.entries <- e:
	default:
		j.lost.Add(1)
	}
}

// Lost is how many entries have not reached the disk since Open.
func (j *Journal) Lost() uint64 {
	if j == nil {
		return 0
	}
	return j.lost.Load()
}

// Follow calls f with each entry from now on, on the writer's goroutine, after it is on the disk; f must not block.
// The returned function ends that.
func (j *Journal) Follow(f func(Entry)) (end func()) {
	if j == nil {
		return func() {}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	id := j.nextID
	j.nextID++
	j.followers[id] = f
	return func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		delete(j.followers, id)
	}
}

// Flush returns when all that was recorded before is in the file.
func (j *Journal) Flush() {
	if j == nil {
		return
	}
	done := make(chan struct{})
	select {
	case j.flush <- done:
		<-done
	case <-j.stopped:
	}
}

// Close writes what is left and closes the file. Entries recorded afterwards are lost.
func (j *Journal) Close() error {
	if j == nil {
		return nil
	}
	j.closing.Do(func() { close(j.stop) })
	<-j.stopped
	return j.segments.close()
}

// run is the writer. It sleeps while there is nothing to write.
func (j *Journal) run() {
	defer close(j.stopped)
	w := writer{journal: j}
	for {
		select {
		case e := <-j.entries:
			w.add(e)
			w.writeWaiting()
		case done := <-j.flush:
			w.writeWaiting()
			close(done)
		case <-j.stop:
			w.writeWaiting()
			return
		}
	}
}

// batchLimit bounds one write, so that a burst does not hold all its lines in memory.
const batchLimit = 256 << 10

// writer turns entries into lines and lines into writes. Only run uses it.
type writer struct {
	journal   *Journal
	batch     []Entry
	lines     []byte
	toldLost  uint64
	complains time.Time // last complaint in the log
}

// add encodes e into the batch.
func (w *writer) add(e Entry) {
	e.Time = e.Time.UTC()
	line, err := json.Marshal(&e)
	if err != nil {
		w.journal.lost.Add(1) // a year beyond 9999: nothing to keep
		return
	}
	w.lines = append(append(w.lines, line...), '\n')
	w.batch = append(w.batch, e)
}

// writeWaiting writes the batch and all that waits in the queue.
func (w *writer) writeWaiting() {
	for {
		select {
		case e := <-w.journal.entries:
			w.add(e)
			if len(w.lines) >= batchLimit {
				w.write()
			}
			continue
		default:
		}
		break
	}
	w.write()
}

func (w *writer) write() {
	if lost := w.journal.lost.Load(); lost > w.toldLost {
		n := lost - w.toldLost
		w.toldLost = lost
		w.add(lostEntry(n))
	}
	if len(w.lines) == 0 {
		return
	}
	if err := w.journal.segments.append(w.lines); err != nil {
		w.journal.lost.Add(uint64(len(w.batch)))
		if time.Since(w.complains) > time.Minute {
			w.complains = time.Now()
			w.journal.log.Warn("write the journey's journal; `berth why` will miss steps", "err", err)
		}
	}
	w.journal.tell(w.batch)
	w.lines, w.batch = w.lines[:0], w.batch[:0]
}

func (j *Journal) tell(batch []Entry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, f := range j.followers {
		for _, e := range batch {
			f(e)
		}
	}
}
