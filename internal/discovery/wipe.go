package discovery

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"berth.io/berth/internal/boundary"
)

// What one ioctl or write covers: between two, the deadline is looked at. A discard is an entry in a queue, zeros may be written.
const (
	discardChunk = 4 * gib
	zeroChunk    = 64 * mib
	writeChunk   = 4 * mib
	// endBytes at each end of a device hold every signature that is looked for (filesystem.Recognise), with room.
	endBytes = 16 * mib
)

// wiper wipes one device, which is open exclusively and for direct I/O.
type wiper struct {
	f        *os.File
	dev      device
	raw      bool // a pod gets the device itself, not a filesystem on it
	progress func(string)
	external func() error
}

// wipe does what the class asks for. In any case the ends of the device are zero then: it is known to be blank.
func (w *wiper) wipe(ctx context.Context, c cleaner) error {
	var err error
	switch c.method {
	case discard:
		err = w.discard(ctx)
	case zero:
		err = w.zero(ctx, 0, w.dev.size, "zeros")
	case shred:
		for n := 1; n <= c.passes && err == nil; n++ {
			err = w.random(ctx, n, c.passes)
		}
		if err == nil {
			err = w.zero(ctx, 0, w.dev.size, "zeros")
		}
	case external:
		// Such programs open the device exclusively themselves (mkfs, blkdiscard): it is let go for their time.
		if err = w.f.Close(); err == nil {
			err = w.external()
		}
		if err == nil {
			var again device
			if w.f, again, err = openDevice(w.dev.path, os.O_RDWR|unix.O_EXCL|unix.O_DIRECT); err == nil {
				defer w.f.Close()
				if again.id != w.dev.id {
					err = fmt.Errorf("%s became another disk (%s, was %s) while it was cleaned", w.dev.path, again.id, w.dev.id)
				}
			}
		}
	default:
		err = w.discard(ctx)
		if w.raw && errors.Is(err, unix.EOPNOTSUPP) {
			err = w.zero(ctx, 0, w.dev.size, "zeros")
		} else if errors.Is(err, unix.EOPNOTSUPP) {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("clean %s: %w", w.dev.path, err)
	}
	return w.ends(ctx)
}

// ends zeroes both ends.
func (w *wiper) ends(ctx context.Context) error {
	end := min(endBytes, w.dev.size)
	err := w.zero(ctx, 0, end, "ends")
	if err == nil {
		err = w.zero(ctx, w.dev.size-end, w.dev.size, "ends")
	}
	if err == nil {
		err = boundary.Do("discovery/sync-device", func() error { return w.f.Sync() })
	}
	if err != nil {
		return fmt.Errorf("clear the ends of %s: %w", w.dev.path, err)
	}
	return nil
}

func (w *wiper) discard(ctx context.Context) error {
	return w.each(ctx, 0, w.dev.size, discardChunk, "discarded", func(at, n int64) error {
		return boundary.Do("discovery/discard", func() error { return rangeIoctl(w.f, unix.BLKDISCARD, at, n) })
	})
}

func (w *wiper) zero(ctx context.Context, from, to int64, what string) error {
	return w.each(ctx, from, to, zeroChunk, what, func(at, n int64) error {
		return boundary.Do("discovery/zero", func() error { return rangeIoctl(w.f, unix.BLKZEROOUT, at, n) })
	})
}

// random overwrites the device once. Direct I/O wants memory at a page's border.
func (w *wiper) random(ctx context.Context, pass, passes int) error {
	buffer, err := unix.Mmap(-1, 0, int(writeChunk), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(buffer) }()
	return w.each(ctx, 0, w.dev.size, writeChunk, fmt.Sprintf("pass %d of %d", pass, passes), func(at, n int64) error {
		if _, err := io.ReadFull(rand.Reader, buffer[:n]); err != nil {
			return err
		}
		return boundary.Do("discovery/overwrite", func() error {
			_, err := w.f.WriteAt(buffer[:n], at)
			return err
		})
	})
}

// each covers a range in pieces.
func (w *wiper) each(ctx context.Context, from, to, chunk int64, what string, do func(at, n int64) error) error {
	for at := from; at < to; at += chunk {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("cut short at %d of %d MiB: %w", at/mib, to/mib, err)
		}
		if err := do(at, min(chunk, to-at)); err != nil {
			return err
		}
		w.progress(fmt.Sprintf("%s, %d %%", what, (at-from)*100/(to-from)))
	}
	return nil
}

func rangeIoctl(f *os.File, request uint, at, n int64) error {
	span := [2]uint64{uint64(at), uint64(n)}
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	err = conn.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(unsafe.Pointer(&span)))
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return err
}

// The original's interface to cleaning programs.
const envDevice = "LOCAL_PV_BLKDEVICE"

// runCleaner runs a user's program, without a shell, with the device in its environment. At the deadline its whole process group
// is killed; what it prints goes to the log.
func (d *Discovery) runCleaner(ctx context.Context, pv *v1.PersistentVolume, command []string, device string) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), envDevice+"="+device)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // a grandchild may keep the pipe open
	r, wr := io.Pipe()
	cmd.Stdout, cmd.Stderr = wr, wr
	last := make(chan string, 1)
	go func() { last <- d.logLines(r, pv.Name) }()
	began := d.now()
	err := boundary.Do("discovery/run-cleaner", cmd.Run)
	_ = wr.Close()
	said := <-last
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		// Those that ended up outside the wait's view are killed as well.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		return fmt.Errorf("%s: killed after %s: %w", command[0], d.now().Sub(began).Round(time.Millisecond), ctx.Err())
	}
	return fmt.Errorf("%s: %w: %s", command[0], err, said)
}

// logLines logs a program's lines and returns the last one. A line that is too long ends the reading; the rest is swallowed.
func (d *Discovery) logLines(r io.Reader, volume string) (last string) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), 64<<10)
	for lines.Scan() {
		last = lines.Text()
		d.log.Info("cleaning", "volume", volume, "says", last)
	}
	_, _ = io.Copy(io.Discard, r)
	return last
}
