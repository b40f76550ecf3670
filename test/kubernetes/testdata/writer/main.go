// writer FILE: writes to a file on a volume past the page cache, again and again, reads each block back and compares it, and watches that
// what is mounted there stays the same mount. It ends at the first thing that is not as it must be, with status 1 and a line on standard
// error; on SIGTERM with status 0. Each second it says how far it is: `blocks=N longest=DURATION`.
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	block  = 4096
	blocks = 1024 // the size of the file, in blocks
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: writer FILE")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "writer:", err)
		os.Exit(1)
	}
}

func write(path string) error {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	// Not truncated: what another life of this program wrote is checked, too.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT|unix.O_DSYNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	first, err := mountOf(path)
	if err != nil {
		return err
	}
	out, err := aligned()
	if err != nil {
		return err
	}
	in, err := aligned()
	if err != nil {
		return err
	}
	written := map[int64]uint64{} // what each block of this life has to hold
	var longest time.Duration
	told := time.Now()
	for n := uint64(1); ; n++ {
		select {
		case <-end:
			fmt.Printf("ended: blocks=%d longest=%s\n", n-1, longest)
			return nil
		default:
		}
		at := rand.Int64N(blocks)
		fill(out, at, n)
		began := time.Now()
		if _, err := f.WriteAt(out, at*block); err != nil {
			return fmt.Errorf("block %d of %s, write %d: %w", at, path, n, err)
		}
		longest = max(longest, time.Since(began))
		written[at] = n
		for check, n := range written { // any one of them: the order of a map is random
			if _, err := f.ReadAt(in, check*block); err != nil {
				return fmt.Errorf("read block %d of %s: %w", check, path, err)
			}
			if fill(out, check, n); !bytes.Equal(in, out) {
				return fmt.Errorf("block %d of %s is not what write %d left there", check, path, n)
			}
			break
		}
		if time.Since(told) < time.Second {
			continue
		}
		told = time.Now()
		if now, err := mountOf(path); err != nil || now != first {
			return fmt.Errorf("what is mounted at %s was %+v and is %+v (%v)", filepath.Dir(path), first, now, err)
		}
		fmt.Printf("blocks=%d longest=%s\n", n, longest)
	}
}

// fill writes the number of the block and of the write all over a block.
func fill(b []byte, at int64, n uint64) {
	for i := 0; i < len(b); i += 16 {
		binary.LittleEndian.PutUint64(b[i:], uint64(at))
		binary.LittleEndian.PutUint64(b[i+8:], n)
	}
}

// aligned is a block of memory that the kernel takes for direct I/O.
func aligned() ([]byte, error) {
	return unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
}

// mount tells one mount from another of the same device: its id is never used twice (STATX_MNT_ID_UNIQUE, Linux 6.8; before, not at once).
type mount struct {
	id     uint64
	device uint64
}

func mountOf(path string) (mount, error) {
	var s unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID|unix.STATX_MNT_ID_UNIQUE, &s); err != nil {
		return mount{}, err
	}
	return mount{s.Mnt_id, unix.Mkdev(s.Dev_major, s.Dev_minor)}, nil
}
