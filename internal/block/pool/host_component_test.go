//go:build component

package pool

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/host/command"
)

func run(t *testing.T, program string, args ...string) {
	t.Helper()
	if _, err := command.Run(t.Context(), time.Minute, program, args...); err != nil {
		t.Fatal(err)
	}
}

// waitIdle returns when the pool's own work on its backing has come to rest.
func waitIdle(p *Pool) {
	for quiet := 0; quiet < 5; {
		time.Sleep(20 * time.Millisecond)
		p.backing.Lock()
		if len(p.wake) == 0 {
			quiet++
		} else {
			quiet = 0
		}
		p.backing.Unlock()
	}
}

// allocated is what the host has allocated for the pool file, in bytes.
func allocated(t *testing.T, p *Pool) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(p.image.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// fillDisk takes every block that is left.
func fillDisk(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for step, at := int64(gib), int64(0); step >= 4096; {
		err := unix.Fallocate(int(f.Fd()), 0, at, step)
		switch {
		case err == nil:
			at += step
		case errors.Is(err, unix.ENOSPC):
			step /= 2
		default:
			t.Fatal(err)
		}
	}
}

// writeAll writes size bytes with direct I/O and syncs them.
func writeAll(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(buf)
	for i := range buf {
		buf[i] = byte(i)
	}
	for at := int64(0); at < size; at += int64(len(buf)) {
		if _, err := f.WriteAt(buf, at); err != nil {
			t.Fatalf("at %d of %d MiB: %v", at/mib, size/mib, err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}
