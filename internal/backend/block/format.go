package block

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"berth.io/berth/internal/backend"
	"berth.io/berth/internal/backend/hold"
	"berth.io/berth/internal/block/pool"
	"berth.io/berth/internal/boundary"
	"berth.io/berth/internal/host/filesystem"
)

// formatsAtOnce in the background: mkfs mostly waits for the disk.
const formatsAtOnce = 4

// aheadAtLast is how long a format in the background gives way to volumes that are made meanwhile.
const aheadAtLast = 30 * time.Second

// formatAhead makes the filesystem of a new volume in the background, so that Stage only mounts. In a rush of new volumes it begins
// afterwards; who stages one before that has it formatted then.
func (b *Backend) formatAhead(v pool.Volume) {
	if v.Content != pool.Fresh || v.FSType == "" || b.stopping.Err() != nil {
		return
	}
	over := b.rush.made()
	b.formats.Go(func() {
		select {
		case <-over:
		case <-time.After(aheadAtLast):
		case <-b.stopping.Done():
			return
		}
		select {
		case b.slots <- struct{}{}:
			defer func() { <-b.slots }()
		case <-b.stopping.Done():
			return
		}
		h, err := b.holds.Acquire(b.stopping, v.ID, "format ahead")
		if err != nil {
			return // somebody has it: Stage formats by itself, Delete wants none
		}
		defer h.Release()
		now, err := b.o.Pool.Get(v.ID)
		if err != nil || now.Content != pool.Fresh {
			return
		}
		if err := b.format(b.stopping, h, now, now.FSType); err != nil && b.stopping.Err() == nil {
			b.o.Log.Warn("format ahead; stage will try again", slog.String("volume", v.ID), slog.Any("error", err))
		}
	})
}

// ensureFormatted returns when the volume holds fsType, having made it only where nothing can be lost.
func (b *Backend) ensureFormatted(ctx context.Context, h *hold.Hold, v pool.Volume, fsType string) error {
	switch v.Content {
	case pool.Fresh:
		return b.format(ctx, h, v, fsType)
	case pool.Formatted:
		if v.FSType != fsType {
			return fmt.Errorf("%w: volume %s holds %s, and %s is asked for; it is not formatted again", backend.ErrInvalid, v.ID, v.FSType, fsType)
		}
		return nil
	}
	// Raw: only its user knows what is in it. As long as its device is attached, what was written may not be in the file yet.
	if dev, attached, err := b.openLoop(v.ID); err != nil {
		return err
	} else if attached {
		dev.Close()
		return fmt.Errorf("%w: volume %s is attached as a block device; a filesystem on it can be mounted once nobody has that open", backend.ErrInUse, v.ID)
	}
	disk, err := os.Open(b.o.Pool.Disk(v.ID))
	if err != nil {
		return err
	}
	defer disk.Close()
	if blank, err := neverWritten(disk); err != nil {
		return err
	} else if blank {
		return b.format(ctx, h, v, fsType)
	}
	found, err := filesystem.Recognise(disk, v.SizeBytes)
	if err != nil {
		return err
	}
	if found == fsType {
		return b.o.Pool.SetContent(v.ID, pool.Formatted, fsType)
	}
	if found == "" {
		found = "data written to it as a block device"
	}
	return fmt.Errorf("%w: volume %s holds %s, and %s is asked for; it is not formatted", backend.ErrInvalid, v.ID, found, fsType)
}

// neverWritten says that the file has no data at all, not even zeros.
func neverWritten(f *os.File) (bool, error) {
	_, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return true, nil
	}
	return false, err
}

// format makes fsType on a volume whose bytes nobody needs, and notes it, durably, before anybody can write to it.
func (b *Backend) format(ctx context.Context, h *hold.Hold, v pool.Volume, fsType string) error {
	if least, err := filesystem.MinimumBytes(fsType); err != nil {
		return fmt.Errorf("%w: %w", backend.ErrInvalid, err)
	} else if v.SizeBytes < least {
		return fmt.Errorf("%w: volume %s has %d bytes, %s needs at least %d MiB", backend.ErrInvalid, v.ID, v.SizeBytes, fsType, least>>20)
	}
	h.Step("making " + fsType)
	disk := b.o.Pool.Disk(v.ID)
	err := boundary.Do("backend-block/format", func() error {
		// A mkfs that was killed has left something: the file must read as zeros.
		if err := os.Truncate(disk, 0); err != nil {
			return err
		}
		if err := os.Truncate(disk, v.SizeBytes); err != nil {
			return err
		}
		return filesystem.Make(ctx, fsType, disk, v.SectorBytes)
	})
	if err != nil {
		return err
	}
	return translate(b.o.Pool.SetContent(v.ID, pool.Formatted, fsType))
}
