package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// formerWithin is how long a killed API server may take to be gone; giving its memory back takes some 100 ms.
const formerWithin = 15 * time.Second

// AwaitFormer returns when no berth-apiserver runs on dir any more. One outlives its `berth up` that was killed by the
// moment that the kernel needs to end it, and holds the directory and its port until then. The caller holds what
// keeps another `berth up` from starting one.
func AwaitFormer(ctx context.Context, dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(ctx, formerWithin)
	defer cancel()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return nil // closing f lets go
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		select { // there is no event for the end of a process that is not our child
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("a former %s still runs on %s", Program, dir)
		}
	}
}
