// Package busy keeps a file busy, as a database does, and knows for how long its writers stood still.
package busy

import (
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Writers write 4 KiB at random places of a file that is full already, past the page cache.
type Writers struct {
	Count, Longest atomic.Int64 // writes; the longest of them, in nanoseconds

	stopping atomic.Bool
	all      sync.WaitGroup
	failed   atomic.Value
}

// Options of writers.
type Options struct {
	AtOnce int           // how many; 0: 8
	Rest   time.Duration // of each between two of its writes
}

// Start fills the file at path with size bytes and begins to write to it.
func Start(path string, size int64, o Options) (*Writers, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	piece := make([]byte, 1<<20)
	for at := int64(0); at < size; at += int64(len(piece)) {
		if _, err := f.WriteAt(piece, at); err != nil {
			return nil, err
		}
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	w := &Writers{}
	if o.AtOnce == 0 {
		o.AtOnce = 8
	}
	for range o.AtOnce {
		w.all.Go(func() {
			if err := w.write(path, size, o.Rest); err != nil {
				w.failed.Store(err)
			}
		})
	}
	return w, nil
}

func (w *Writers) write(path string, size int64, rest time.Duration) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	block, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		return err
	}
	defer unix.Munmap(block)
	for !w.stopping.Load() {
		began := time.Now()
		if _, err := f.WriteAt(block, rand.Int64N(size/4096)*4096); err != nil {
			return err
		}
		took := int64(time.Since(began))
		w.Count.Add(1)
		for longest := w.Longest.Load(); took > longest && !w.Longest.CompareAndSwap(longest, took); longest = w.Longest.Load() {
		}
		if rest > 0 {
			time.Sleep(rest)
		}
	}
	return nil
}

// Stop ends them, answers why one had ended before, and may be called again.
func (w *Writers) Stop() error {
	w.stopping.Store(true)
	w.all.Wait()
	err, _ := w.failed.Load().(error)
	return err
}
